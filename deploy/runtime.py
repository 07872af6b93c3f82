"""One interface over what can run a network: an ONNX Runtime session, a torch module, a TensorRT engine.

OpenVINO and ONNX Runtime on a GPU have files of their own, runtimes.py opens all of them by name. Timing and
statistics live in latency.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deploy.engine import last_error, load_engine, read_engine_info
from deploy.files import sha256_of
from deploy.graph import Arrays, TensorSpec, check_inputs, input_specs, load_onnx, output_specs, precision_of
from deploy.step import CudaBuffers, Step, cuda_step

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "BufferedRunner",
    "EngineRunner",
    "FileRunner",
    "ModuleRunner",
    "OnnxRunner",
    "Runner",
    "exact_float32",
    "onnx_session",
    "onnx_step",
]


class Runner(Protocol):
    """Something that computes outputs from inputs and says under what conditions."""

    runtime: str
    """Who computes: a name in `runtimes.RUNTIMES`, "torch" or "torch_compile"."""
    device: str
    """Either "cpu" or "cuda:<index>"."""
    precision: str
    """Most weights: "float32", "tf32", "float16", "bfloat16" or "int8"."""
    num_threads: int | None
    """CPU threads it may use; None on a GPU."""
    file_sha256: str | None
    """Of the file it runs, when that was opened; None for a network in memory."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for these inputs."""

    def prepare(self, inputs: Arrays) -> Step:
        """Put the inputs in place and return the step to be timed; a later `prepare` or `run` may undo it."""


class FileRunner(Runner, Protocol):
    """A runner of a file, which says what it takes and gives."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


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
        self.file = Path(path)
        self.file_sha256: str | None = sha256_of(path)
        self._session = onnx_session(path, num_threads)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise ValueError."""
        return dict(zip(self.outputs, self._running(inputs)(), strict=True))

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the session; wrong names, shapes or dtypes raise ValueError."""
        run = self._running(inputs)

        def step() -> None:
            run()

        return step

    def _running(self, inputs: Arrays) -> Callable[[], list[Any]]:
        check_inputs(str(self.file), self.inputs, inputs)
        return onnx_step(self.file, partial(self._session.run, list(self.outputs), inputs))


class ModuleRunner:
    """Runs a torch module without gradients.

    Args:
        module: Gives a tensor or a sequence of tensors; its mode and device are the caller's.
        output_names: One name for each tensor it gives.
        device: Where its weights are.
        compiled: Whether torch.compile turns it into kernels; it does so in `prepare` or the first `run`.
    """

    def __init__(
        self, module: nn.Module, output_names: Sequence[str], *, device: str = "cpu", compiled: bool = False
    ) -> None:
        import torch

        self.runtime = "torch_compile" if compiled else "torch"
        self.device = device
        self.file_sha256: str | None = None
        weight = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
        self.precision = str(torch.float32 if weight is None else weight.dtype).removeprefix("torch.")
        self.num_threads = torch.get_num_threads() if device == "cpu" else None
        self._name = type(module).__name__
        self._module = torch.compile(module, dynamic=False) if compiled else module
        self._output_names = list(output_names)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; inputs are passed by position, in their order.

        Raises:
            ValueError: If the module gives another number of tensors than there are names.
            RuntimeError: If torch.compile cannot work here.
        """
        tensors = self._first_forward(self._placed(inputs))
        if len(tensors) != len(self._output_names):
            raise ValueError(
                f"output_names: wrong count, got {len(self._output_names)} names; expected {len(tensors)}, "
                f"one for each tensor of {self._name}"
            )
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._output_names, tensors, strict=True)}

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the module on inputs already on its device; compiles first what is to be compiled.

        Raises:
            RuntimeError: If torch.compile cannot work here.
        """
        tensors = self._placed(inputs)
        if self.runtime == "torch_compile":
            self._first_forward(tensors)
        if self.device != "cpu":
            return self._cuda_step(inputs, tensors)

        def step() -> None:
            self._forward(tensors)

        return step

    def _cuda_step(self, inputs: Arrays, tensors: list[torch.Tensor]) -> Step:
        import torch

        pinned = [torch.from_numpy(array).pin_memory() for array in inputs.values()]
        outputs: list[torch.Tensor] = []

        def place() -> None:
            for tensor, source in zip(tensors, pinned, strict=True):
                tensor.copy_(source, non_blocking=True)

        def launch() -> None:
            outputs[:] = self._forward(tensors)

        def fetch() -> None:
            for output in outputs:
                output.to("cpu", non_blocking=True)

        return cuda_step(torch.cuda.current_stream(self.device), place, launch, fetch)

    def _placed(self, inputs: Arrays) -> list[torch.Tensor]:
        import torch

        return [torch.from_numpy(array).to(self.device) for array in inputs.values()]

    def _first_forward(self, tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._forward(tensors)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"torch_compile: cannot compile {self._name}, got {reason}; install a C++ compiler such as g++, or "
                f"measure it eagerly"
            ) from error

    def _forward(self, tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        import torch

        with torch.no_grad(), exact_float32():
            outputs = self._module(*tensors)
        return outputs if isinstance(outputs, (tuple, list)) else [outputs]


class BufferedRunner(ABC):
    """Runs a file on the GPU in buffers that stay, so that a further `run` copies inputs and does nothing else anew."""

    file: Path
    inputs: dict[str, TensorSpec]
    _buffers: CudaBuffers
    _step: Step | None = None

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise ValueError."""
        if self._step is None:
            self._step = self.prepare(inputs)
        else:
            check_inputs(str(self.file), self.inputs, inputs)
            self._buffers.load(inputs)
        self._step()
        return self._buffers.arrays()

    @abstractmethod
    def prepare(self, inputs: Arrays) -> Step:
        """Copy the inputs to the GPU and return a step that copies, computes and fetches."""


