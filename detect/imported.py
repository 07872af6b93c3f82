"""Detectors that were not trained here: around a classifier's backbone, or from mmdet's checkpoint and config."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, load_weights
from classify.provenance import origin, outcome
from detect.foreign import load_foreign
from detect.found_alike import check_finds_the_same
from detect.model import DetectorSettings, new_detector, transfer
from detect.traced import TracedDetector

__all__ = ["detector_around", "detector_from_mmdet"]


def detector_around(
    classifier: nn.Module, card: ModelCard, classes: tuple[str, ...], size_hw: tuple[int, int], seed: int = 0
) -> tuple[nn.Module, ModelCard]:
    """Return a Faster R-CNN with a classifier's weights in its backbone, the rest random, in eval mode; and its card.

    Raises:
        RequestError: If the network has no feature maps for a detector, or the size is not one of `DetectorSettings`.
    """
    backbone = replace(card.backbone, num_classes=len(classes))
    detector, made = new_detector(backbone, classes, DetectorSettings(image_size_hw=size_hw), seed)
    transfer(detector, classifier.state_dict(), card.backbone.name)
    return detector.eval(), replace(made, spec=card.spec, provenance=card.provenance)


def detector_from_mmdet(config: Path, checkpoint: Path) -> tuple[nn.Module, ModelCard, str]:
    """Return mmdet's detector in eval mode, its card, and why it is not one of ours; nothing if it is.

    A Faster R-CNN on a ResNet becomes one of ours, which finds the same. Any other is kept as it is, and
    `card.is_foreign` is true: mmdet's config is needed to open it again.

    Args:
        config: Config of mmdet. It is Python code and is run, as in mmdet.
        checkpoint: See `load_foreign`. Nothing in it is executed.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: As `load_foreign`.
    """
    theirs, found = load_foreign(config, checkpoint)
    try:
        (detector, card), reason = _as_ours(theirs, found), ""
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # of parts that ours does not have
        TracedDetector(theirs)  # raises RequestError for what cannot be pruned either
        detector, card = theirs, found
        reason = str(error) if isinstance(error, ValueError) else f"other parts, {error}"
    made_from = {**origin({"import": config.name}, checkpoint), **outcome({})}
    return detector, replace(card, provenance=made_from), reason


def _as_ours(theirs: Any, found: ModelCard) -> tuple[nn.Module, ModelCard]:
    """Return the detector as one of ours, and its card; raise an error unless both find the same."""
    settings, network = _settings(theirs, found), _network(theirs.backbone, len(found.classes))
    preprocessing, weights = found.preprocessing, theirs.state_dict()
    mean, std = (getattr(theirs.data_preprocessor, key).flatten().tolist() for key in ("mean", "std"))
    if not theirs.data_preprocessor._channel_conversion:  # it reads blue first, as OpenCV
        mean, std = mean[::-1], std[::-1]
        weights["backbone.conv1.weight"] = weights["backbone.conv1.weight"].flip(1)
    preprocessing = replace(preprocessing, mean_rgb=tuple(mean), std_rgb=tuple(std))
    ours, card = new_detector(network, found.classes, settings, seed=0, preprocessing=preprocessing)
    load_weights(ours, {_own_name(name): tensor for name, tensor in weights.items()}, "its weights")
    if not check_finds_the_same(theirs, ours.eval()):
        raise ValueError("it does not predict")
    return ours, card


def _settings(theirs: Any, found: ModelCard) -> DetectorSettings:
    return DetectorSettings(
        image_size_hw=found.preprocessing.image_hw,
        fpn_channels=theirs.neck.out_channels,
        head_channels=theirs.roi_head.bbox_head.fc_out_channels,
        num_proposals=theirs.rpn_head.test_cfg.max_per_img,
        roi_samples=theirs.roi_head.train_cfg.sampler.num,
        anchor_scale=int(theirs.rpn_head.prior_generator.scales[0]),
        norm_eval=theirs.backbone.norm_eval,
        sampling_ratio=theirs.roi_head.bbox_roi_extractor.roi_layers[0].sampling_ratio,
        max_per_img=theirs.roi_head.test_cfg.max_per_img,
    )


def _network(backbone: Any, num_classes: int) -> Architecture:
    """Return the network of mmdet's ResNet; whether it computes the same is tried afterwards."""
    kind = type(backbone).__name__
    if kind == "ResNet":
        return Architecture(f"resnet{backbone.depth}", num_classes, backbone.base_channels)
    if kind == "ResNeXt" and (backbone.depth, backbone.groups, backbone.base_width) == (50, 32, 4):
        return Architecture("resnext50_32x4d", num_classes)
    raise ValueError(f"the backbone {kind}")


def _own_name(name: str) -> str:
    return name.replace("backbone.", "backbone.net.", 1) if name.startswith("backbone.") else name
