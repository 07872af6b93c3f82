"""What a classifier answers, and its accuracy, measured through mmengine's Runner."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from torch import Tensor, nn
from torch.utils.data import Dataset

from classify.accuracy import Predictions, accuracy
from classify.classifier_model import ClassifierModel, collate
from classify.mmengine_runner import make_runner, silent
from deploy.fitting import stacked
from deploy.tensors import Arrays
from prune.modes import evaluating

__all__ = ["answers_of", "evaluate_classifier", "predictions"]

_Answer = tuple[int, int, float, bool]
"""True label, the one with the highest score, its confidence, and whether the true one is among the best five."""


def evaluate_classifier(
    net: nn.Module, dataset: Dataset[Any], work_dir: Path, batch_size: int = 64
) -> dict[str, float]:
    """Return {"top1", "top5"} in [0, 1] over (uint8 image, label) pairs; `net` is not changed."""
    return accuracy(predictions(net, dataset, work_dir, batch_size))


def predictions(net: nn.Module, dataset: Dataset[Any], work_dir: Path, batch_size: int = 64) -> Predictions:
    """Return what `net`, which is not changed, answers on (uint8 image, label) pairs."""
    with silent():  # mmengine warns of a data set without its own metainfo
        metric = _Answers()
    runner = make_runner(
        ClassifierModel(net),
        work_dir,
        test_dataloader={
            "dataset": dataset,
            "collate_fn": collate,
            "batch_size": batch_size,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
        test_cfg={},
        test_evaluator=[metric],
    )
    with evaluating(net), silent():
        runner.test()
    net.cpu()
    return metric.found


def answers_of(
    run: Callable[[Arrays], Arrays], dataset: Any, batch: int, progress: Callable[[int, int], object]
) -> Predictions:
    """Return what a deployed classifier answers.

    Args:
        run: From its inputs to its outputs; it always gets whole batches, the last one filled up with its last image.
        dataset: (uint8 image, label) pairs.
        batch: Images per run.
        progress: Called after every run with (images done, images in all).
    """
    answers: list[_Answer] = []
    for start in range(0, len(dataset), batch):
        pairs = [dataset[i] for i in range(start, min(start + batch, len(dataset)))]
        images = [{"image": image[None].float().numpy()} for image, _ in pairs]
        scores = torch.from_numpy(run(stacked(images, batch))["scores"])
        answers += [_answer(one, label) for one, (_, label) in zip(scores, pairs, strict=False)]
        progress(len(answers), len(dataset))
    return _together(answers)


class _Answers(BaseMetric):
    found: Predictions

    def process(self, data_batch: Any, data_samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.results += [_answer(scores, int(label)) for scores, label in data_samples]

    def compute_metrics(self, results: list[_Answer]) -> dict[str, float]:
        self.found = _together(results)
        return accuracy(self.found)


def _answer(scores: Tensor, label: int) -> _Answer:
    best = scores.topk(min(5, len(scores))).indices.tolist()
    return label, int(scores.argmax()), float(scores.double().softmax(0).max()), label in best


def _together(answers: list[_Answer]) -> Predictions:
    return Predictions(*map(np.array, zip(*answers, strict=True)))
