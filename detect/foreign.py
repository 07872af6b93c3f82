"""Detectors of mmdet's own parts: a config of mmdet, and a checkpoint trained with it or a model file."""

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, Preprocessing, check_weights, has_card, load_weights, read_card, read_weights
from command.config import read_yaml_as_data
from command.errors import MissingFileError, RequestError
from detect.given_model import class_name, plain, reason_of, steps_in, with_backbone, without_pretrained
from detect.model import DetectorSettings, build_detector
from detect.openmmlab import DetDataPreprocessor
from detect.slim import SLIM_DETECTOR
from prune.cut.surgery import narrowed_model

__all__ = [
    "MmdetSource",
    "dense_of",
    "given_step",
    "load_foreign",
    "new_given_detector",
    "preprocessing_of",
    "read_mmdet",
    "slim_config",
]

MmdetSource: TypeAlias = str | Path | Config
"""A config of mmdet: its file, or what was read from it."""


class _Log:
    """Loaded in place of mmengine's HistoryBuffer: unpickling a real one overwrites methods of the class itself."""


_NUMPY = {"_reconstruct": np.empty(0).__reduce__()[0], "scalar": np.float64(0).__reduce__()[0]}
_LOGS: list[Any] = [
    *(np.ndarray, np.dtype, type(np.dtype("float64")), type(np.dtype("int64"))),
    *((made, f"numpy.{core}.multiarray.{name}") for name, made in _NUMPY.items() for core in ("core", "_core")),
    (_Log, "mmengine.logging.history_buffer.HistoryBuffer"),
    (lambda owner, name: name, "builtins.getattr"),  # logs name their methods by it; nothing is looked up here
]
"""Types in the training logs of mmengine's checkpoints, which hold only numbers but which torch would refuse."""

_SCALING = ("Resize", "FixScaleResize", "MultiScaleFlipAug")
"""The steps of a pipeline that scale images, in mmdet 3 and 2."""

_MAX_SIDE = 1 << 16  # pixels


def load_foreign(config: MmdetSource, checkpoint: Path) -> tuple[nn.Module, ModelCard]:
    """Return mmdet's detector in eval mode, and a card with its classes and its preprocessing.

    The card's `image_hw` is the scale of the config's test pipeline in landscape, rounded up to the detector's padding;
    without one, the default of `DetectorSettings`. `keep_ratio` is False if that pipeline stretches images to the
    scale, which Espalier never does.

    Args:
        config: Config of mmdet. It is Python code and is run, as in mmdet.
        checkpoint: PyTorch file of weights by name, alone or as `state_dict`; or a model file that was made with such a
            config, dense or slim. Nothing in it is executed. If it has one of our backbones, the config's is replaced.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If no detector can be built from the config, the checkpoint does not fit it, or it would execute
            code.
    """
    settings = read_mmdet(config)
    config = settings.filename
    if has_card(checkpoint):
        card = read_card(checkpoint)
        if not card.is_foreign:
            raise RequestError(f"{checkpoint}: of Espalier's own parts, got a config of mmdet; leave --mmdet out")
        weights = read_weights(checkpoint)
        if card.backbone.name:
            check_weights(lambda: _of_card(settings, card, checkpoint), weights, str(checkpoint))
        detector = _of_card(settings, card, checkpoint)
    else:
        detector = _built(settings)
        with torch.serialization.safe_globals(_LOGS):
            weights, meta = read_weights(checkpoint), _meta(checkpoint)
        classes = _class_names(checkpoint, meta, _num_classes(config, detector))
        strides = (stride for part in detector.modules() for stride in getattr(part, "featmap_strides", ()))
        step = max([detector.data_preprocessor.pad_size_divisor, *strides])
        preprocessing = preprocessing_of(settings, step)
        card = ModelCard("detector", Architecture("", len(classes)), classes, preprocessing)
    load_weights(detector, weights, str(checkpoint))
    return detector.eval(), card


def _of_card(settings: Config, card: ModelCard, checkpoint: Path) -> Any:
    detector = _built(settings, card)
    if (num := _num_classes(settings.filename, detector)) != len(card.classes):
        raise RequestError(f"{checkpoint}: has {len(card.classes)} classes; expected {num}, as {settings.filename} has")
    return detector if _is_slim(settings) else narrowed_model(detector, card.widths)


