"""Quantizes the convolutions of an ONNX file to int8.

int8 is written into the graph as QuantizeLinear and DequantizeLinear nodes, the only form that TensorRT 11 accepts.
Calibration and nodes are ONNX Runtime's; half precision is set when a module is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from command.errors import RequestError, WorkError
from command.files import written_atomically
from deploy.onnx_file import foreign_operators, input_specs, load_onnx, weight_array
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.tensors import Arrays, check_inputs

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["KEEP_FLOAT", "METHODS", "quantized_onnx"]

_RUNTIMES = ("any", "onnxruntime", "openvino")
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""Ways to choose the range of an activation, and ONNX Runtime's names for them."""
KEEP_FLOAT = ("*rpn_cls*", "*rpn_reg*")
"""The convolutions that score and place proposals: few operations, and their errors move boxes."""


def quantized_onnx(
    source: str | Path,
    target: str | Path,
    batches: Iterable[Mapping[str, npt.NDArray[np.generic]]],
    *,
    runtime: str = "any",
    method: str = "minmax",
    keep_float: Sequence[str] = KEEP_FLOAT,
) -> list[str]:
    """Write a file whose convolutions compute in int8, and return the names of these nodes.

    Weights are int8, symmetric, with a scale for each output channel. Everything else stays fp32, but reads the rounded
    values if it shares its input with a quantized convolution. Depending on the runtime:

    - "any", which TensorRT builds: activations int8 with zero point 0, only at the inputs of convolutions; biases
      float32. ONNX Runtime runs it too, slower than fp32, to check an engine's detections.
    - "onnxruntime" and "openvino", on a CPU: activations uint8 with a zero point, at the outputs too, with a following
      ReLU merged into the range; biases int32, which TensorRT does not support. Weights have 7 bits: a CPU without VNNI
      adds pairs of products in 16 bits.

    Args:
        source: An fp32 file, as onnx_from_module writes it.
        target: File to write; nothing is left there if anything fails.
        batches: Inputs by name, from which the ranges of activations are measured; all are held in memory. Use images
            of the kind the detector will run on, not random ones.
        runtime: The runtime that the file is for.
        method: "minmax" takes the whole measured range, "percentile" leaves out its outermost 0.001 %, "entropy" takes
            the range that distorts the distribution least.
        keep_float: Patterns, as for file names, of node or weight names whose convolutions stay float.

    Raises:
        MissingFileError: If there is no such source.
        RequestError: If the source is not an ONNX file, or weights, inputs or an argument do not fit.
        WorkError: If the quantized file returns NaN, or needs an operator outside the ONNX standard.
    """
    _require_known("runtime", runtime, _RUNTIMES)
    _require_known("method", method, METHODS)
    model = _with_named_nodes(load_onnx(source))
    names = _quantizable(source, model, keep_float)
    _check_weights(source, model, names)
    checked = _checked_batches(source, model, batches)
    with written_atomically(target) as beside:
        _write_quantized(model, beside, checked, names, runtime, method)
        _check_result(target, beside, checked[0])
    return names


def _require_known(subject: str, got: str, known: Iterable[str]) -> None:
    if got not in known:
        raise RequestError(f"{subject}: unknown, got {got!r}; expected one of {', '.join(known)}")


def _with_named_nodes(model: ModelProto) -> ModelProto:
    """Name the nodes that have no name: nodes are selected by name."""
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def _quantizable(source: str | Path, model: ModelProto, keep_float: Sequence[str]) -> list[str]:
    """Return the names of the convolutions with constant float32 weights that match no pattern."""
    from onnx import TensorProto

    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in floats]
    for pattern in keep_float:
        if pattern not in KEEP_FLOAT and not any(_matches(node, [pattern]) for node in convolutions):
            raise RequestError(
                f"keep_float: matches no convolution of {source}, got {pattern!r}; expected a pattern of node or "
                f"weight names, such as '*{convolutions[0].input[1] if convolutions else 'conv1'}'"
            )
    names = [node.name for node in convolutions if not _matches(node, keep_float)]
    if not names:
        raise RequestError(
            f"{source}: nothing to quantize, got {len(convolutions)} convolutions with constant float32 weights, "
            f"all of them kept; expected an fp32 file with at least one that keep_float does not match"
        )
    return names


def _matches(node: NodeProto, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in (node.name, *node.input[1:]) for pattern in patterns)


