"""Validation accuracy during a training, and the best weights so far."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset, Subset

from classify.classifier_model import ClassifierModel, collate
from classify.curve import Curve
from classify.hooks import CurveKeeper
from prune.modes import evaluating

__all__ = ["BEST", "Validation", "ValidationHook", "best_file", "shared_accuracy"]

BEST = "best.safetensors"
"""Name of the file with the best weights so far, in the folder of the training."""


@dataclass(frozen=True)
class Validation:
    """When a classifier is evaluated during its training, on what, and what happens with the best weights."""

    every: int
    """Epochs; the last one is evaluated in any case."""
    dataset: Dataset[Any]
    """(uint8 image, label) pairs."""
    on_best: Callable[[Curve], object]
    """Called in the first process, with the curve so far, while the network has its best weights so far."""


class ValidationHook(Hook):
    """Evaluates after an epoch, between the curve's entry of it and its checkpoint."""

    priority = "LOW"

    def __init__(
        self, validation: Validation, keeper: CurveKeeper, averages: Sequence[EMAHook], num_workers: int
    ) -> None:
        self._validation, self._keeper, self._averages = validation, keeper, averages
        self._num_workers = num_workers

    def after_train_epoch(self, runner: Runner) -> None:
        """Add the figures to the curve."""
        if (runner.epoch + 1) % self._validation.every and runner.epoch + 1 < runner.max_epochs:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with _averaged(self._averages):
            figures = shared_accuracy(model, self._validation.dataset, self._num_workers)
            self._keeper.add_figures(figures)
            if _is_best(self._keeper.curve) and is_main_process():
                self._validation.on_best(self._keeper.curve)


def shared_accuracy(model: ClassifierModel, dataset: Dataset[Any], num_workers: int = 0) -> dict[str, float]:
    """Return {"top1", "top5"} in [0, 1]; each process evaluates a part of the images."""
    num: int = len(dataset)  # type: ignore[arg-type]  # every one here has a length
    part = Subset(dataset, range(get_rank(), num, get_world_size()))
    right = torch.zeros(2, dtype=torch.int64, device=next(model.parameters()).device)
    with torch.no_grad(), evaluating(model):
        for batch in DataLoader(part, 64, collate_fn=collate, num_workers=num_workers):
            images, labels = model.data_preprocessor(batch).values()
            scores = model.net(images)
            hits = scores.topk(min(5, scores.shape[1])).indices == labels[:, None]
            right += torch.stack([hits[:, 0].sum(), hits.any(1).sum()])
    all_reduce(right)
    return {name: count / num for name, count in zip(("top1", "top5"), right.tolist(), strict=True)}


def best_file(model: Path) -> Path:
    """Return the place of the weights of the best epoch, beside the model file, which has the last ones."""
    return model.with_name(f"{model.stem}-best{model.suffix}")


@contextlib.contextmanager
def _averaged(averages: Sequence[EMAHook]) -> Iterator[None]:
    """Compute with the averaged weights in the block, if there are any."""
    for average in averages:
        average._swap_ema_parameters()
    try:
        yield
    finally:
        for average in averages:
            average._swap_ema_parameters()


def _is_best(curve: Curve) -> bool:
    *earlier, last = [epoch.figures["top1"] or 0.0 for epoch in curve.epochs if epoch.figures]
    return all(last > one for one in earlier)
