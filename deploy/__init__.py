"""Modules to ONNX files to engines, and what they cost in time: deploy knows clocks.

Knows nothing of pruning, images or boxes. Importing it loads neither torch nor a TensorRT.
"""

from deploy.engine import EngineInfo, engine_from_onnx, load_engine, read_engine_info
from deploy.export import onnx_from_module
from deploy.graph import Arrays, TensorSpec, random_inputs
from deploy.latency import Latency, Measurement, Speedup, Transfers, measure
from deploy.precision import quantized_onnx
from deploy.record import (
    Record,
    load_record,
    record_from_measurement,
    rows_from_record,
    save_record,
    table_from_record,
)
from deploy.runtime import EngineRunner, ModuleRunner, OnnxRunner, Runner
from deploy.runtimes import runner_for

__all__ = [
    "Arrays",
    "EngineInfo",
    "EngineRunner",
    "Latency",
    "Measurement",
    "ModuleRunner",
    "OnnxRunner",
    "Record",
    "Runner",
    "Speedup",
    "TensorSpec",
    "Transfers",
    "engine_from_onnx",
    "load_engine",
    "load_record",
    "measure",
    "onnx_from_module",
    "quantized_onnx",
    "random_inputs",
    "read_engine_info",
    "record_from_measurement",
    "rows_from_record",
    "runner_for",
    "save_record",
    "table_from_record",
]
