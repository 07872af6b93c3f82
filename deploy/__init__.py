"""Deployed files: ONNX files and engines, written, run, timed and packaged.

Importing it, or `Detector` from it, loads neither torch nor mmdet.
"""

from typing import TYPE_CHECKING

from command.lazy import lazy_names

if TYPE_CHECKING:
    from deploy.deployment import open_deployment
    from deploy.detector import Detector, Found
    from deploy.engine import EngineInfo, engine_from_onnx, load_engine, read_engine_info
    from deploy.export import onnx_from_module
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
    from deploy.runtimes.module import ModuleRunner
    from deploy.runtimes.onnxruntime import OnnxRunner
    from deploy.runtimes.registry import RUNTIMES, runner_for
    from deploy.runtimes.runner import Runner
    from deploy.runtimes.tensorrt import EngineRunner
    from deploy.tensors import Arrays, TensorSpec, random_inputs
    from deploy.triton.package import package_detector

__all__ = [
    "RUNTIMES",
    "Arrays",
    "Detector",
    "EngineInfo",
    "EngineRunner",
    "Found",
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
    "open_deployment",
    "package_detector",
    "quantized_onnx",
    "random_inputs",
    "read_engine_info",
    "record_from_measurement",
    "rows_from_record",
    "runner_for",
    "save_record",
    "table_from_record",
]

__getattr__ = lazy_names(__name__, __file__)
