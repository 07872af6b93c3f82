"""Engines of TensorRT and TensorRT-RTX on the GPU, and the base class of runners with buffers on a GPU."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from command.errors import WorkError
from command.files import sha256_of
from deploy.engine import last_error, load_engine, read_engine_info
from deploy.runtimes.timed_step import CudaBuffers, Step, cuda_step
from deploy.tensors import Arrays, TensorSpec, check_inputs

__all__ = ["BufferedRunner", "EngineRunner"]


class BufferedRunner(ABC):
    """Runs a file on the GPU in fixed buffers, so that another `run` only copies inputs and computes."""

    file: Path
    inputs: dict[str, TensorSpec]
    classes: tuple[str, ...] | None = None
    _buffers: CudaBuffers
    _step: Step | None = None

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise RequestError."""
        if self._step is None:
            self._step = self.prepare(inputs)
        else:
            check_inputs(str(self.file), self.inputs, inputs)
            self._buffers.load(inputs)
        self._step()
        return self._buffers.arrays()

    @abstractmethod
    def prepare(self, inputs: Arrays) -> Step:
        """Copy the inputs to the GPU and return a step that copies in, computes and copies out."""


class EngineRunner(BufferedRunner):
    """Runs an engine on the GPU, with torch tensors as its buffers, on a stream of its own.

    Args:
        path: The engine, with its sidecar beside it.
        cuda_graph: Whether its kernels are recorded once and launched together: with short kernels, as at batch 1,
            single launches take most of the time.

    Raises:
        RequestError: If the engine does not fit this machine (see load_engine).
        WorkError: If there is no GPU, or the engine cannot be loaded.
    """

    num_threads: int | None = None

    def __init__(self, path: str | Path, *, cuda_graph: bool = False) -> None:
        import torch

        engine = load_engine(path)
        info = read_engine_info(path)
        self.inputs, self.outputs = info.inputs, info.outputs
        self.runtime: str = info.backend + "_graph" * cuda_graph
        self.precision = info.precision
        self._cuda_graph = cuda_graph
        self.device = f"cuda:{torch.cuda.current_device()}"
        self.file = Path(path)
        self.file_sha256: str | None = sha256_of(path)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise WorkError(
                f"{path}: {info.backend} cannot run it, got {last_error(info.backend)}; free some GPU memory"
            )
        self._stream = torch.cuda.Stream()

    def prepare(self, inputs: Arrays) -> Step:
        """Copy the inputs to the GPU and return a step that copies in, computes and copies out."""
        check_inputs(str(self.file), self.inputs, inputs)
        self._buffers = buffers = CudaBuffers(inputs, self.outputs)
        for name, tensor in {**buffers.inputs, **buffers.outputs}.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        launch = self._recorded() if self._cuda_graph else self._launch
        self._step = cuda_step(self._stream, buffers.place, launch, buffers.fetch)
        return self._step

    def _recorded(self) -> Callable[[], object]:
        """Return a function that replays one recorded pass over the current buffers."""
        import torch

        self._launch()  # the first pass may allocate memory, which cannot be recorded
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._launch()
        return graph.replay

    def _launch(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise WorkError(
                f"{self.file}: {self.runtime} cannot run it, got a failed launch; build it again on this machine"
            )
