"""Every runtime by its name, and files opened in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from command.errors import RequestError
from deploy.engine import read_engine_info
from deploy.runtimes.module import ModelFileRunner, OpenModel
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.onnxruntime_cuda import CudaOnnxRunner
from deploy.runtimes.openvino import OpenVinoRunner
from deploy.runtimes.runner import FileRunner
from deploy.runtimes.tensorrt import EngineRunner

__all__ = ["ENGINE", "MODEL", "ONNX", "RUNTIMES", "Runtime", "check_runtimes", "runner_for", "runtimes_of"]

ONNX, ENGINE, MODEL = ".onnx", ".engine", ".safetensors"


@dataclass(frozen=True)
class _Options:
    num_threads: int
    """CPU threads; a GPU has no use for them."""
    open_model: OpenModel | None


@dataclass(frozen=True)
class Runtime:
    """What runs files of one kind."""

    suffix: str
    """How their names end; a file that ends like no runtime's is taken for ONNX."""
    runner: Callable[[Path, _Options], FileRunner]
    """Opens a file."""
    remedy: str = "expected an ONNX file"
    """For a user with a file of another kind."""
    backend: str | None = None
    """What builds its engines, if it runs engines."""


def _engines_of(backend: str, *, cuda_graph: bool = False) -> Runtime:
    """Return what runs engines of one backend, launching their kernels one by one or as a CUDA graph."""
    remedy = f"build an engine first: espalier deploy build MODEL.onnx --backend {backend}"

    def runner(path: Path, options: _Options) -> EngineRunner:
        if (built := read_engine_info(path).backend) != backend:
            raise RequestError(f"{path}: not for {backend}, got an engine of {built}; {remedy}")
        return EngineRunner(path, cuda_graph=cuda_graph)

    return Runtime(ENGINE, runner, remedy, backend)


def _pytorch(*, on_gpu: bool = False, compiled: bool = False) -> Runtime:
    device = "cuda:0" if on_gpu else "cpu"

    def runner(path: Path, options: _Options) -> ModelFileRunner:
        if options.open_model is None:
            raise RequestError(
                f"{path}: a model file, which only PyTorch runs; export it: espalier deploy export {path}"
            )
        return ModelFileRunner(
            path, options.open_model, num_threads=options.num_threads, device=device, compiled=compiled
        )

    return Runtime(MODEL, runner, "expected a model file")


RUNTIMES = {
    "onnxruntime": Runtime(ONNX, lambda path, options: OnnxRunner(path, num_threads=options.num_threads)),
    "onnxruntime_cuda": Runtime(ONNX, lambda path, options: CudaOnnxRunner(path)),
    "openvino": Runtime(ONNX, lambda path, options: OpenVinoRunner(path, num_threads=options.num_threads)),
    "openvino_bf16": Runtime(
        ONNX, lambda path, options: OpenVinoRunner(path, num_threads=options.num_threads, precision_hint="bf16")
    ),
    "tensorrt": _engines_of("tensorrt"),
    "tensorrt_graph": _engines_of("tensorrt", cuda_graph=True),
    "tensorrt_rtx": _engines_of("tensorrt_rtx"),
    "tensorrt_rtx_graph": _engines_of("tensorrt_rtx", cuda_graph=True),
    "torch": _pytorch(),
    "torch_compile": _pytorch(compiled=True),
    "torch_cuda": _pytorch(on_gpu=True),
    "torch_compile_cuda": _pytorch(on_gpu=True, compiled=True),
}
"""By name; the first one of a suffix is the default for such files, but an engine's is the one that built it."""


def runner_for(
    path: str | Path, runtime: str | None = None, num_threads: int = 1, *, open_model: OpenModel | None = None
) -> FileRunner:
    """Return a file opened in a runtime, by default in that of its kind.

    Args:
        path: Of an ONNX file, an engine or, with `open_model`, a model file.
        runtime: A name in RUNTIMES.
        num_threads: CPU threads.
        open_model: Opens model files, see `OpenModel`.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If there is no such runtime or it is not installed, or it runs files of another kind or refuses
            this one.
        WorkError: If the runtime needs a GPU and finds none.
    """
    path = Path(path)
    name = runtime or _default(path)
    check_runtimes([name])
    if RUNTIMES[name].suffix != _kind(path):
        raise RequestError(f"{path}: not for {name}, got {_kind(path)}; {RUNTIMES[name].remedy}")
    return RUNTIMES[name].runner(path, _Options(num_threads, open_model))


def runtimes_of(paths: Sequence[Path], named: Sequence[str]) -> list[tuple[Path, str]]:
    """Return each file with each named runtime of its kind, or with its default where none is of its kind.

    Raises:
        RequestError: If a name is unknown, or none of the files is of its kind.
    """
    check_runtimes(named)
    kinds = {_kind(path) for path in paths}
    for name in named:
        if RUNTIMES[name].suffix not in kinds:
            raise RequestError(
                f"{name}: runs none of the files, got {' '.join(map(str, paths))}; {RUNTIMES[name].remedy}"
            )
    fitting = {path: [name for name in named if RUNTIMES[name].suffix == _kind(path)] for path in paths}
    return [(path, name) for path in paths for name in fitting[path] or [_default(path)]]


def check_runtimes(names: Sequence[str]) -> None:
    """Raise RequestError at the first unknown name; says the nearest ones."""
    for name in names:
        if name not in RUNTIMES:
            nearest = get_close_matches(name, RUNTIMES, n=2) or list(RUNTIMES)
            raise RequestError(f"runtime: unknown, got {name!r}; expected {' or '.join(nearest)}")


def _kind(path: Path) -> str:
    return path.suffix if any(path.suffix == runtime.suffix for runtime in RUNTIMES.values()) else ONNX


def _default(path: Path) -> str:
    if path.suffix == ENGINE:
        return read_engine_info(path).backend
    return next(name for name, runtime in RUNTIMES.items() if runtime.suffix == _kind(path))
