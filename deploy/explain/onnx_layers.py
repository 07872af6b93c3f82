"""The convolutions and matrix products with weights in an ONNX file: channels, MACs, bytes, and their nodes.

MACs are counted as in the whole project: multiply-adds of these layers, without biases; here for the whole batch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from command.errors import RequestError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

__all__ = ["LAYOUT", "OnnxGraph", "OnnxLayer"]

LAYOUT = ("ReorderInput", "ReorderOutput", "Transpose", "Reformat")
"""Operators with which a runtime reorders channels, if they have no source in the file."""

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_LAYERS = (*_CONVOLUTIONS, "Gemm", "MatMul")
_AROUND_WEIGHTS = ("DequantizeLinear", "Cast", "Transpose", "Identity")
_ADDED = re.compile(r"^InsertedPrecisionFreeCast_|(_nchwc)?(_token_\d+)?$")  # added to names by ONNX Runtime
_SPAN = "..."


@dataclass(frozen=True)
class OnnxLayer:
    """One weight and the work done with it in a run of the file."""

    name: str
    """Name of the module: that of its weight up to ".weight"."""
    operator: str
    kernel: tuple[int, ...]
    """Empty for a matrix product."""
    groups: int
    channels_in: int
    channels_out: int
    macs: int
    params: int
    activations: int
    """Elements of the outputs."""
    bytes: int
    """Input, output, weights and bias, each moved once per call in the precision of the weights."""
    weight_bytes: int
    """Those of weights and bias among them."""
    nodes: tuple[str, ...]
    """Names of the nodes that compute it; several if a head is shared."""


class OnnxGraph:
    """The nodes of a file by name, the producer of each tensor, and the layers.

    Args:
        model: A model with fixed shapes.
        is_partial: Whether to leave out layers with a free dimension; `unsized` has their nodes.

    Raises:
        RequestError: If shapes do not fit, or a layer has a free dimension or one of 0.
    """

    def __init__(self, model: ModelProto, *, is_partial: bool = False) -> None:
        import onnx

        try:
            inferred = onnx.shape_inference.infer_shapes(model)
        except onnx.shape_inference.InferenceError as error:
            raise RequestError(f"graph: its shapes do not fit, got {error}; export it again") from error
        self._shapes = {value.name: _shape(value) for value in _values(inferred)}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        # a node without a name gets the same name as in ONNX Runtime
        named = ((node.name or f"{node.op_type}_{index}", node) for index, node in enumerate(model.graph.node))
        self.nodes: dict[str, NodeProto] = dict(named)
        self.producers = {tensor: name for name, node in self.nodes.items() for tensor in node.output}
        self.layers: dict[str, OnnxLayer] = {}
        self.unsized: list[str] = []
        for name, node in self.nodes.items():
            if node.op_type in _LAYERS and (weight := self._weight(node)):
                if is_partial and not self._is_sized(node):
                    self.unsized.append(name)
                else:
                    self._add(self._layer(name, node, weight))

    def sources(self, name: str, operator: str) -> tuple[str, ...]:
        """Return the nodes of the file that a node of a runtime computes; none if the runtime inserted it.

        Args:
            name: Name in the runtime. ONNX Runtime takes the name of one of the nodes it fused, or of one of their
                outputs; TensorRT joins the names.
            operator: Operator in the runtime; empty if unknown.
        """
        name, before_fusion = _ADDED.sub("", name), name.rpartition("/")[0]
        for whole in (name, before_fusion):
            if whole in self.nodes:
                return (whole,)
        if operator in LAYOUT:
            return ()
        if name in self.producers:
            return (self._computed(name, operator),)
        parts = [part for part in re.split(r"[\s,()\[\]{}]+|\.{3}", name) if part in self.nodes]
        return self._between(parts[0], parts[-1]) if _SPAN in name and parts else tuple(dict.fromkeys(parts))

    def _between(self, first: str, last: str) -> tuple[str, ...]:
        names = list(self.nodes)
        return tuple(names[names.index(first) : names.index(last) + 1])

    def _computed(self, tensor: str, operator: str) -> str:
        """Return the node of this operator that was fused with those up to the tensor, or else the last of them."""
        last = name = self.producers[tensor]
        while self.nodes[name].op_type != operator:
            tensor = self.nodes[name].input[0] if self.nodes[name].input else ""
            if tensor not in self.producers:
                return last
            name = self.producers[tensor]
        return name

    def _add(self, layer: OnnxLayer) -> None:
        known = self.layers.get(layer.name)
        self.layers[layer.name] = layer if known is None else _joined(known, layer)

    def _weight(self, node: NodeProto) -> TensorProto | None:
        name = node.input[1]
        while name in self.producers and self.nodes[self.producers[name]].op_type in _AROUND_WEIGHTS:
            name = self.nodes[self.producers[name]].input[0]
        return self._weights.get(name)

    def _layer(self, name: str, node: NodeProto, weight: TensorProto) -> OnnxLayer:
        from onnx.helper import tensor_dtype_to_np_dtype

        read, written = (self._elements(name, tensor) for tensor in (node.input[0], node.output[0]))
        num_weights, groups = math.prod(weight.dims), _groups(node)
        channels = _channels(node.op_type, weight.dims, groups, self._shapes[node.output[0]])
        # the weights that one output reads; in a transposed convolution those that one input feeds
        rows = weight.dims[0] if node.op_type in _CONVOLUTIONS else channels[1]
        bias = self._weights.get(node.input[2]) if len(node.input) > 2 else None
        params = num_weights + (math.prod(bias.dims) if bias else 0)
        itemsize = tensor_dtype_to_np_dtype(weight.data_type).itemsize
        return OnnxLayer(
            name=re.split(r"\.weight", weight.name)[0],
            operator=node.op_type,
            kernel=tuple(weight.dims[2:]) if node.op_type in _CONVOLUTIONS else (),
            groups=groups,
            channels_in=channels[0],
            channels_out=channels[1],
            macs=(read if node.op_type == "ConvTranspose" else written) * (num_weights // rows),
            params=params,
            activations=written,
            bytes=itemsize * (read + written + params),
            weight_bytes=itemsize * params,
            nodes=(name,),
        )

    def _is_sized(self, node: NodeProto) -> bool:
        return all(None not in self._shapes.get(tensor, (None,)) for tensor in (node.input[0], node.output[0]))

    def _elements(self, node: str, tensor: str) -> int:
        sizes = self._shapes.get(tensor, (None,))
        if 0 in sizes:
            raise RequestError(f"node {node!r}: computes nothing, got {sizes}; expected sizes of at least 1")
        fixed = [size for size in sizes if size is not None]
        if len(fixed) < len(sizes):
            raise RequestError(f"node {node!r}: has a free dimension, got {sizes}; export it with fixed sizes")
        return math.prod(fixed)


def _values(model: ModelProto) -> Iterator[ValueInfoProto]:
    yield from (*model.graph.input, *model.graph.value_info, *model.graph.output)


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)


def _groups(node: NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)


def _channels(
    operator: str, weight_shape: Sequence[int], groups: int, output_shape: Sequence[int | None]
) -> tuple[int, int]:
    if operator not in _CONVOLUTIONS:
        num_out = (output_shape or (1,))[-1] or 1
        return math.prod(weight_shape) // num_out, num_out
    rows, columns = weight_shape[0], weight_shape[1] * groups
    return (columns, rows) if operator == "Conv" else (rows, columns)


def _joined(layer: OnnxLayer, again: OnnxLayer) -> OnnxLayer:
    """Return the sum of two computations of a layer."""
    return replace(
        layer,
        macs=layer.macs + again.macs,
        activations=layer.activations + again.activations,
        bytes=layer.bytes + again.bytes,
        weight_bytes=layer.weight_bytes + again.weight_bytes,
        nodes=(*layer.nodes, *again.nodes),
    )
