"""Inputs, outputs, precision and operators of an ONNX file. Nothing is run here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from command.errors import RequestError
from command.files import existing_file
from deploy.tensors import PRECISIONS, TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

__all__ = ["foreign_operators", "input_specs", "load_onnx", "output_specs", "precision_of"]


def load_onnx(path: str | Path) -> ModelProto:
    """Return the parsed file.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not an ONNX file.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    remedy = "expected an ONNX file with fixed shapes, as espalier deploy export writes"
    try:
        model = onnx.load(existing_file(path, remedy))
    except (
        DecodeError,
        onnx.checker.ValidationError,
    ) as error:  # the second: its weights are in a file that is missing
        raise RequestError(f"{path}: not an ONNX file, got {error}; {remedy}") from error
    if not model.graph.output:
        raise RequestError(f"{path}: not an ONNX file, got a graph without outputs; {remedy}")
    return model


def input_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Return the inputs without weights, in the file's order (old files list their weights as inputs too)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _spec(value) for value in model.graph.input if value.name not in weights}


def output_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Return the outputs, in the file's order."""
    return {value.name: _spec(value) for value in model.graph.output}


def precision_of(model: ModelProto) -> str:
    """Return the precision of a graph: "int8" where tensors are quantized, else that of most of its weights.

    If convolutions or matrix products have weights, only these count: anchors, which can be more, stay float32. A graph
    without float weights has the precision of its first input, or of its first output if it has no inputs.
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
    dtype = floats[0] if floats else next(iter({**input_specs(model), **output_specs(model)}.values())).dtype
    return PRECISIONS.get(dtype, dtype)


def foreign_operators(model: ModelProto) -> list[str]:
    """Return the operators outside the standard ONNX domain as sorted "domain::name"."""
    graphs = [model.graph, *model.functions]
    foreign = {f"{node.domain}::{node.op_type}" for graph in graphs for node in _nodes(graph) if node.domain}
    return sorted(name for name in foreign if not name.startswith("ai.onnx::"))


def _spec(value: ValueInfoProto) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    if not value.type.HasField("tensor_type"):
        raise RequestError(
            f"{value.name!r}: not a tensor, got {value.type.WhichOneof('value')}; expected a graph of tensors"
        )
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(shape, tensor_dtype_to_np_dtype(tensor.elem_type).name)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield every node, including those inside If and Loop bodies."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g, *attribute.graphs]:
                yield from _nodes(body)
