"""ONNX files in OpenVINO on the CPU."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from command.errors import RequestError, WorkError
from command.extras import optional_module
from deploy.onnx_file import classes_of, input_specs, onnx_from_bytes, output_specs, read_onnx
from deploy.runtimes.timed_step import Step
from deploy.tensors import Arrays, check_inputs

__all__ = ["OpenVinoRunner"]

PRECISIONS = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "u8": "int8",
    "i8": "int8",
}
"""OpenVINO's names of a layer's precision and of a hint -> ours."""
HEAVY_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")


class OpenVinoRunner:
    """Runs an ONNX file with OpenVINO on the CPU.

    `precision` is that of most convolutions and matrix products as they run: a CPU without bf16 instructions computes
    in fp32 whatever the hint. `num_threads` is what OpenVINO uses, at most the number of cores.

    Args:
        path: The ONNX file.
        num_threads: Threads inside one operator. With more threads than idle cores, times vary a lot.
        precision_hint: Either "f32" or "bf16": the precision of fp32 layers, if the CPU supports it.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is not an ONNX file, or OpenVINO cannot load it or is not installed.
    """

    runtime = "openvino"
    device = "cpu"

    def __init__(self, path: str | Path, *, num_threads: int = 1, precision_hint: str = "f32") -> None:
        data = read_onnx(path)
        model = onnx_from_bytes(path, data)
        self._openvino = optional_module("openvino", f"running {path} needs")
        self.inputs, self.outputs = input_specs(model), output_specs(model)
        self.classes = classes_of(path, model)
        self.file = Path(path)
        self.file_sha256: str | None = hashlib.sha256(data).hexdigest()
        compiled = _compiled(self._openvino, path, data, num_threads, precision_hint)
        self.num_threads: int | None = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        self.precision = _precision(compiled)
        self._request = compiled.create_infer_request()

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs; wrong names, shapes or dtypes raise RequestError."""
        self.prepare(inputs)()
        return {name: self._request.get_tensor(name).data.copy() for name in self.outputs}

    def prepare(self, inputs: Arrays) -> Step:
        """Return a step that runs the network; wrong names, shapes or dtypes raise RequestError."""
        check_inputs(str(self.file), self.inputs, inputs)

        def place() -> None:
            for name, array in inputs.items():
                self._request.set_tensor(name, self._openvino.Tensor(np.asarray(array, order="C")))

        self._reporting(place)()
        return self._reporting(lambda: self._request.infer(share_outputs=True))

    def _reporting(self, run: Callable[[], object]) -> Step:
        """Return `run` with OpenVINO's exceptions turned into one-line WorkErrors."""

        def step() -> None:
            try:
                run()
            except RuntimeError as error:
                reason = f"{self.file}: OpenVINO cannot run it, got {_reason(error)}; change the graph"
                raise WorkError(reason) from error

        return step


def _compiled(openvino: Any, path: str | Path, data: bytes, num_threads: int, precision_hint: str) -> Any:
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": num_threads,
        "ENABLE_CPU_PINNING": False,  # as in the other runtimes: a pinned thread would wait for a busy core
        "INFERENCE_PRECISION_HINT": precision_hint,
    }
    try:
        core = openvino.Core()
        return core.compile_model(core.read_model(data), "CPU", config)
    except RuntimeError as error:
        raise RequestError(
            f"{path}: OpenVINO cannot load it, got {_reason(error)}; expected standard operators only"
        ) from error


def _reason(error: RuntimeError) -> str:
    lines = str(error).strip().splitlines()  # most of them name places in OpenVINO's sources
    summary = [line for line in lines if line.startswith("-- ")]
    return (summary or lines)[-1].lstrip("- ")


def _precision(compiled: Any) -> str:
    num_layers: Counter[str] = Counter()
    for layer in compiled.get_runtime_model().get_ops():
        info = layer.get_rt_info()
        if "layerType" in info and info["layerType"].astype(str) in HEAVY_LAYERS:
            num_layers[info["runtimePrecision"].astype(str)] += 1
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    found = num_layers.most_common(1)[0][0] if num_layers else hint
    return PRECISIONS.get(found, found)
