"""Detectors that are not ours: a config of mmdet and the checkpoint that was trained with it."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, Preprocessing, load_weights, read_weights
from command.errors import MissingFileError, RequestError
from detect.fixed_shape import check_parts
from detect.model import DetectorSettings, build_detector
from detect.openmmlab import DetDataPreprocessor, RoIAlign

__all__ = ["load_foreign"]


class _Log:
    """Takes the place of mmengine's HistoryBuffer, which would make what it reads the methods of all of its kind."""


_NUMPY = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
_LOGS: list[Any] = [
    *(np.ndarray, np.dtype, type(np.dtype("float64")), type(np.dtype("int64"))),
    *((made, f"numpy.{core}.multiarray.{name}") for name, made in _NUMPY.items() for core in ("core", "_core")),
    (_Log, "mmengine.logging.history_buffer.HistoryBuffer"),
    (lambda owner, name: name, "builtins.getattr"),  # by which a log names its methods; nothing is looked up here
]
"""What the logs of training in mmengine's checkpoints are made of, which torch would refuse: numbers alone."""

_SCALING = ("Resize", "FixScaleResize", "MultiScaleFlipAug")
"""The steps of a pipeline that scale pictures, in mmdet 3 and 2."""


def load_foreign(config: Path, checkpoint: Path) -> tuple[nn.Module, ModelCard]:
    """Return mmdet's detector in eval mode, and a card with its classes and its preprocessing.

    `image_size_hw` is the scale of the config's test pipeline, lying and rounded up to what the detector divides by;
    `DetectorSettings`' default where there is none. `keep_ratio` is False where that pipeline stretches pictures to
    the scale, which nothing here does. RoIAlign and nms are torchvision's, whose results are mmcv's.

    Args:
        config: Of mmdet. It is Python and is run, as mmdet runs it.
        checkpoint: PyTorch file of weights by name, alone or as `state_dict`. Nothing in it is executed.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If no detector can be built from the config, FixedShapeDetector does not carry one of its parts,
            or the checkpoint does not fit it or would execute code.
    """
    detector, settings = _built(config)
    check_parts(detector)
    _check_normalises(config, detector.data_preprocessor)
    preprocessing = _preprocessing(settings, detector)
    with torch.serialization.safe_globals(_LOGS):
        weights = read_weights(checkpoint)
        meta = _meta(checkpoint)
    load_weights(detector, weights, str(checkpoint))
    for layer in detector.modules():
        if isinstance(layer, RoIAlign):
            layer.use_torchvision = True
    classes = _class_names(checkpoint, meta, detector.roi_head.bbox_head.num_classes)
    return detector.eval(), ModelCard("detector", Architecture("", len(classes)), classes, preprocessing)


def _built(config: Path) -> tuple[Any, Config]:
    if not config.is_file():
        raise MissingFileError(f"{config}: no such file; expected a config of mmdet")
    try:
        settings = Config.fromfile(config)
        return revert_sync_batchnorm(build_detector(_without_pretrained(settings.model))), settings
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{config}: no detector comes of it, got {reason}; expected a config of mmdet") from error


def _without_pretrained(part: Any) -> Any:
    """Return a config without the weights to start training from: they would be fetched, then replaced."""
    if isinstance(part, Mapping):
        kept = {key: value for key, value in part.items() if key != "pretrained" and not _is_pretrained(key, value)}
        return {key: _without_pretrained(value) for key, value in kept.items()}
    return [_without_pretrained(value) for value in part] if isinstance(part, list) else part


def _is_pretrained(key: str, value: Any) -> bool:
    return key == "init_cfg" and isinstance(value, Mapping) and value.get("type") == "Pretrained"


def _check_normalises(config: Path, preprocessor: nn.Module) -> None:
    if not isinstance(preprocessor, DetDataPreprocessor):
        raise RequestError(
            f"{config}: its model does not normalise, got {type(preprocessor).__name__}; expected data_preprocessor="
            f"dict(type='DetDataPreprocessor', ...), with the mean and std that mmdet 2 had in its pipeline"
        )


def _preprocessing(settings: Config, detector: Any) -> Preprocessing:
    places = settings.get("test_dataloader"), settings.get("data", {}).get("test"), settings.get("test_pipeline")
    told: dict[str, Any] = next(filter(None, map(_scaling, places)), {})
    scale = told.get("scale", told.get("img_scale"))
    if scale is None:
        return Preprocessing(DetectorSettings.image_size_hw)
    step = max(detector.data_preprocessor.pad_size_divisor, *detector.roi_head.bbox_roi_extractor.featmap_strides)
    sides = np.resize(scale, 2).tolist()  # one number is both; of several pairs the first counts
    keep_ratio = told.get("keep_ratio", "img_scale" in told)  # the defaults of mmdet 3 and 2
    height, width = (math.ceil(side / step) * step for side in sorted(sides))
    return Preprocessing((height, width), keep_ratio=keep_ratio)


def _scaling(part: Any) -> dict[str, Any]:
    """Return what the scaling steps in a part of a config say; mmdet 2 has them one inside the other."""
    return {key: value for step in _steps(part) if _name(step) in _SCALING for key, value in step.items()}


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all mappings in a part of a config, the outer before those inside."""
    if isinstance(part, Mapping):
        yield part
        part = list(part.values())
    for inner in part if isinstance(part, list | tuple) else ():
        yield from _steps(inner)


def _name(step: Mapping[str, Any]) -> str:
    """Return a step's class without its module or scope; new configs hold the class itself."""
    kind = step.get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def _meta(checkpoint: Path) -> Mapping[str, Any]:
    """Return what mmengine writes beside the weights, if it did."""
    if checkpoint.suffix == ".safetensors":
        return {}
    data = torch.load(checkpoint, map_location="cpu", weights_only=True)
    meta = data.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _class_names(checkpoint: Path, meta: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the names in the checkpoint, by any of the keys that mmdet's versions wrote; numbers without them."""
    told = {key.lower(): value for key, value in {**meta, **meta.get("dataset_meta", {})}.items()}
    names = tuple(told.get("classes") or (f"class {label}" for label in range(num_classes)))
    if len(names) != num_classes:
        raise RequestError(
            f"{checkpoint}: other classes than its weights, got {len(names)} names; expected {num_classes}"
        )
    return names
