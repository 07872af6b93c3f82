"""ONNX files in ONNX Runtime on the CPU. The onnx package is needed only to find a file's precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from command.errors import RequestError, WorkError
from command.files import existing_file, sha256_of
from deploy.runtimes.timed_step import Step
from deploy.tensors import Arrays, TensorSpec, check_inputs

__all__ = ["OnnxRunner", "onnx_session", "onnx_step", "session_specs"]

_DTYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of element types that differ from numpy's."""


class OnnxRunner:
    """Runs an ONNX file with ONNX Runtime on the CPU.

    Args:
        path: The ONNX file.
        num_threads: Threads inside one operator. With more threads than idle cores, times vary a lot.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not an ONNX file, or ONNX Runtime cannot load it.
    """

    runtime = "onnxruntime"
    device = "cpu"

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        self.file = existing_file(path, "expected an ONNX file")
        self.num_threads: int | None = num_threads
        self.file_sha256: str | None = sha256_of(path)
        self._session = onnx_session(path, num_threads)
        self.inputs, self.outputs = session_specs(self._session)

    @cached_property
    def precision(self) -> str:
        """Precision of most weights in the file."""
        from deploy.onnx_file import load_onnx, precision_of  # the onnx package is not needed to run a file

        return precision_of(load_onnx(self.file))

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise RequestError."""
        return dict(zip(self.outputs, self._running(inputs)(), strict=True))

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the session; wrong names, shapes or dtypes raise RequestError."""
        run = self._running(inputs)

        def step() -> None:
            run()

        return step

    def _running(self, inputs: Arrays) -> Callable[[], list[Any]]:
        check_inputs(str(self.file), self.inputs, inputs)
        return onnx_step(self.file, partial(self._session.run, list(self.outputs), inputs))


def session_specs(session: Any) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Return the inputs and outputs of a session."""
    given, made = session.get_inputs(), session.get_outputs()
    return {value.name: _spec(value) for value in given}, {value.name: _spec(value) for value in made}


def _spec(value: Any) -> TensorSpec:
    element = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorSpec(shape, _DTYPES.get(element, element))


def onnx_session(path: str | Path, num_threads: int, provider: Any = "CPUExecutionProvider") -> Any:
    """Return ONNX Runtime's session on one execution provider, given as its name or (name, options).

    Raises:
        RequestError: If ONNX Runtime cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: errors are raised below
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except _onnxruntime_errors() as error:
        if type(error).__name__ == "InvalidProtobuf":
            raise RequestError(
                f"{path}: not an ONNX file, got bytes that do not parse; expected an ONNX file"
            ) from error
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"{path}: ONNX Runtime cannot load it, got {reason}; expected standard operators only"
        ) from error


def onnx_step(path: str | Path | None, run: Callable[[], Any]) -> Callable[[], Any]:
    """Return `run` with ONNX Runtime's exceptions turned into one-line WorkErrors."""
    errors = _onnxruntime_errors()

    def step() -> Any:
        try:
            return run()
        except errors as error:
            reason = str(error).splitlines()[0]
            raise WorkError(f"{path}: ONNX Runtime cannot run it, got {reason}; change the named node") from error

    return step


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """Return its exceptions, which have no common base class but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