class EngineRunner(BufferedRunner):
    """Runs an engine on the GPU, with torch tensors as its buffers, on a stream of its own.

    Args:
        path: The engine, with its sidecar beside it.
        cuda_graph: Whether its kernels are recorded once and launched together: where they are short, as at batch 1,
            the launches are what takes time.

    Raises:
        RuntimeError: If there is no GPU, or the engine does not fit the installed version (see load_engine).
    """

    num_threads: int | None = None

    def __init__(self, path: str | Path, *, cuda_graph: bool = False) -> None:
        import torch

        engine = load_engine(path)
        info = read_engine_info(path)
        self.inputs, self.outputs = info.inputs, info.outputs
        self.runtime, self.precision = info.backend + "_graph" * cuda_graph, info.precision
        self._cuda_graph = cuda_graph
        self.device = f"cuda:{torch.cuda.current_device()}"
        self.file = Path(path)
        self.file_sha256: str | None = sha256_of(path)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise RuntimeError(f"{path}: {info.backend} cannot run it, got {last_error(info.backend)}; free GPU memory")
        self._stream = torch.cuda.Stream()

    def prepare(self, inputs: Arrays) -> Step:
        """Copy the inputs to the GPU and return a step that copies, computes and fetches."""
        check_inputs(str(self.file), self.inputs, inputs)
        self._buffers = buffers = CudaBuffers(inputs, self.outputs)
        for name, tensor in {**buffers.inputs, **buffers.outputs}.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        launch = self._recorded() if self._cuda_graph else self._launch
        self._step = cuda_step(self._stream, buffers.place, launch, buffers.fetch)
        return self._step

    def _recorded(self) -> Callable[[], object]:
        """Return the replay of one pass over the buffers in place."""
        import torch

        self._launch()  # the first pass may allocate, which cannot be recorded
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._launch()
        return graph.replay

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise RuntimeError(f"{self.file}: {self.runtime} could not run the engine; build it again on this machine")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep PyTorch's convolutions on a GPU from TensorFloat-32: float32 means the same in every runtime."""
    import torch

    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with cudnn.flags(**flags, allow_tf32=False):
        yield


def onnx_session(path: str | Path, num_threads: int, provider: Any = "CPUExecutionProvider") -> Any:
    """Return ONNX Runtime's session on one execution provider, given as its name or (name, options).

    Raises:
        ValueError: If ONNX Runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: what fails is raised below
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except _onnxruntime_errors() as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: ONNX Runtime refuses it, got {reason}; expected standard operators only") from error


def onnx_step(path: str | Path | None, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return `run` with what ONNX Runtime raises in it as a RuntimeError of one line."""
    errors = _onnxruntime_errors()

    def step() -> Any:
        try:
            return run()
        except errors as error:
            reason = str(error).splitlines()[0]
            raise RuntimeError(f"{path}: ONNX Runtime cannot run it, got {reason}; change the named node") from error

    return step


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return its exceptions, which have nothing but Exception in common."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
