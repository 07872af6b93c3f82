"""ONNX files in ONNX Runtime on the CPU. The onnx package is needed only to find a file's precision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from command.errors import RequestError, WorkError
from command.files import existing_file
from deploy.classes import classes_in
from deploy.runtimes.timed_step import Step
from deploy.tensors import Arrays, TensorSpec, check_inputs, checked_spec

__all__ = ["OnnxRunner", "onnx_session", "onnx_step", "session_specs"]

_DTYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of element types that differ from numpy's."""
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_ADDRESS = b"_ORT_MEM_ADDR_"
"""ONNX Runtime takes a file of this name for an address in its own memory."""


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
    _log: Path | None = None
    """Where a profile is written; None for none."""

    def __init__(self, path: str | Path, *, num_threads: int = 1) -> None:
        self.file = existing_file(path, "expected an ONNX file")
        self.num_threads: int | None = num_threads
        data = self.file.read_bytes()
        self.file_sha256: str | None = hashlib.sha256(data).hexdigest()
        self._session = onnx_session(path, data, num_threads, log=self._log)
        self.inputs, self.outputs = session_specs(path, self._session)
        self.classes = classes_in(path, _metadata(path, self._session))

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


def session_specs(path: str | Path, session: Any) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
    """Return the inputs and outputs of a session; raise RequestError if one is not a tensor that numpy can hold."""
    try:
        given, made = session.get_inputs(), session.get_outputs()
        return {value.name: _spec(value) for value in given}, {value.name: _spec(value) for value in made}
    except ValueError as error:  # also names that are not UTF-8
        raise RequestError(f"{path}: {error}") from error


def _metadata(path: str | Path, session: Any) -> dict[str, str]:
    try:
        found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise RequestError(f"{path}: its metadata is not UTF-8, got {error}; export it again") from error
    return found


def _spec(value: Any) -> TensorSpec:
    element = value.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return checked_spec(value.name, shape, _DTYPES.get(element, element))


def onnx_session(
    path: str | Path, data: bytes, num_threads: int, provider: Any = "CPUExecutionProvider", log: Path | None = None
) -> Any:
    """Return ONNX Runtime's session for the content of a file.

    Args:
        path: Begins the error messages.
        data: Content of the file. Nothing outside of it is read.
        num_threads: Threads inside one operator.
        provider: Name of the execution provider, or (name, options).
        log: Beginning of the path of a profile; None for none.

    Raises:
        RequestError: If ONNX Runtime cannot load it, or it has weights in another file.
    """
    import onnxruntime

    if _ADDRESS in data:
        raise RequestError(f"{path}: has weights at an address in memory, got {_ADDRESS.decode()}; expected numbers")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal only: errors are raised below
    options.add_session_config_entry(_WEIGHTS_FOLDER, os.devnull)  # which is no folder
    if log:
        options.enable_profiling = True
        options.profile_file_prefix = str(log)
    try:
        return onnxruntime.InferenceSession(data, options, providers=[provider], enable_fallback=0)
    except _onnxruntime_errors() as error:
        raise RequestError(f"{path}: {_load_fault(error)}") from error


def _load_fault(error: Exception) -> str:
    reason = str(error).splitlines()[0]
    if type(error).__name__ == "InvalidProtobuf":
        return "not an ONNX file, got bytes that do not parse; expected an ONNX file"
    if "External data path" in reason:
        return "has weights in another file; expected all in one, as onnx.save(onnx.load(FILE), NEW) writes it"
    return f"ONNX Runtime cannot load it, got {reason}; expected standard operators only"


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

    own = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError, UnicodeDecodeError)  # the last for names in error messages
