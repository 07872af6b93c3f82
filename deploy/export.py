"""Modules to ONNX files of standard operators only, checked against the module's outputs.

The precision is that of the module; engines are built in engine.py.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from command.errors import RequestError, WorkError
from command.files import written_atomically
from deploy.onnx_file import foreign_operators
from deploy.runtimes.module import ModuleRunner
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.tensors import Arrays

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor, nn

__all__ = ["OPSET", "onnx_from_module"]

OPSET = 18
"""The one that torch's exporter writes; it converts to any other."""
# protobuf's limit for one message
MAX_FILE_BYTES = 2 * 1024**3


def onnx_from_module(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    path: str | Path,
    output_names: Sequence[str],
    *,
    tolerance: float | None = 1e-4,
    opset: int = OPSET,
    reference: nn.Module | None = None,
) -> dict[str, float]:
    """Write the module as one ONNX file and return the largest difference of each output from the module's.

    Args:
        module: Returns a tensor or a sequence of tensors. Exported in eval mode; its mode is restored.
        inputs: Example tensors by input name, in the order of the module's arguments. Their shapes become the file's
            only shapes, and the file is checked on their values: use random ones, not zeros. A detector that finds
            nothing in them returns empty outputs, which check nothing.
        path: File to write; nothing is left there if anything fails.
        output_names: One name for each tensor the module returns.
        tolerance: Largest difference allowed, in units of max(1, largest absolute value of that output), so that it
            fits pixels and probabilities alike. Integer and boolean outputs must be equal. None compares nothing and
            only runs onnx's checker on the file: for graphs that no CPU runs, and for modules that choose between
            nearly equal values, whose outputs the caller must compare.
        opset: ONNX operator set. The file has the lowest IR version that goes with it.
        reference: Module in eval mode to compare with instead: the fp32 version of a half-precision module.

    Raises:
        RequestError: If names and tensors do not match, or the weights do not fit in one file.
        WorkError: If the module cannot be exported, needs an operator outside the ONNX standard, or an
            output of ONNX Runtime differs from the module's.
    """
    _check_size(module)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
    with _evaluating(module):
        runner = ModuleRunner(reference or module, output_names, device=str(next(iter(inputs.values())).device))
        expected = {} if tolerance is None else runner.run(arrays)
        model = _exported(module, inputs, output_names, opset)
    if foreign := foreign_operators(model):
        raise WorkError(
            f"{path}: has operators outside the ONNX standard, got {', '.join(foreign)}; rewrite them with "
            f"plain tensor operations"
        )
    with written_atomically(path) as beside:
        beside.write_bytes(model.SerializeToString())
        if tolerance is None:
            return _checked_by_onnx(path, beside)
        try:
            found = OnnxRunner(beside).run(arrays)
        except RequestError as error:  # of a file that was just written: nobody's request
            raise WorkError(f"{path}: ONNX Runtime does not run the exported file, {error}") from error
        return _checked_differences(path, expected, found, tolerance)


def _check_size(module: nn.Module) -> None:
    num_bytes = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    if num_bytes >= MAX_FILE_BYTES:
        raise RequestError(
            f"{type(module).__name__}: too large for one ONNX file, got {num_bytes / 1024**3:.1f} GiB of weights; "
            f"expected under 2 GiB, export in half precision"
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Hold the module in eval mode; restore each submodule's own mode, which train() would not."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _exported(module: nn.Module, inputs: Mapping[str, Tensor], output_names: Sequence[str], opset: int) -> ModelProto:
    import torch
    from onnx.helper import find_min_ir_version_for

    with _silence(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=list(output_names),
                opset_version=opset,
                dynamo=True,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise WorkError(
                f"{type(module).__name__}: cannot be exported to ONNX, got {reason}; "
                f"expected a forward of tensors with fixed shapes"
            ) from error
    assert program is not None, "torch.onnx.export with dynamo=True returns a program"
    model = _without_metadata(program.model_proto)
    # older runtimes refuse a newer version unread
    model.ir_version = find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Hide the exporter's messages about its own operators, which users can do nothing about."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _without_metadata(model: ModelProto) -> ModelProto:
    """Drop the stack traces that torch writes on every node: they contain paths of this machine."""
    graph = model.graph
    for part in [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def _checked_by_onnx(path: str | Path, written: Path) -> dict[str, float]:
    import onnx

    try:
        onnx.checker.check_model(str(written), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkError(f"{path}: invalid graph, got {reason}; expected one that onnx's checker accepts") from error
    return {}


def _checked_differences(path: str | Path, expected: Arrays, actual: Arrays, tolerance: float) -> dict[str, float]:
    differences = {name: _largest_difference(actual[name], expected[name]) for name in expected}
    for name, difference in differences.items():
        is_exact = not np.issubdtype(expected[name].dtype, np.floating)
        limit = 0.0 if is_exact and np.isfinite(tolerance) else tolerance * max(1.0, _largest(expected[name]))
        if not difference <= limit:  # so written that NaN fails
            raise WorkError(
                f"{path}: output {name!r} of ONNX Runtime differs from the module's, got {difference:.3g}; "
                f"expected at most {limit:.3g}, raise `tolerance` only if the difference is harmless"
            )
    return differences


def _largest(array: npt.NDArray[np.generic]) -> float:
    """Return the largest finite absolute value, or 0."""
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))


def _largest_difference(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> float:
    is_equal = actual == expected  # infinities of one sign are equal, yet their difference is NaN
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.subtract(actual, expected, dtype=np.float64))
    return float(np.max(np.where(is_equal, 0.0, difference), initial=0.0))
