"""What a classifier answers, and its accuracy, measured through mmengine's Runner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from torch import Tensor, nn
from torch.utils.data import Dataset

from classify.accuracy import Predictions, accuracy
from classify.classifier_model import ClassifierModel, collate
from classify.mmengine_runner import make_runner, silent
from prune.modes import evaluating

__all__ = ["evaluate_classifier", "predictions"]


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


class _Answers(BaseMetric):
    found: Predictions

    def process(self, data_batch: Any, data_samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        for scores, label in data_samples:
            best = scores.topk(min(5, len(scores))).indices.tolist()
            confidence = float(scores.double().softmax(0).max())
            self.results.append((int(label), int(scores.argmax()), confidence, int(label) in best))

    def compute_metrics(self, results: list[tuple[int, int, float, bool]]) -> dict[str, float]:
        self.found = Predictions(*map(np.array, zip(*results, strict=True)))
        return accuracy(self.found)
