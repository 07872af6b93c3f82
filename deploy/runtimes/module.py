"""PyTorch modules, run eagerly, with torch.compile or as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from command.errors import RequestError, WorkError
from command.files import sha256_of
from deploy.runtimes.timed_step import Step, cuda_step
from deploy.tensors import PRECISIONS, Arrays, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Mode", "ModelFileRunner", "ModuleRunner", "OpenModel", "exact_float32"]

Mode = Literal["eager", "compile", "cuda_graph"]
"""How a module runs: kernel by kernel, compiled by torch.compile, or recorded once as a CUDA graph."""
_RUNTIMES: dict[Mode, str] = {"eager": "torch", "compile": "torch_compile", "cuda_graph": "torch_graph"}

OpenModel = Callable[[Path], "tuple[Any, Sequence[torch.Tensor]]"]
"""Model file -> a module with `input_names` and `output_names`, and example inputs for it. The format of model files is
known only to `classify` and `detect`."""


class ModuleRunner:
    """Runs a torch module without gradients.

    Args:
        module: Returns a tensor or a sequence of tensors; the caller sets its mode and device.
        output_names: One name for each tensor it returns.
        device: Device of its weights.
        mode: How it runs. torch.compile compiles in `prepare` or the first `run`; CUDA graphs need a GPU.
    """

    def __init__(
        self, module: nn.Module, output_names: Sequence[str], *, device: str = "cpu", mode: Mode = "eager"
    ) -> None:
        import torch

        self.runtime = _RUNTIMES[mode]
        self.device = device
        self.file_sha256: str | None = None
        weight = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), None)
        dtype = str(torch.float32 if weight is None else weight.dtype).removeprefix("torch.")
        self.precision = PRECISIONS.get(dtype, dtype)
        self.num_threads = torch.get_num_threads() if device == "cpu" else None
        self._name = type(module).__name__
        self._module = torch.compile(module, dynamic=False) if mode == "compile" else module
        self._output_names = list(output_names)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; inputs are passed by position, in their order.

        Raises:
            RequestError: If the number of tensors and of names differ.
            WorkError: If torch.compile cannot work here.
        """
        tensors = self._launcher(self._placed(inputs))()
        if len(tensors) != len(self._output_names):
            raise RequestError(
                f"output_names: wrong count, got {len(self._output_names)} names; expected {len(tensors)}, "
                f"one for each tensor of {self._name}"
            )
        return {name: tensor.cpu().numpy() for name, tensor in zip(self._output_names, tensors, strict=True)}

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the module on inputs already on its device; compiles first if requested.

        Raises:
            WorkError: If torch.compile cannot work here.
        """
        tensors = self._placed(inputs)
        launch = self._launcher(tensors)
        if self.device != "cpu":
            return self._cuda_step(inputs, tensors, launch)

        def step() -> None:
            launch()

        return step

    def _launcher(self, tensors: list[torch.Tensor]) -> Callable[[], Sequence[torch.Tensor]]:
        """Return what computes the outputs for the values in `tensors`, compiled or recorded already."""
        if self.runtime == "torch_graph":
            return self._recorded(tensors)
        if self.runtime == "torch_compile":
            self._compile(tensors)
        return lambda: self._forward(tensors)

    def _recorded(self, tensors: list[torch.Tensor]) -> Callable[[], Sequence[torch.Tensor]]:
        import torch

        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):  # libraries choose kernels and take memory in their first passes
            for _ in range(3):
                self._forward(tensors)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._forward(tensors)

        def launch() -> Sequence[torch.Tensor]:
            graph.replay()
            return outputs

        return launch

    def _cuda_step(
        self, inputs: Arrays, tensors: list[torch.Tensor], compute: Callable[[], Sequence[torch.Tensor]]
    ) -> Step:
        import torch

        pinned = [torch.from_numpy(array).pin_memory() for array in inputs.values()]
        outputs: list[torch.Tensor] = []

        def place() -> None:
            for tensor, source in zip(tensors, pinned, strict=True):
                tensor.copy_(source, non_blocking=True)

        def launch() -> None:
            outputs[:] = compute()

        def fetch() -> None:
            for output in outputs:
                output.to("cpu", non_blocking=True)

        return cuda_step(torch.cuda.current_stream(self.device), place, launch, fetch)

    def _placed(self, inputs: Arrays) -> list[torch.Tensor]:
        import torch

        return [torch.from_numpy(array).to(self.device) for array in inputs.values()]

    def _compile(self, tensors: list[torch.Tensor]) -> None:
        from torch._dynamo.exc import TorchDynamoException

        try:
            self._forward(tensors)
        except TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise WorkError(
                f"torch_compile: cannot compile {self._name}, got {reason}; install a C++ compiler such as g++, or "
                f"use --runtime torch"
            ) from error

    def _forward(self, tensors: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        import torch

        with torch.no_grad(), exact_float32():
            outputs = self._module(*tensors)
        return outputs if isinstance(outputs, (tuple, list)) else [outputs]


class ModelFileRunner(ModuleRunner):
    """Runs a model file in PyTorch.

    Args:
        path: Model file.
        open_model: Opens the file.
        num_threads: CPU threads of the whole process.
        device: Either "cpu" or "cuda:<index>".
        mode: How it runs.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not a model file.
        WorkError: If there is no such device.
    """

    classes: tuple[str, ...] | None = None

    def __init__(
        self, path: Path, open_model: OpenModel, *, num_threads: int = 1, device: str = "cpu", mode: Mode = "eager"
    ) -> None:
        import torch

        if device != "cpu" and not torch.cuda.is_available():
            raise WorkError(f"{path}: needs a GPU, got a machine without CUDA; use --runtime torch")
        torch.set_num_threads(num_threads)
        module, examples = open_model(path)
        super().__init__(module.to(device), module.output_names, device=device, mode=mode)
        with torch.no_grad():
            found = module(*(example.to(device) for example in examples))
        outputs = (found,) if isinstance(found, torch.Tensor) else found
        self.file_sha256 = sha256_of(path)
        self.inputs = dict(zip(module.input_names, map(_spec, examples), strict=True))
        self.outputs = dict(zip(module.output_names, map(_spec, outputs), strict=True))


def _spec(tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


@contextmanager
def exact_float32() -> Iterator[None]:
    """Turn off tf32 (TensorFloat-32) in PyTorch's convolutions on a GPU: fp32 means the same in every runtime."""
    import torch

    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with cudnn.flags(**flags, allow_tf32=False):
        yield
