"""Espalier's public API: the public names of all folders, each imported when it is first used.

`classify`, `command`, `deploy`, `detect`, `experiment` and `prune` are top-level packages, so a user's own `deploy.py`
can hide one of them: the first use of a name detects this, and the error names the file.
"""

from typing import TYPE_CHECKING, Any

from espalier.places import check_folders

if TYPE_CHECKING:
    from classify.backbones import Architecture, build_classifier
    from classify.checkpoint import ModelCard, load_classifier, read_card
    from classify.own_backbone import OwnBackbone
    from classify.pruning import prune_classifier
    from deploy.detector import Detector, Found
    from deploy.engine import engine_from_onnx
    from deploy.export import onnx_from_module
    from deploy.latency import measure
    from deploy.precision import quantized_onnx
    from deploy.record import Record, load_record, record_from_measurement, save_record, table_from_record
    from deploy.runtimes.registry import RUNTIMES, runner_for
    from deploy.tensors import random_inputs
    from deploy.triton.package import package_detector
    from detect.detector_file import load_detector, save_detector
    from detect.model import DetectorSettings, new_detector
    from detect.pruning import prune_detector
    from prune.choose.presets import PRESETS
    from prune.choose.recipe import Recipe
    from prune.cost import cost_of
    from prune.cut.spec import PruneSpec
    from prune.cut.surgery import slim_model
    from prune.pruning import Pruned, prune_model

__all__ = [
    "PRESETS",
    "RUNTIMES",
    "Architecture",
    "Detector",
    "DetectorSettings",
    "Found",
    "ModelCard",
    "OwnBackbone",
    "PruneSpec",
    "Pruned",
    "Recipe",
    "Record",
    "build_classifier",
    "cost_of",
    "engine_from_onnx",
    "load_classifier",
    "load_detector",
    "load_record",
    "measure",
    "new_detector",
    "onnx_from_module",
    "package_detector",
    "prune_classifier",
    "prune_detector",
    "prune_model",
    "quantized_onnx",
    "random_inputs",
    "read_card",
    "record_from_measurement",
    "runner_for",
    "save_detector",
    "save_record",
    "slim_model",
    "table_from_record",
]


def __getattr__(name: str) -> Any:
    check_folders()
    from command.lazy import lazy_names  # of a folder that is checked first

    return lazy_names(__name__, __file__)(name)
