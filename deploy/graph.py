"""What an ONNX file says about itself: inputs, outputs, precision, operators. Nothing is run here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploy.files import existing_file

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

__all__ = [
    "Arrays",
    "TensorSpec",
    "check_inputs",
    "foreign_operators",
    "input_specs",
    "load_onnx",
    "output_specs",
    "precision_of",
    "random_inputs",
]

Arrays = dict[str, npt.NDArray[np.generic]]
"""Tensors by the name they have in the ONNX file."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    shape: tuple[int | None, ...]
    """Sizes; None where the file leaves a dimension free."""
    dtype: str
    """numpy's name for it, such as "float32"."""

    def fixed_shape(self, name: str) -> tuple[int, ...]:
        """Return the shape; raises ValueError, naming the tensor, if a dimension is free."""
        sizes = tuple(size for size in self.shape if size is not None)
        if len(sizes) != len(self.shape):
            raise ValueError(
                f"tensor {name!r}: a free dimension, got {self.shape}; expected fixed sizes, export with them"
            )
        return sizes


def load_onnx(path: str | Path) -> ModelProto:
    """Return the parsed file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    remedy = "expected a file that onnx_from_module wrote"
    try:
        model = onnx.load(existing_file(path, remedy))
    except (DecodeError, onnx.checker.ValidationError) as error:  # the second: weights in a file that is gone
        raise ValueError(f"{path}: not an ONNX file, got {error}; {remedy}") from error
    if not model.graph.output:
        raise ValueError(f"{path}: not an ONNX file, got a graph without outputs; {remedy}")
    return model


def input_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Return what the caller must feed, in the file's order (old files list their weights as inputs too)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _spec(value) for value in model.graph.input if value.name not in weights}


def output_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Return what the graph gives, in the file's order."""
    return {value.name: _spec(value) for value in model.graph.output}


def precision_of(model: ModelProto) -> str:
    """Return "int8" for a graph with quantized tensors, else the float type most of its weights have.

    Where convolutions or matrix products have weights these alone count: anchors, which can be more, stay float32. A
    graph without float weights has the precision of its first input, or output where it takes none.
    """
    from onnx.helper import tensor_dtype_to_np_dtype

    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "int8"
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    multiplied = {name for node in products for name in node.input}
    tensors, num_weights = model.graph.initializer, Counter[str]()
    for tensor in [tensor for tensor in tensors if tensor.name in multiplied] or tensors:
        num_weights[tensor_dtype_to_np_dtype(tensor.data_type).name] += math.prod(tensor.dims)
    floats = [dtype for dtype, _ in num_weights.most_common() if "float" in dtype]
    return floats[0] if floats else next(iter({**input_specs(model), **output_specs(model)}.values())).dtype


def foreign_operators(model: ModelProto) -> list[str]:
    """Return the operators outside the standard ONNX domain as sorted "domain::name"; empty is good."""
    graphs = [model.graph, *model.functions]
    foreign = {f"{node.domain}::{node.op_type}" for graph in graphs for node in _nodes(graph) if node.domain}
    return sorted(name for name in foreign if not name.startswith("ai.onnx::"))


def random_inputs(specs: Mapping[str, TensorSpec], seed: int = 0) -> Arrays:
    """Return arrays without a single zero: zeros draw less power and can be skipped, so they flatter a time.

    Floats and bytes are whole numbers from 1 to 255, the same in both: the pixels that our graphs take and normalise.
    Other integers lie in [1, 127); booleans are True. An input whose name ends in `_hw` is a size and gets height and
    width of the first 4-D input: a random one would make a detector take nearly all of its image for padding, which is
    zeros again.

    Raises:
        ValueError: If a shape has a free dimension.
    """
    rng = np.random.default_rng(seed)
    arrays = {name: _random_array(spec.fixed_shape(name), spec.dtype, rng) for name, spec in specs.items()}
    size_hw = next((array.shape[2:] for array in arrays.values() if array.ndim == 4), None)
    for name, array in arrays.items():
        if name.endswith("_hw") and size_hw:
            array[...] = size_hw
    return arrays


def check_inputs(subject: str, specs: Mapping[str, TensorSpec], inputs: Arrays) -> None:
    """Compare arrays with what a graph wants.

    Raises:
        ValueError: At the first wrong name, shape or dtype; the line starts with `subject`.
    """
    if set(inputs) != set(specs):
        raise ValueError(f"{subject}: wrong input names, got {sorted(inputs)}; expected {sorted(specs)}")
    for name, spec in specs.items():
        shape, dtype = inputs[name].shape, inputs[name].dtype.name
        sizes_fit = len(shape) == len(spec.shape) and all(
            want in (None, size) for want, size in zip(spec.shape, shape, strict=True)
        )
        if not sizes_fit:
            raise ValueError(f"{subject}: input {name!r} has the wrong shape, got {shape}; expected {spec.shape}")
        if dtype != spec.dtype:
            raise ValueError(f"{subject}: input {name!r} has the wrong dtype, got {dtype}; expected {spec.dtype}")


def _spec(value: ValueInfoProto) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    if not value.type.HasField("tensor_type"):
        raise ValueError(
            f"{value.name!r}: not a tensor, got {value.type.WhichOneof('value')}; expected a graph of tensors"
        )
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(shape, tensor_dtype_to_np_dtype(tensor.elem_type).name)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield every node, those inside If and Loop bodies too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _nodes(body)


def _random_array(shape: tuple[int, ...], dtype: str, rng: np.random.Generator) -> npt.NDArray[np.generic]:
    end = 256 if dtype == "uint8" or "float" in dtype else 127
    return rng.integers(1, end, shape).astype(dtype)