def new_given_detector(
    settings: Config, backbone: Architecture, classes: tuple[str, ...], seed: int
) -> tuple[Any, ModelCard]:
    """Return the detector of a user's config on one of our backbones, with random weights, and its card.

    Raises:
        RequestError: If the config is not one of a detector of boxes, for so many classes, that can have it.
    """
    seen = preprocessing_of(settings, given_step(settings), "val_dataloader")
    card = ModelCard("detector", replace(backbone, num_classes=len(classes)), classes, seen)
    detector = _built(settings, card, seed)
    if (num := _num_classes(settings.filename, detector)) != len(classes):
        raise RequestError(
            f"{settings.filename}: bbox_head.num_classes: not that of the data, got {num}; expected {len(classes)}"
        )
    return detector, card


def given_step(settings: Config) -> int:
    """Return what the sides of images are multiples of, for a detector on maps of strides up to 32."""
    preprocessor = settings.model.get("data_preprocessor")
    divisor = preprocessor.get("pad_size_divisor", 1) if isinstance(preprocessor, Mapping) else 1
    if not isinstance(divisor, int) or divisor < 1:
        raise RequestError(f"{settings.filename}: pad_size_divisor: not usable, got {divisor!r}; expected such as 32")
    return max(32, divisor)


def slim_config(config: MmdetSource, card: ModelCard, model_file: str) -> Config:
    """Return mmdet's config with the widths of a card's detector, which starts from a model file beside it."""
    settings = read_mmdet(config)
    settings.model = _model_of(settings, card)
    if card.widths:
        widths = {name: list(width) for name, width in card.widths.items()}
        dense_type = settings.model.get("dense_type", settings.model["type"])
        settings.model |= {"type": SLIM_DETECTOR, "dense_type": dense_type, "widths": widths}
    known = settings.get("custom_imports") or {}
    named = known.get("imports") or ()
    imports = [*([named] if isinstance(named, str) else named), "detect.register"]
    settings.custom_imports = {**known, "imports": [*dict.fromkeys(imports)]}
    settings.resume = False
    settings.load_from = "{{ fileDirname }}/" + model_file  # mmengine fills it in
    return Config(plain(settings.to_dict()))


def dense_of(config: Path, card: ModelCard) -> nn.Module:
    """Return the dense detector of mmdet's config, also of a slim one's, with random weights.

    Args:
        config: As for `load_foreign`.
        card: Of the detector; it names the backbone if it is one of ours.
    """
    settings = read_mmdet(config)
    if _is_slim(settings):
        model = {key: value for key, value in settings.model.items() if key not in ("widths", "dense_type")}
        settings.model = ConfigDict({**model, "type": settings.model.dense_type})
    return _built(settings, replace(card, backbone=card.backbone.dense)).eval()


def _model_of(settings: Config, card: ModelCard | None) -> Any:
    """Return the model without pretrained weights, on the card's backbone if it names one."""
    if card and card.backbone.name:
        return without_pretrained(with_backbone(settings, card.backbone, card.preprocessing))
    return without_pretrained(settings.model)


def _is_slim(settings: Config) -> bool:
    return bool(settings.model["type"] == SLIM_DETECTOR)


def _num_classes(config: object, detector: Any) -> int:
    head: Any = getattr(getattr(detector, "roi_head", detector), "bbox_head", None)
    try:
        first: Any = head[0] if isinstance(head, nn.ModuleList) else head
        return int(first.num_classes)
    except (AttributeError, TypeError) as error:
        raise RequestError(
            f"{config}: not a detector of boxes, got {type(detector).__name__} without a box head; expected another one"
        ) from error


def _built(settings: Config, card: ModelCard | None = None, seed: int | None = None) -> Any:
    """Return a config's detector; without a seed all weights are loaded next."""
    try:
        detector: Any = revert_sync_batchnorm(build_detector(_model_of(settings, card), seed, seed is None))
    except Exception as error:
        raise _not_built(settings.filename, error) from error
    _check_normalises(settings.filename, detector.data_preprocessor)
    return detector


