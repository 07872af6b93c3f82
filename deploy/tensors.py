"""The input and output tensors of a network: names, shapes and dtypes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from command.errors import RequestError

__all__ = [
    "PRECISIONS",
    "Arrays",
    "Specs",
    "TensorSpec",
    "check_inputs",
    "checked_spec",
    "random_inputs",
    "shapes_from",
    "with_shapes",
]

_BITS = (8, 16, 32, 64)
_DTYPES = ("float32", "float16", "bfloat16", "float64", "bool", *(f"{i}{n}" for i in ("int", "uint") for n in _BITS))
_MOST_SIZES, _MOST_ELEMENTS = 8, 2**31
"""TensorRT's limits of a tensor."""

PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "float64": "fp64"}
"""numpy's dtype of most weights -> the name of the precision in configs, records and tables."""

Arrays = dict[str, npt.NDArray[np.generic]]
"""Tensors by the name they have in the ONNX file."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    shape: tuple[int | None, ...]
    """Sizes; None for a free dimension."""
    dtype: str
    """numpy's name for it, such as "float32"."""

    def fixed_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape; raise a RequestError that names the tensor if a dimension is free."""
        sizes = tuple(size for size in self.shape if size is not None)
        if len(sizes) != len(self.shape):
            example = ",".join("1" if size is None else str(size) for size in self.shape)
            raise RequestError(
                f"tensor {name!r}: has a free dimension, got {self.shape}; export it with fixed sizes, or give a shape "
                f"where an option takes one: --shape {name}={example}"
            )
        return sizes


def shapes_from(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes in options such as `image=1,3,224,224`; raise RequestError where one is not of that form."""
    shapes = {}
    for option in options:
        name, _, sizes = option.rpartition("=")
        if not name or not all(size.strip().isdecimal() for size in sizes.split(",")):
            raise RequestError(f"--shape {option}: not a shape; expected NAME=SIZE,SIZE,..., as image=1,3,224,224")
        shapes[name] = tuple(int(size) for size in sizes.split(","))
    return shapes


def with_shapes(specs: Mapping[str, TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    """Return specs whose free dimensions have the given sizes.

    Raises:
        RequestError: If there is no such tensor, or a size is fixed to another number.
    """
    for name, shape in shapes.items():
        if name not in specs:
            raise RequestError(f"--shape {name}: no such input; expected one of {', '.join(specs)}")
        checked_spec(name, shape, specs[name].dtype)
        fits = [size in (None, got) for size, got in zip(specs[name].shape, shape, strict=False)]
        if len(shape) != len(specs[name].shape) or not all(fits):
            raise RequestError(f"--shape {name}: does not fit, got {shape}; expected {specs[name].shape}")
    return {name: replace(spec, shape=shapes.get(name, spec.shape)) for name, spec in specs.items()}


def checked_spec(name: str, shape: tuple[int | None, ...], dtype: str) -> TensorSpec:
    """Return the spec of a tensor as a file declares it.

    Raises:
        RequestError: If no array can have this shape or dtype.
    """
    if dtype not in _DTYPES:
        raise RequestError(f"tensor {name!r}: not of numbers, got {dtype}; expected one of {', '.join(_DTYPES)}")
    sizes = [size for size in shape if size is not None]
    if min(sizes, default=1) < 1 or len(shape) > _MOST_SIZES or math.prod(sizes) > _MOST_ELEMENTS:
        raise RequestError(
            f"tensor {name!r}: impossible shape, got {shape}; expected up to {_MOST_SIZES} sizes, each at least 1, and "
            f"{_MOST_ELEMENTS:,} elements in all"
        )
    return TensorSpec(shape, dtype)


def _checked_specs(specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    return {name: checked_spec(name, spec.shape, spec.dtype) for name, spec in specs.items()}


Specs = Annotated[dict[str, TensorSpec], AfterValidator(_checked_specs)]
"""Inputs or outputs by name, as a field of a pydantic model."""


def random_inputs(specs: Mapping[str, TensorSpec], seed: int = 0) -> Arrays:
    """Return random arrays without zeros: zeros draw less power and can be skipped, which makes times look better.

    Floats and bytes are whole numbers from 1 to 255, the same in both: pixels as our graphs take and normalise them.
    Other integers are in [1, 127); booleans are True. An input of pairs whose name ends in `_hw` is a size and gets
    height and width of the first 4-D input: with a random size, a detector would treat most of the image as padding,
    which is zeros again.

    Raises:
        RequestError: If a shape has a free dimension, or a dtype is not numpy's.
    """
    rng = np.random.default_rng(seed)
    for name, spec in specs.items():
        if spec.dtype == "bfloat16":
            raise RequestError(
                f"tensor {name!r}: numpy has no bfloat16, got an input of it; export it with float32 inputs"
            )
    arrays = {name: _random_array(spec.fixed_shape(name), spec.dtype, rng) for name, spec in specs.items()}
    size_hw = next((array.shape[2:] for array in arrays.values() if array.ndim == 4), None)
    for name, array in arrays.items():
        if name.endswith("_hw") and array.shape[-1:] == (2,) and size_hw:
            array[...] = size_hw
    return arrays


def check_inputs(subject: str, specs: Mapping[str, TensorSpec], inputs: Arrays) -> None:
    """Compare arrays with the inputs of a graph.

    Raises:
        RequestError: At the first wrong name, shape or dtype; the message starts with `subject`.
    """
    if set(inputs) != set(specs):
        raise RequestError(f"{subject}: wrong input names, got {sorted(inputs)}; expected {sorted(specs)}")
    for name, spec in specs.items():
        shape, dtype = inputs[name].shape, inputs[name].dtype.name
        sizes_fit = len(shape) == len(spec.shape) and all(
            want in (None, size) for want, size in zip(spec.shape, shape, strict=True)
        )
        if not sizes_fit:
            raise RequestError(f"{subject}: input {name!r} has the wrong shape, got {shape}; expected {spec.shape}")
        if dtype != spec.dtype:
            raise RequestError(f"{subject}: input {name!r} has the wrong dtype, got {dtype}; expected {spec.dtype}")


def _random_array(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> npt.NDArray[np.generic]:
    end = 256 if dtype == "uint8" or "float" in dtype else 127
    return rng.integers(1, end, shape).astype(dtype)
