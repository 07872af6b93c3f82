"""One interface over what can run a network: an ONNX Runtime session, a torch module, a TensorRT engine.

Timing and statistics live in latency.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deploy.engine import load_engine, read_engine_info
from deploy.graph import Arrays, check_inputs, input_specs, load_onnx, output_specs, precision_of

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["EngineRunner", "ModuleRunner", "OnnxRunner", "Runner", "Step"]

Step = Callable[[], float | None]
"""One pass over inputs already in place, back when the device is done; gives the device's own time in ms, or
None where the caller's clock is the device's clock."""


class Runner(Protocol):
    """Something that computes outputs from inputs and says under what conditions."""

    runtime: str
    """Who computes: "onnxruntime", "torch", "tensorrt" or "tensorrt_rtx"."""
    device: str
    """Either "cpu" or "cuda:<index>"."""
    precision: str
    """Most weights: "float32", "float16", "bfloat16" or "int8"."""
    num_threads: int | None
    """CPU threads it may use; None on a GPU."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for these inputs."""

    def prepare(self, inputs: Arrays) -> Step:
        """Put the inputs in place and return the step to be timed; a later `prepare` or `run` may undo it."""


class OnnxRunner:
    """Runs an ONNX file with ONNX Runtime on the CPU.

    Args:
        path: The ONNX file.
        num_threads: Threads inside one operator. More than the idle cores makes times jump.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX file, or one that ONNX Runtime refuses.
    """

    runtime = "onnxruntime"
    device = "cpu"

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        model = load_onnx(path)
        self.inputs, self.outputs = input_specs(model), output_specs(model)
        self.precision = precision_of(model)
        self.num_threads: int | None = num_threads
        self._path = path
        self._session = _onnx_session(path, num_threads)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise ValueError."""
        check_inputs(str(self._path), self.inputs, inputs)
        return dict(zip(self.outputs, self._session.run(list(self.outputs), inputs), strict=True))

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the session; wrong names, shapes or dtypes raise ValueError."""
        check_inputs(str(self._path), self.inputs, inputs)
        output_names = list(self.outputs)

        def step() -> None:
            self._session.run(output_names, inputs)

        return step


class ModuleRunner:
    """Runs a torch module eagerly, without gradients.

    Args:
        module: Gives a tensor or a sequence of tensors; its mode and device are the caller's.
        output_names: One name for each tensor it gives.
        device: Where its weights are.
    """

    runtime = "torch"

    def __init__(self, module: nn.Module, output_names: Sequence[str], *, device: str = "cpu") -> None:
        import torch

        self.device = device
        weight = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
        self.precision = str(torch.float32 if weight is None else weight.dtype).removeprefix("torch.")
        self.num_threads = torch.get_num_threads() if device == "cpu" else None
        self._module = module
        self._output_names = list(output_names)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; inputs are passed by position, in their order."""
        outputs = self._forward(self._placed(inputs))
        tensors = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        if len(tensors) != len(self._output_names):
            raise ValueError(
                f"output_names: wrong count, got {len(self._output_names)} names; expected {len(tensors)}, "
                f"one for each tensor of {type(self._module).__name__}"
            )
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._output_names, tensors, strict=True)}

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the module on inputs already on its device."""
        import torch

        tensors = self._placed(inputs)
        if self.device != "cpu":
            return _cuda_step(lambda: self._forward(tensors), torch.cuda.current_stream(self.device))

        def step() -> None:
            self._forward(tensors)

        return step

    def _placed(self, inputs: Arrays) -> list[torch.Tensor]:
        import torch

        return [torch.from_numpy(array).to(self.device) for array in inputs.values()]

    def _forward(self, tensors: list[torch.Tensor]) -> Any:
        import torch

        with torch.no_grad():
            return self._module(*tensors)


class EngineRunner:
    """Runs an engine on the GPU, with torch tensors as its buffers.

    Args:
        path: The engine, with its sidecar beside it.

    Raises:
        RuntimeError: If there is no GPU, or the engine does not fit the installed version (see load_engine).
    """

    num_threads: int | None = None

    def __init__(self, path: str | Path) -> None:
        import torch

        engine = load_engine(path)
        info = read_engine_info(path)
        self.inputs, self.outputs = info.inputs, info.outputs
        self.runtime, self.precision = info.backend, info.precision
        self.device = f"cuda:{torch.cuda.current_device()}"
        self._path = path
        self._context = engine.create_execution_context()
        self._stream = torch.cuda.Stream()
        self._buffers: dict[str, torch.Tensor] = {}

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise ValueError."""
        self.prepare(inputs)()
        return {name: self._buffers[name].cpu().numpy() for name in self.outputs}

    def prepare(self, inputs: Arrays) -> Step:
        """Copy the inputs to the GPU and return a step that runs the engine on them."""
        import torch

        check_inputs(str(self._path), self.inputs, inputs)
        empty = {name: np.empty(spec.fixed_shape(name), spec.dtype) for name, spec in self.outputs.items()}
        self._buffers = {name: torch.from_numpy(array).cuda() for name, array in {**inputs, **empty}.items()}
        for name, tensor in self._buffers.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        torch.cuda.synchronize()  # the copies ran on another stream than the engine will
        return _cuda_step(self._launch, self._stream)

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(f"{self._path}: {self.runtime} could not run the engine; build it again on this machine")


def _onnx_session(path: str | Path, num_threads: int) -> Any:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: what fails is raised below
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NotImplemented,
    ) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ONNX Runtime refuses it, got {reason}; expected standard operators only") from error


def _cuda_step(launch: Callable[[], object], stream: torch.cuda.Stream) -> Step:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def step() -> float:
        with torch.cuda.stream(stream):
            start.record()
            launch()
            end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return step
