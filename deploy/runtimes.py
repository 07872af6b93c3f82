"""Files opened by the name of a runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from deploy.engine import read_engine_info
from deploy.onnx_cuda import CudaOnnxRunner
from deploy.openvino import OpenVinoRunner
from deploy.runtime import EngineRunner, FileRunner, OnnxRunner

__all__ = ["RUNTIMES", "Runtime", "check_runtimes", "runner_for", "runtimes_of"]


@dataclass(frozen=True)
class Runtime:
    """What runs files of one kind."""

    suffix: str
    """How their names end; a file that ends like no runtime's is taken for ONNX."""
    runner: Callable[[Path, int], FileRunner]
    """Opens a file; takes the number of CPU threads, of which a GPU makes no use."""
    remedy: str = "expected an ONNX file"
    """For who has a file of another kind."""
    backend: str | None = None
    """What builds its engines, if it runs such."""


ONNX, ENGINE = ".onnx", ".engine"


def _engines_of(backend: str, *, cuda_graph: bool = False) -> Runtime:
    """Return what runs engines of one backend, launching their kernels one by one or as a CUDA graph."""
    remedy = f"build an engine first: espalier deploy build MODEL.onnx --backend {backend}"

    def runner(path: Path, num_threads: int) -> EngineRunner:
        if (built := read_engine_info(path).backend) != backend:
            raise ValueError(f"{path}: not for {backend}, got an engine of {built}; {remedy}")
        return EngineRunner(path, cuda_graph=cuda_graph)

    return Runtime(ENGINE, runner, remedy, backend)


RUNTIMES = {
    "onnxruntime": Runtime(ONNX, lambda path, num_threads: OnnxRunner(path, num_threads=num_threads)),
    "onnxruntime_cuda": Runtime(ONNX, lambda path, _: CudaOnnxRunner(path)),
    "openvino": Runtime(ONNX, lambda path, num_threads: OpenVinoRunner(path, num_threads=num_threads)),
    "openvino_bf16": Runtime(
        ONNX, lambda path, num_threads: OpenVinoRunner(path, num_threads=num_threads, precision_hint="bf16")
    ),
    "tensorrt": _engines_of("tensorrt"),
    "tensorrt_graph": _engines_of("tensorrt", cuda_graph=True),
    "tensorrt_rtx": _engines_of("tensorrt_rtx"),
    "tensorrt_rtx_graph": _engines_of("tensorrt_rtx", cuda_graph=True),
}
"""By name; the first one of a suffix is the default for such files, but an engine's is the one that built it. Other
packages may add theirs."""


def runner_for(path: str | Path, runtime: str | None = None, num_threads: int = 1) -> FileRunner:
    """Return a file opened in a runtime, by default in that of its kind.

    Args:
        path: Of an ONNX file or an engine.
        runtime: A name in RUNTIMES.
        num_threads: CPU threads.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such runtime, or it runs files of another kind or refuses this one.
        RuntimeError: If the runtime is not installed, or needs a GPU and finds none.
    """
    path = Path(path)
    name = runtime or _default(path)
    check_runtimes([name])
    if RUNTIMES[name].suffix != _kind(path):
        raise ValueError(f"{path}: not for {name}, got {_kind(path)}; {RUNTIMES[name].remedy}")
    return RUNTIMES[name].runner(path, num_threads)


def runtimes_of(paths: Sequence[Path], named: Sequence[str]) -> list[tuple[Path, str]]:
    """Return each file with each named runtime of its kind, or with its default where none is of its kind.

    Raises:
        ValueError: If a name is unknown, or none of the files is of its kind.
    """
    check_runtimes(named)
    kinds = {_kind(path) for path in paths}
    for name in named:
        if RUNTIMES[name].suffix not in kinds:
            raise ValueError(
                f"{name}: runs none of the files, got {' '.join(map(str, paths))}; {RUNTIMES[name].remedy}"
            )
    fitting = {path: [name for name in named if RUNTIMES[name].suffix == _kind(path)] for path in paths}
    return [(path, name) for path in paths for name in fitting[path] or [_default(path)]]


def check_runtimes(names: Sequence[str]) -> None:
    """Raise ValueError at the first unknown name; says the nearest ones."""
    for name in names:
        if name not in RUNTIMES:
            nearest = get_close_matches(name, RUNTIMES, n=2) or list(RUNTIMES)
            raise ValueError(f"runtime: unknown, got {name!r}; expected {' or '.join(nearest)}")


def _kind(path: Path) -> str:
    return path.suffix if any(path.suffix == runtime.suffix for runtime in RUNTIMES.values()) else ONNX


def _default(path: Path) -> str:
    if path.suffix == ENGINE:
        return read_engine_info(path).backend
    return next(name for name, runtime in RUNTIMES.items() if runtime.suffix == _kind(path))
