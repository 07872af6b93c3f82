"""Faster R-CNN with our backbones: mmdet's stock config with a few changes."""

import copy
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.runner.checkpoint import CheckpointLoader
from pydantic import ConfigDict as PydanticConfig
from pydantic import TypeAdapter, ValidationError, with_config
from torch import Tensor, nn

from classify.backbones import Architecture, build_trunk, stage_shapes, weightless
from classify.checkpoint import ModelCard, Preprocessing, load_weights, read_card, read_weights
from classify.mmengine_runner import silent
from command.bounds import Bounds
from command.errors import RequestError
from command.own_code import is_own_code
from detect.openmmlab import MODELS, STOCK_FASTER_RCNN, DefaultScope, register_all_modules
from detect.slim import SLIM_DETECTOR
from detect.trunk import TrunkBackbone

__all__ = [
    "DetectorSettings",
    "backbone_config",
    "build_detector",
    "config_of",
    "detector_config",
    "load_from_model_file",
    "map_channels",
    "mmdet_config",
    "model_part",
    "new_detector",
    "settings_of",
    "test_part",
    "transfer",
]


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of a Faster R-CNN besides its backbone; the defaults are mmdet's."""

    image_size_hw: tuple[int, int] = (800, 1344)
    """Images are scaled to fit; each side a multiple of 32."""
    fpn_channels: int = 256
    head_channels: int = 1024
    """Width of the two fully connected layers of the RoI head."""
    num_proposals: int = 1000
    roi_samples: int = 512
    """RoIs per image that the head trains on."""
    anchor_scale: int = 8
    """Side of the anchors in strides: 8 is 32 px on the finest level."""
    norm_eval: bool = False
    """Keep BatchNorm's statistics fixed during training, for batches too small to estimate them."""
    sampling_ratio: int = 2
    """Points along a side of a cell of RoIAlign; 0 for as many as fit, which has no fixed shape to export."""
    max_per_img: int = 100
    """Most objects that are found in an image."""

    def __post_init__(self) -> None:
        """Refuse a shape that the feature pyramid cannot halve five times."""
        if any(side not in range(32, 8193, 32) for side in self.image_size_hw):
            raise RequestError(
                f"image_size_hw: not divisible by 32, got {self.image_size_hw}; expected multiples of 32 up to 8192"
            )
        for name in ("fpn_channels", "head_channels", "num_proposals", "roi_samples", "anchor_scale", "max_per_img"):
            Bounds(1, 65_536).check(name, getattr(self, name))
        Bounds(0, 16).check("sampling_ratio", self.sampling_ratio)


_SETTINGS = TypeAdapter(with_config(PydanticConfig(extra="forbid"))(DetectorSettings))


def detector_config(backbone: Architecture, num_classes: int, settings: DetectorSettings) -> dict[str, Any]:
    """Return mmdet's model config; the neck's input channels are computed from the backbone."""
    model: dict[str, Any] = Config.fromfile(STOCK_FASTER_RCNN).model.to_dict()
    model["backbone"] = backbone_config(backbone, norm_eval=settings.norm_eval)
    model["neck"].update(in_channels=map_channels(backbone), out_channels=settings.fpn_channels)
    model["rpn_head"].update(in_channels=settings.fpn_channels, feat_channels=settings.fpn_channels)
    model["rpn_head"]["anchor_generator"]["scales"] = [settings.anchor_scale]
    extractor = model["roi_head"]["bbox_roi_extractor"]
    extractor["out_channels"] = settings.fpn_channels
    extractor["roi_layer"].update(sampling_ratio=settings.sampling_ratio, use_torchvision=True)
    head = {"in_channels": settings.fpn_channels, "fc_out_channels": settings.head_channels, "num_classes": num_classes}
    model["roi_head"]["bbox_head"].update(head)
    model["train_cfg"]["rpn_proposal"].update(nms_pre=2 * settings.num_proposals, max_per_img=settings.num_proposals)
    model["train_cfg"]["rcnn"]["sampler"]["num"] = settings.roi_samples
    model["test_cfg"]["rpn"].update(nms_pre=settings.num_proposals, max_per_img=settings.num_proposals)
    model["test_cfg"]["rcnn"]["max_per_img"] = settings.max_per_img
    return model


def backbone_config(backbone: Architecture, **training: Any) -> dict[str, Any]:
    """Return mmdet's config of one of our backbones; `training` are arguments of `TrunkBackbone`."""
    config: dict[str, Any] = {
        "type": TrunkBackbone.__name__,
        "name": backbone.name,
        "base_channels": backbone.base_channels,
        "widths": {name: list(width) for name, width in backbone.widths.items()},
        **training,
    }
    if backbone.removed_blocks:
        config["removed_blocks"] = {block: list(layers) for block, layers in backbone.removed_blocks.items()}
    return config


