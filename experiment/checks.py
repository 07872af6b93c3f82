"""What is checked of an experiment before any work."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from classify.backbones import Architecture, build_classifier, heads_of
from classify.checkpoint import load_weights, read_weights
from classify.learning import check_schedule
from classify.tracking import check_backends
from classify.train import check_batch_size
from command.errors import RequestError
from command.files import check_folder
from detect.fixed_shape import FixedShapeDetector
from detect.given_training import check_given_detector
from detect.model import new_detector
from experiment.claims import Claims
from experiment.config import LEARNT_PARTS, ExperimentConfig
from experiment.cuts import RANK, Pruning
from experiment.cutting import method_on
from experiment.data import check_data
from experiment.limits import at_limit
from experiment.targets import scope_of
from prune.pruning import prune_model
from prune.recalibration import check_has_statistics

__all__ = ["check_experiment"]

_MIN_FREE_BYTES = 1_000_000_000


def check_experiment(config: ExperimentConfig, folder: Path, only_latency: bool = False) -> None:
    """Find anything that would fail later, before any work.

    Raises:
        MissingFileError: If data or weights are missing.
        RequestError: If data, weights or pruning do not fit, this machine cannot run a target, the folder or what
            belongs into it is something else, or the disk is nearly full.
    """
    Claims(folder / "stages").check()
    check_backends(config.tracking)
    scope_of(config.targets, only_latency)
    check_data(config)
    _check_backbones(config)
    free = shutil.disk_usage(check_folder(folder)).free
    if free < _MIN_FREE_BYTES:
        raise RequestError(f"{folder}: {free / 1e9:.1f} GB free on its disk; expected at least 1 GB")


def _check_backbones(config: ExperimentConfig) -> None:
    """Raise RequestError with what is wrong with each of them."""
    faults = []
    for name, one in config.by_backbone.items():
        try:
            _check_backbone(one)
            _check_detector(one)
        except RequestError as error:
            if not config.backbones:
                raise
            faults.append(f"{name}: {error}")
    if faults:
        raise RequestError("; ".join(faults))


def _check_backbone(config: ExperimentConfig) -> None:
    """Build and prune the network once with random weights, so that bad patterns and ratios fail before training."""
    arch = Architecture(config.backbone.name, 2, config.backbone.base_channels)
    net = build_classifier(arch)
    weights = config.backbone.weights
    if weights:
        load_weights(net, read_weights(weights), str(weights), optional=heads_of(config.backbone.name))
    side = config.classification.image_size
    for schedule in filter(None, (config.classification.train, config.classification.finetune)):
        check_batch_size(net, side, schedule.batch_size)
    for pruning in config.prunings.values():
        for part in LEARNT_PARTS:
            if learning := config.learning_of(part, pruning):
                check_schedule(pruning.method, learning)
        _check_pruning(net, pruning, arch, side)


def _check_pruning(net: nn.Module, pruning: Pruning, arch: Architecture, side: int) -> None:
    example = (torch.zeros(1, 3, side, side),)
    recipe = pruning
    if pruning.is_calibrated or pruning.is_learned:  # no data is there yet
        recipe = replace(pruning, criterion="l1", method=RANK, epochs_per_layer=0)
    if pruning.recalibrate:
        check_has_statistics(net)
    for one, cut in zip(recipe.recipes, pruning.recipes, strict=True):
        if pruning.method != "structure_selection":
            prune_model(net, example, at_limit(one, arch, side))
        if pruning.is_learned:
            method_on(net, example, cut, pruning)


def _check_detector(config: ExperimentConfig) -> None:
    """Build and export-check the detector once: a setting that only the last step refuses would waste all before it."""
    if not config.detection:
        return
    backbone = Architecture(config.backbone.name, 1, config.backbone.base_channels)
    if config.detection.given:
        check_given_detector(config.detection.given, backbone, config.detection.finetune)
    else:
        assert config.detection.model is not None
        detector, _ = new_detector(backbone, ("any",), config.detection.model, seed=0)
        FixedShapeDetector(detector, config.detection.model.image_size_hw)
