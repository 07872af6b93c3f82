"""The multiply-adds of trainings, and the epochs that they buy."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from classify.schedule import Schedule
from command.errors import WorkError
from detect.fixed_shape import FixedShapeDetector
from experiment.stages import Figures, figures_in
from prune.cost import cost_of

__all__ = ["affordable", "classifier_macs", "counted", "detector_macs", "macs_before", "train_macs"]

_PASSES = 3
"""Forward, and backward at twice its cost: gradients of what each layer reads and of its weights."""
_KEY = "train_macs"


def train_macs(macs: int, num_images: int, epochs: int) -> int:
    """Return the multiply-adds of a training: those of one image, forward and backward, x images x epochs.

    Args:
        macs: Of one forward pass at the size of training images, as `classifier_macs` and `detector_macs` count them.
            Optimizer, augmentation, losses and frozen layers are not considered.
        num_images: In the training set; a detector leaves out those without boxes, which are counted all the same.
        epochs: Of the training.
    """
    return _PASSES * macs * num_images * epochs


def classifier_macs(net: nn.Module, side: int) -> int:
    """Return the multiply-adds of one image with this side."""
    return cost_of(net, (torch.zeros(1, 3, side, side),)).macs


def detector_macs(detector: Any, size_hw: tuple[int, int]) -> int:
    """Return the multiply-adds of one image in the exported graph, whose heads see all proposals; in training fewer."""
    graph = FixedShapeDetector(detector, size_hw)
    return cost_of(graph, graph.example_inputs()).macs


def macs_before(folder: Path | None) -> int | None:
    """Return the multiply-adds of all trainings that led to a step's model; 0 without a step.

    None where an earlier version made it, which did not count them.
    """
    known: int | None = figures_in(folder).get(_KEY) if folder else 0
    return known


def counted(before: int | None, added: int) -> Figures:
    """Return the figure of a step after its own training; nothing where not all are known."""
    return {} if before is None else {_KEY: before + added}


def affordable(schedule: Schedule, source: Path, reference: Path, macs_per_epoch: int) -> Schedule:
    """Return the schedule for as many epochs as bring all trainings up to those of the reference.

    To the nearest epoch, and never fewer than the schedule has.

    Args:
        schedule: Of the last training.
        source: Folder of the step before it.
        reference: Folder of the dense model's last training.
        macs_per_epoch: Of the last training.

    Raises:
        WorkError: If an earlier version made one of the folders, and did not count.
    """
    before, total = macs_before(source), macs_before(reference)
    for folder, known in ((source, before), (reference, total)):
        if known is None:
            raise WorkError(
                f"{folder}: of an earlier version, no {_KEY} in it; delete it and give the same command again"
            )
    assert before is not None
    assert total is not None
    return schedule.stretched(max(schedule.epochs, round((total - before) / macs_per_epoch)))
