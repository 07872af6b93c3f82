"""Accuracy of a classifier, measured through mmengine's Runner."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from torch import Tensor, nn
from torch.utils.data import Dataset

from classify.train import ClassifierModel, collate, make_runner, silent
from prune.modes import evaluating

__all__ = ["evaluate_classifier"]


def evaluate_classifier(
    net: nn.Module, dataset: Dataset[Any], work_dir: Path, batch_size: int = 64
) -> dict[str, float]:
    """Return {"top1", "top5"} in [0, 1] over (uint8 image, label) pairs; `net` is not changed."""
    with silent():  # mmengine warns of a data set without its own metainfo
        metric = _Accuracy()
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
        metrics: dict[str, float] = runner.test()
    net.cpu()
    return metrics


class _Accuracy(BaseMetric):
    def process(self, data_batch: Any, data_samples: Sequence[tuple[Tensor, Tensor]]) -> None:
        for scores, label in data_samples:
            best = scores.topk(min(5, len(scores))).indices.tolist()
            self.results.append((int(scores.argmax()) == int(label), int(label) in best))

    def compute_metrics(self, results: list[tuple[bool, bool]]) -> dict[str, float]:
        top1, top5 = zip(*results, strict=True)
        return {"top1": sum(top1) / len(results), "top5": sum(top5) / len(results)}
