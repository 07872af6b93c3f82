"""Inputs, outputs, precision and operators of an ONNX file. Nothing is run here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from command.errors import RequestError
from command.files import existing_file
from deploy.classes import classes_in
from deploy.tensors import PRECISIONS, TensorSpec, checked_spec, with_shapes

if TYPE_CHECKING:
    from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, TensorProto, ValueInfoProto

__all__ = [
    "classes_of",
    "foreign_operators",
    "input_specs",
    "load_onnx",
    "onnx_from_bytes",
    "output_specs",
    "precision_of",
    "read_onnx",
    "weight_array",
    "with_input_shapes",
]

_REMEDY = "expected an ONNX file with fixed shapes, as espalier deploy export writes"


def load_onnx(path: str | Path) -> ModelProto:
    """Return the parsed file.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not a valid ONNX file, or has weights in another file, which is not opened.
    """
    return onnx_from_bytes(path, read_onnx(path))


def read_onnx(path: str | Path) -> bytes:
    """Return the content of a file that may be an ONNX file."""
    return existing_file(path, _REMEDY).read_bytes()


def onnx_from_bytes(path: str | Path, data: bytes) -> ModelProto:
    """Return `load_onnx` of a file's content; `path` begins the error messages."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

    try:
        model = onnx.load_model_from_string(data)
        for tensor in _tensors(model):
            _check_tensor(path, tensor)
        _check_structure(model)
    except (DecodeError, UnicodeDecodeError, onnx.checker.ValidationError) as error:
        raise RequestError(f"{path}: not an ONNX file, got {error}; {_REMEDY}") from error
    if not model.graph.output:
        raise RequestError(f"{path}: not an ONNX file, got a graph without outputs; {_REMEDY}")
    try:
        input_specs(model), output_specs(model)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from error
    return model


def _check_tensor(path: str | Path, tensor: TensorProto) -> None:
    if tensor.data_location == tensor.EXTERNAL:  # any file of this machine could be read so
        raise RequestError(
            f"{path}: has weights in another file, got {tensor.name!r}; expected all in one, as "
            f"onnx.save(onnx.load(FILE), NEW) writes it"
        )
    if tensor.data_type not in tensor.DataType.values():
        raise RequestError(f"{path}: weight {tensor.name!r} has an unknown type, got {tensor.data_type}; {_REMEDY}")


def _check_structure(model: ModelProto) -> None:
    """Raise onnx's ValidationError for a graph on which some runtimes crash, such as a node without its inputs."""
    import onnx

    types = [value.type.tensor_type for value in model.graph.output if value.type.HasField("tensor_type")]
    shapeless = [tensor for tensor in types if not tensor.HasField("shape")]  # which the checker refuses
    for tensor in shapeless:
        tensor.shape.SetInParent()
    onnx.checker.check_model(model)
    for tensor in shapeless:
        tensor.ClearField("shape")


def weight_array(path: str | Path, tensor: TensorProto) -> npt.NDArray[np.generic]:
    """Return a weight; raise RequestError if its bytes do not fit its shape and type."""
    from onnx import numpy_helper

    try:
        return numpy_helper.to_array(tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{path}: weight {tensor.name!r} is damaged, got {error}; export it again") from error


def input_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Return the inputs without weights, in the file's order (old files list their weights as inputs too)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return {value.name: _spec(value) for value in model.graph.input if value.name not in weights}


def output_specs(model: ModelProto) -> dict[str, TensorSpec]:
    """Return the outputs, in the file's order."""
    return {value.name: _spec(value) for value in model.graph.output}


def with_input_shapes(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Return a copy of a model whose inputs have these sizes in place of free dimensions.

    Raises:
        RequestError: If there is no such input, or a size is fixed to another number.
    """
    specs = with_shapes(input_specs(model), shapes)
    fixed = type(model)()
    fixed.CopyFrom(model)
    for value in fixed.graph.input:
        if value.name in shapes:
            for dim, size in zip(value.type.tensor_type.shape.dim, specs[value.name].shape, strict=True):
                dim.dim_value = size
    return fixed


def classes_of(path: str | Path, model: ModelProto) -> tuple[str, ...] | None:
    """Return the class names that `espalier deploy export` wrote into the file, see `deploy.classes`."""
    return classes_in(path, {entry.key: entry.value for entry in model.metadata_props})


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
    foreign = {f"{node.domain}::{node.op_type}" for graph in _graphs(model) for node in graph.node if node.domain}
    return sorted(name for name in foreign if not name.startswith("ai.onnx::"))


def _spec(value: ValueInfoProto) -> TensorSpec:
    from onnx.helper import tensor_dtype_to_np_dtype

    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "no type"
        raise RequestError(f"{value.name!r}: not a tensor, got {kind}; expected a graph of tensors")
    tensor = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    try:
        dtype = tensor_dtype_to_np_dtype(tensor.elem_type).name
    except (KeyError, TypeError):
        dtype = f"type {tensor.elem_type}"
    return checked_spec(value.name, shape, dtype)


def _graphs(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Yield the graph, all functions, and the bodies of If and Loop inside them."""
    waiting: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for attribute in _attributes(graph):
            waiting += [attribute.g] * attribute.HasField("g") + [*attribute.graphs]


def _attributes(graph: GraphProto | FunctionProto) -> Iterator[AttributeProto]:
    for node in graph.node:
        yield from node.attribute


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Yield all weights and constants."""
    for graph in _graphs(model):
        sparse = [*getattr(graph, "sparse_initializer", ())]  # functions have none
        yield from getattr(graph, "initializer", ())
        for attribute in _attributes(graph):
            yield from (attribute.t, *attribute.tensors)
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for tensor in sparse:
            yield from (tensor.values, tensor.indices)