def _check_weights(source: str | Path, model: ModelProto, names: Sequence[str]) -> None:
    """Refuse NaN in any weight, and infinity in those to be quantized; elsewhere infinity can be intended."""
    finite = {name for node in model.graph.node if node.name in names for name in node.input[1:]}
    for tensor in model.graph.initializer:
        array = weight_array(source, tensor)
        if _has_nan(array) or (tensor.name in finite and not np.isfinite(array).all()):
            raise RequestError(
                f"{source}: weight {tensor.name!r} is not finite, got NaN or infinity; expected numbers, train again"
            )


def _has_nan(array: npt.NDArray[np.generic]) -> bool:
    return array.dtype.kind == "f" and bool(np.isnan(array).any())


def _checked_batches(
    source: str | Path, model: ModelProto, batches: Iterable[Mapping[str, npt.NDArray[np.generic]]]
) -> list[Arrays]:
    checked, specs = [dict(batch) for batch in batches], input_specs(model)
    if not checked:
        raise RequestError(f"batches: no calibration data, got none; expected inputs {', '.join(specs)} for {source}")
    for index, batch in enumerate(checked):
        check_inputs(f"calibration batch {index}", specs, batch)
        for name, array in batch.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise RequestError(
                    f"calibration batch {index}: input {name!r} is not finite, got NaN or infinity; expected numbers"
                )
    return checked


def _write_quantized(
    model: ModelProto, path: Path, batches: Sequence[Arrays], names: Sequence[str], runtime: str, method: str
) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    rectifiers = _rectifiers(model, names) if runtime != "any" else []
    add_pre_process_metadata(model)  # else it logs advice to optimize the graph, which is already optimized
    # ONNX Runtime writes files beside its input, and prints for its histograms
    with TemporaryDirectory(prefix="espalier-") as folder, redirect_stdout(StringIO()):
        onnx.save(model, Path(folder) / "source.onnx")
        quantize_static(
            Path(folder) / "source.onnx",
            Path(folder) / "target.onnx",
            _reader(batches),
            op_types_to_quantize=["Conv", "Relu"] if rectifiers else ["Conv"],
            nodes_to_quantize=[*names, *rectifiers],
            per_channel=True,
            reduce_range=runtime != "any",
            activation_type=QuantType.QUInt8 if runtime != "any" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[METHODS[method]],
            extra_options=_options(runtime),
        )
        path.write_bytes(_without_marks(onnx.load(Path(folder) / "target.onnx")))


def _options(runtime: str) -> dict[str, Any]:
    is_tensorrt = runtime == "any"
    return {
        "ActivationSymmetric": is_tensorrt,
        "CalibTensorRangeSymmetric": False,  # percentile's default, which can lose a later batch's largest value
        "CalibStridedMinMax": 1,  # one batch at a time, whatever the method: its activations fill the memory
        "OpTypesToExcludeOutputQuantization": ["Conv"] if is_tensorrt else [],
        "QuantizeBias": not is_tensorrt,
    }


def _rectifiers(model: ModelProto, names: Sequence[str]) -> list[str]:
    """Return the ReLUs that read a quantized convolution: a range from 0 replaces them."""
    outputs = {node.output[0] for node in model.graph.node if node.name in names}
    return [node.name for node in model.graph.node if node.op_type == "Relu" and node.input[0] in outputs]


def _reader(batches: Sequence[Arrays]) -> Any:
    """Return the batches as ONNX Runtime's calibration reads them, range by range."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        rest: Iterator[Arrays] = iter(batches)

        def __len__(self) -> int:
            return len(batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.rest = iter(batches[start_index:end_index])

        def get_next(self) -> Arrays | None:
            return next(self.rest, None)

    return Reader()


def _without_marks(model: ModelProto) -> bytes:
    """Return the file without the metadata that ONNX Runtime's quantizer adds."""
    props = [prop for prop in model.metadata_props if not prop.key.startswith("onnx.")]
    del model.metadata_props[:]
    model.metadata_props.extend(props)
    return model.SerializeToString()


def _check_result(target: str | Path, written: Path, batch: Arrays) -> None:
    if foreign := foreign_operators(load_onnx(written)):
        raise WorkError(f"{target}: has operators outside the ONNX standard, got {', '.join(foreign)}; keep them float")
    for name, array in OnnxRunner(written).run(batch).items():
        if _has_nan(array):
            raise WorkError(
                f"{target}: output {name!r} is not finite, got NaN after quantization; check the fp32 file's outputs"
            )
