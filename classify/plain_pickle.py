"""Pickles of numpy arrays and plain values, read without importing or calling anything that they name."""

import io
import pickle
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOT_PLAIN", "plain_pickle"]

NOT_PLAIN = (
    *(pickle.UnpicklingError, EOFError, AssertionError, RuntimeError, LookupError, ValueError, TypeError),
    *(AttributeError, ArithmeticError, struct.error),
)
"""What reading something else, or a damaged pickle, raises."""
_ARRAY, _DTYPE, _BYTES = "numpy array", "numpy dtype", "bytes"
_NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _ARRAY for core in ("core", "_core")},
    ("numpy", "ndarray"): "numpy class",
    ("numpy", "dtype"): _DTYPE,
    ("_codecs", "encode"): _BYTES,  # how Python 3 writes bytes for Python 2
}
"""The only names that a pickle may use; each becomes a placeholder."""
_WHOLE_NUMBERS = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


def plain_pickle(content: bytes) -> dict[str, Any]:
    """Return the dictionary in a pickle of Python 2 or 3: numbers, bytes, lists of them, and arrays of whole numbers.

    Raises:
        Exception: One of `NOT_PLAIN` if it is damaged, or names anything but numpy's arrays.
    """
    found = _Reader(io.BytesIO(content), encoding="bytes").load()
    if type(found) is not dict:
        raise pickle.UnpicklingError(f"holds a {type(found).__name__}")
    return {_text(key): _array(value) if isinstance(value, _Built) else value for key, value in found.items()}


class _Built:
    """What a pickle builds by calling something that it names: nothing is called, only what was asked for is kept."""

    def __init__(self, kind: str, arguments: tuple[Any, ...] = ()) -> None:
        self.kind, self.arguments, self.state = kind, arguments, None

    def __call__(self, *arguments: Any) -> "_Built":
        return _Built(self.kind, arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Reader(pickle._Unpickler):  # the one in C takes memory for any number that a damaged pickle counts with
    dispatch = {  # noqa: RUF012  # of the base class
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]  # as that does
    }

    def find_class(self, module: str, name: str) -> _Built:
        """Return the placeholder for a name; no module is imported."""
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return _Built(_NAMES[module, name])


def _array(built: _Built) -> NDArray[Any]:
    if built.kind != _ARRAY or built.state is None:
        raise pickle.UnpicklingError(f"builds a {built.kind}")
    _, shape, dtype, is_fortran, content = built.state
    if dtype.kind != _DTYPE or (kind := _text(dtype.arguments[0])) not in _WHOLE_NUMBERS:
        raise pickle.UnpicklingError("holds an array that is not of whole numbers")
    numbers = np.frombuffer(_bytes(content), np.dtype(_text(dtype.state[1]) + kind))
    return numbers.reshape(shape, order="F" if is_fortran else "C")


def _bytes(content: Any) -> bytes:
    if isinstance(content, _Built) and content.kind == _BYTES and content.arguments[1] in ("latin1", b"latin1"):
        content = content.arguments[0].encode("latin1")
    if type(content) is not bytes:
        raise pickle.UnpicklingError(f"holds an array of {type(content).__name__}")
    return content


def _text(name: Any) -> str:
    return name.decode() if type(name) is bytes else str(name)