def read_mmdet(config: MmdetSource) -> Config:
    """Return what a config of mmdet says; its Python is run.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is no Python file, cannot be run, or has no model.
    """
    if isinstance(config, Config):
        return copy.deepcopy(config)
    config = Path(config)
    if not config.is_file():
        raise MissingFileError(f"{config}: no such file; expected a config of mmdet")
    if config.suffix != ".py":
        raise RequestError(f"{config}: not a config, got the ending {config.suffix!r}; expected a Python file, .py")
    read_yaml_as_data()
    try:
        settings = Config.fromfile(config)
    except (Exception, SystemExit) as error:
        raise _not_built(config, error) from error
    model = settings.get("model")
    if not isinstance(model, Mapping) or "type" not in model:
        raise RequestError(
            f"{config}: cannot build a detector, got model={model!r:.80}; expected a config of mmdet, with "
            f"model=dict(type=..., ...)"
        )
    return settings


def _not_built(config: object, error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    return RequestError(f"{config}: cannot build a detector, got {reason_of(error)}; expected a config of mmdet")


def _check_normalises(config: object, preprocessor: nn.Module) -> None:
    if not isinstance(preprocessor, DetDataPreprocessor):
        raise RequestError(
            f"{config}: model does not normalise images, got {type(preprocessor).__name__}; expected data_preprocessor="
            f"dict(type='DetDataPreprocessor', ...), with the mean and std of mmdet 2's pipeline"
        )


def preprocessing_of(settings: Config, step: int, first: str = "test_dataloader") -> Preprocessing:
    """Return how a detector's images are scaled.

    Args:
        settings: Config of mmdet.
        step: Both sides are multiples of it.
        first: The part of the config that tells, if it says anything.

    Raises:
        RequestError: If a scale is none.
    """
    places = settings.get(first), settings.get("data", {}).get("test"), settings.get("test_pipeline")
    scaling: dict[str, Any] = next(filter(None, map(_scaling, places)), {})
    scale = scaling.get("scale", scaling.get("img_scale"))
    if scale is None:
        return Preprocessing(DetectorSettings.image_size_hw)
    if not isinstance(scale, int | float | list | tuple):
        return Preprocessing(DetectorSettings.image_size_hw)
    sides = np.resize(scale, 2).tolist()  # one number is used for both sides; of several pairs the first
    if not all(isinstance(side, int | float) and 0 < side <= _MAX_SIDE for side in sides):
        raise RequestError(f"{settings.filename}: scale: not two sides, got {scale}; expected such as (1333, 800)")
    keep_ratio = scaling.get("keep_ratio", "img_scale" in scaling)  # the defaults of mmdet 3 and 2
    height, width = (math.ceil(side / step) * step for side in sorted(sides))
    return Preprocessing((height, width), keep_ratio=keep_ratio)


def _scaling(part: Any) -> dict[str, Any]:
    """Return the settings of the scaling steps in a part of a config; mmdet 2 nests them."""
    return {key: value for step in steps_in(part) if class_name(step) in _SCALING for key, value in step.items()}


def _meta(checkpoint: Path) -> Mapping[str, Any]:
    """Return the metadata that mmengine writes beside the weights; empty without it."""
    if checkpoint.suffix == ".safetensors":
        return {}
    data = torch.load(checkpoint, map_location="cpu", weights_only=True)
    meta = data.get("meta")
    return meta if isinstance(meta, Mapping) else {}


def _class_names(checkpoint: Path, meta: Mapping[str, Any], num_classes: int) -> tuple[str, ...]:
    """Return the class names in the checkpoint, under the key of any mmdet version; else numbered names."""
    of_data = meta.get("dataset_meta")
    named = [*(of_data.items() if isinstance(of_data, Mapping) else ()), *meta.items()]
    known: Any = next((names for key, names in named if str(key).lower() == "classes" and names), None)
    names = tuple(known) if _is_names(known) else tuple(f"class {label}" for label in range(num_classes))
    if len(names) != num_classes:
        raise RequestError(
            f"{checkpoint}: class names do not match its weights, got {len(names)} names; expected {num_classes}"
        )
    return names


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) and name for name in value)
