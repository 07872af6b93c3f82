"""The limits of the machine, measured with the runtime in question: MACs per second and bytes per second.

Source: Williams, Waterman and Patterson, Roofline: An Insightful Visual Performance Model, CACM 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from deploy.engine import engine_from_onnx
from deploy.latency import measure
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.tensorrt import EngineRunner
from deploy.tensors import Arrays

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Roofline", "measure_roofline"]

_ROUNDS, _WARMUP = 7, 2


@dataclass(frozen=True)
class Roofline:
    """The limits of a machine, as one runtime reaches them."""

    macs_per_s: float
    """Rate of a product of two square matrices."""
    bytes_per_s: float
    """Rate of an elementwise operator, reading and writing more data than the caches hold."""
    matrix_side: int
    precision: str
    """Precision of the matrices: "fp32" or "fp16"."""

    @property
    def macs_per_byte(self) -> float:
        """The machine's balance: operators with fewer MACs per byte are limited by memory."""
        return self.macs_per_s / self.bytes_per_s


def measure_roofline(runner: OnnxRunner | EngineRunner) -> Roofline:
    """Measure the limits on the device, with the runtime and threads of this runner; takes about a second.

    On a GPU in fp16, unless the runner's precision is fp32 or tf32; int8 can exceed it. On a CPU always in fp32.
    """
    is_gpu = runner.device != "cpu"
    precision = "fp16" if is_gpu and runner.precision not in ("fp32", "tf32") else "fp32"
    dtype = np.float16 if precision == "fp16" else np.float32
    side, num_elements = (8192, 2**27) if is_gpu else (1024, 2**24)
    rng = np.random.default_rng(0)
    product = {name: rng.standard_normal((side, side), np.float32).astype(dtype) for name in ("a", "b")}
    copied = {"a": rng.standard_normal((num_elements,), np.float32).astype(dtype)}
    product_ms = _fastest_ms(runner, "MatMul", product)
    copied_ms = _fastest_ms(runner, "Neg", copied)
    return Roofline(
        macs_per_s=side**3 / product_ms * 1000,
        bytes_per_s=2 * copied["a"].nbytes / copied_ms * 1000,
        matrix_side=side,
        precision=precision,
    )


def _fastest_ms(runner: OnnxRunner | EngineRunner, operator: str, inputs: Arrays) -> float:
    with TemporaryDirectory(prefix="espalier-") as folder:
        path = Path(folder) / "one.onnx"
        path.write_bytes(_one_node(operator, inputs).SerializeToString())
        measured = measure({operator: _like(runner, path)}, inputs, warmup=_WARMUP, rounds=_ROUNDS)
    return measured.latencies[operator].min_ms


def _like(runner: OnnxRunner | EngineRunner, path: Path) -> OnnxRunner | EngineRunner:
    if isinstance(runner, OnnxRunner):
        return OnnxRunner(path, num_threads=runner.num_threads or 1)
    engine = path.with_suffix(".engine")
    engine_from_onnx(path, engine, backend=runner.runtime, tf32=runner.precision == "tf32")
    return EngineRunner(engine)


def _one_node(operator: str, inputs: Arrays) -> ModelProto:
    from onnx import helper

    like = next(iter(inputs.values()))
    types = helper.np_dtype_to_tensor_dtype(like.dtype)
    given = [helper.make_tensor_value_info(name, types, array.shape) for name, array in inputs.items()]
    made = helper.make_tensor_value_info("y", types, like.shape)
    graph = helper.make_graph([helper.make_node(operator, list(inputs), ["y"])], operator, given, [made])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