def map_channels(backbone: Architecture) -> list[int]:
    """Return the channels of the feature maps at strides 4, 8, 16 and 32."""
    with weightless():
        return [channels for channels, _ in stage_shapes(build_trunk(backbone))]


def build_detector(config: Mapping[str, Any], seed: int | None = None, is_loaded_next: bool = False) -> nn.Module:
    """Return mmdet's detector for a model config.

    Args:
        config: Of mmdet. It names the classes that are built, so it comes from code or from a config, never from a
            model file.
        seed: Of the random weights.
        is_loaded_next: Whether all weights are replaced: mmdet's initialisation, which reads the files and addresses
            that a config may name, is left out.
    """
    register_all_modules(init_default_scope=False)
    if seed is not None:
        torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmdet"), silent():
        detector: nn.Module = MODELS.build(ConfigDict(copy.deepcopy(dict(config))))
        if is_loaded_next:
            detector._is_init = True  # type: ignore[assignment]
        else:
            detector.init_weights()  # type: ignore[operator]  # now: else the Runner would, over loaded weights
    return detector


def new_detector(
    backbone: Architecture,
    classes: tuple[str, ...],
    settings: DetectorSettings,
    seed: int,
    preprocessing: Preprocessing | None = None,
) -> tuple[nn.Module, ModelCard]:
    """Return a Faster R-CNN with random weights and its card; by default, images are normalised as for the backbone."""
    preprocessing = preprocessing or Preprocessing.of(backbone.name, settings.image_size_hw)
    card = ModelCard("detector", backbone, classes, preprocessing, asdict(settings))
    return build_detector(config_of(card), seed), card


def settings_of(card: ModelCard) -> DetectorSettings:
    """Return the settings of the card's detector besides its backbone.

    Raises:
        RequestError: If one is unknown or of another type.
    """
    try:
        return _SETTINGS.validate_python(dict(card.settings or {}))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise RequestError(f"settings: damaged in the model's card, {where} {fault['msg']}; train again") from error


def config_of(card: ModelCard) -> dict[str, Any]:
    """Return mmdet's model config, built from the card's typed fields: nothing in a model file reaches a registry."""
    config = detector_config(card.backbone, len(card.classes), settings_of(card))
    seen = card.preprocessing
    config["data_preprocessor"].update(mean=list(seen.mean_rgb), std=list(seen.std_rgb))
    if card.widths:
        widths = {name: list(width) for name, width in card.widths.items()}
        config |= {"type": SLIM_DETECTOR, "widths": widths}
    return config


def transfer(detector: nn.Module, classifier_weights: Mapping[str, Tensor], subject: str) -> None:
    """Copy a classifier's weights into the detector's backbone, in place, without its head.

    Raises:
        RequestError: If the classifier's architecture differs from the backbone's.
    """
    backbone: Any = detector.backbone
    weights = {name: w for name, w in classifier_weights.items() if not name.startswith(backbone.heads)}
    load_weights(backbone.net, weights, subject)


def mmdet_config(card: ModelCard) -> Config:
    """Return the config with which `mmdet.apis.init_detector` opens the model file."""
    return Config({**model_part(card), **test_part(card)})


def model_part(card: ModelCard) -> dict[str, Any]:
    """Return the part of mmdet's config that a list `_base_` takes beside mmdet's own data sets and schedules.

    In a class name, `{{` is written as `{ {`: mmengine fills in what is between two pairs of braces, with regular
    expressions made of it, whenever it reads a config or a copy that a tool has written. The model file has the name.
    """
    model = config_of(card)
    if is_own_code(card.backbone.name):  # named by the user in this process, else the line above refuses it
        model["backbone"]["code"] = True
    return {
        "custom_imports": {"imports": ["detect.register"], "allow_failed_imports": False},
        "model": model,
        "metainfo": {"classes": [re.sub(r"\{(?=\{)", "{ ", name) for name in card.classes]},
    }


def test_part(card: ModelCard) -> dict[str, Any]:
    """Return the part of mmdet's config that says how images are read, which `mmdet.apis` needs."""
    height, width = card.preprocessing.image_hw
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "Resize", "scale": (width, height), "keep_ratio": card.preprocessing.keep_ratio},
        {"type": "PackDetInputs", "meta_keys": ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")},
    ]
    return {"default_scope": "mmdet", "test_dataloader": {"dataset": {"type": "CocoDataset", "pipeline": pipeline}}}


@CheckpointLoader.register_scheme(prefixes=r".*\.safetensors$", force=True)
def load_from_model_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read our model files in mmengine's `load_checkpoint`, and so in every mmdet tool."""
    path = Path(filename)
    return {"state_dict": read_weights(path), "meta": {"dataset_meta": {"classes": read_card(path).classes}}}
