"""All runtimes by name, and functions that open files in them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from command.errors import RequestError
from deploy.engine import read_engine_info
from deploy.runtimes.module import Mode, ModelFileRunner, OpenModel
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
    """CPU threads; not used on a GPU."""
    open_model: OpenModel | None


@dataclass(frozen=True)
class Runtime:
    """A way to run files of one kind."""

    suffix: str
    """Suffix of its files; files with an unknown suffix are read as ONNX."""
    runner: Callable[[Path, _Options], FileRunner]
    """Opens a file."""
    remedy: str = "expected an ONNX file"
    """End of the error message for a file of another kind."""
    backend: str | None = None
    """The backend that builds its engines, if it runs engines."""
    needs_gpu: bool = False


def _engines_of(backend: str, *, cuda_graph: bool = False) -> Runtime:
    """Return the runtime for engines of one backend, which launches kernels one by one or as a CUDA graph."""
    remedy = f"build an engine first: espalier deploy build MODEL.onnx --backend {backend}"

    def runner(path: Path, options: _Options) -> EngineRunner:
        if (built := read_engine_info(path).backend) != backend:
            raise RequestError(f"{path}: not for {backend}, got an engine for {built}; {remedy}")
        return EngineRunner(path, cuda_graph=cuda_graph)

    return Runtime(ENGINE, runner, remedy, backend, needs_gpu=True)


def _pytorch(mode: Mode = "eager", *, on_gpu: bool = False) -> Runtime:
    device = "cuda:0" if on_gpu else "cpu"

    def runner(path: Path, options: _Options) -> ModelFileRunner:
        if options.open_model is None:
            raise RequestError(
                f"{path}: runs only in PyTorch, got a model file; export it first: "
                f"espalier deploy export {shlex.quote(str(path))}"
            )
        return ModelFileRunner(path, options.open_model, num_threads=options.num_threads, device=device, mode=mode)

    return Runtime(MODEL, runner, "expected a model file", needs_gpu=on_gpu)


RUNTIMES = {
    "onnxruntime": Runtime(ONNX, lambda path, options: OnnxRunner(path, num_threads=options.num_threads)),
    "onnxruntime_cuda": Runtime(ONNX, lambda path, options: CudaOnnxRunner(path), needs_gpu=True),
    "openvino": Runtime(ONNX, lambda path, options: OpenVinoRunner(path, num_threads=options.num_threads)),
    "openvino_bf16": Runtime(
        ONNX, lambda path, options: OpenVinoRunner(path, num_threads=options.num_threads, precision_hint="bf16")
    ),
    "tensorrt": _engines_of("tensorrt"),
    "tensorrt_graph": _engines_of("tensorrt", cuda_graph=True),
    "tensorrt_rtx": _engines_of("tensorrt_rtx"),
    "tensorrt_rtx_graph": _engines_of("tensorrt_rtx", cuda_graph=True),
    "torch": _pytorch(),
    "torch_compile": _pytorch("compile"),
    "torch_cuda": _pytorch(on_gpu=True),
    "torch_cuda_graph": _pytorch("cuda_graph", on_gpu=True),
    "torch_compile_cuda": _pytorch("compile", on_gpu=True),
}
"""By name; the first one with a suffix is the default for such files; for an engine, the backend that built it."""


def runner_for(
    path: str | Path, runtime: str | None = None, num_threads: int = 1, *, open_model: OpenModel | None = None
) -> FileRunner:
    """Return a file opened in a runtime, by default the one for its kind.

    Args:
        path: An ONNX file, an engine or, with `open_model`, a model file.
        runtime: A name in RUNTIMES.
        num_threads: CPU threads.
        open_model: Opens model files, see `OpenModel`.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If there is no such runtime or it is not installed, or it cannot run this kind of file or this
            file.
        WorkError: If the runtime needs a GPU and finds none.
    """
    path = Path(path)
    name = runtime or _default(path)
    check_runtimes([name])
    if RUNTIMES[name].suffix != _kind(path):
        raise RequestError(f"{path}: not for {name}, got {_kind(path)}; {RUNTIMES[name].remedy}")
    return RUNTIMES[name].runner(path, _Options(num_threads, open_model))


def runtimes_of(paths: Sequence[Path], named: Sequence[str]) -> list[tuple[Path, str]]:
    """Return each file with each named runtime for its kind, or else with its default.

    Raises:
        RequestError: If a name is unknown, or a runtime can run none of the files.
    """
    check_runtimes(named)
    kinds = {_kind(path) for path in paths}
    for name in named:
        if RUNTIMES[name].suffix not in kinds:
            raise RequestError(
                f"{name}: cannot run any of the files, got {' '.join(map(str, paths))}; {RUNTIMES[name].remedy}"
            )
    fitting = {path: [name for name in named if RUNTIMES[name].suffix == _kind(path)] for path in paths}
    return [(path, name) for path in paths for name in fitting[path] or [_default(path)]]


def check_runtimes(names: Sequence[str]) -> None:
    """Raise RequestError at the first unknown name, with the nearest known ones."""
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
