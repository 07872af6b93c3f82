"""Prune a trained ResNet-56 for CIFAR-10 by every method that needs no training, and score it before any fine-tuning.

Run:     python benchmarks/methods_resnet56.py RECORD.json --weights FILE.th --train FILE.npz --val FILE.npz
Writes:  a record of the table in docs/pruning.md

All methods cut the same layers, the first convolution of every residual block, which are those that can be refitted,
and see the same training images. `random` is the mean of three seeds.
"""

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn

from classify.checkpoint import ModelCard
from classify.image_data import NpzData
from classify.importing import import_classifier
from classify.losses import classifier_inputs, classifier_losses
from classify.pruning import example_of
from deploy.record import cpu_model, git_commit, installed_versions
from prune import prune_model, refit_model
from prune.choose.criteria import CRITERIA, make_criterion
from prune.learn.magnitude import HeldMasks, magnitude_masks
from prune.refitting import METHODS

RATIOS = (0.3, 0.5, 0.7)
TRUNK = ("conv1", "*.conv2")
SAMPLE = {"batch_size": 50, "num_batches": 10}
SEEDS = (0, 1, 2)

Cut = Callable[[float], nn.Module]
"""Gives the network pruned at a ratio."""


def methods(net: nn.Module, card: ModelCard, images: NpzData) -> dict[str, list[Cut]]:
    """Return each method by name, once for each of its seeds."""
    example, inputs = example_of(card), classifier_inputs(card, images, **SAMPLE)
    losses = classifier_losses(card, images, **SAMPLE)

    def ranked(name: str, ratio: float, seed: int = 0) -> nn.Module:
        criterion = make_criterion(name, net, losses, seed)
        return prune_model(net, example, ratio, skip=TRUNK, criterion=criterion).model

    def refitted(method: str, ratio: float, residual: bool = False) -> nn.Module:
        return refit_model(net, example, inputs, ratio, method=method, residual=residual).model

    def masked(ratio: float) -> nn.Module:
        copied = copy.deepcopy(net)
        HeldMasks(copied, magnitude_masks(copied, ratio, layers=["*.conv1"]))
        return copied

    found: dict[str, list[Cut]] = {name: [partial(ranked, name)] for name in CRITERIA}
    found["random"] = [partial(ranked, "random", seed=seed) for seed in SEEDS]
    found |= {name: [partial(refitted, name)] for name in METHODS}
    return {**found, "lasso, residual": [partial(refitted, "lasso", residual=True)], "single weights": [masked]}


def batches_of(card: ModelCard, file: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return all images of an `.npz` file as the network reads them, and their labels."""
    images = NpzData(type="npz", train=file, val=file)
    labels = torch.from_numpy(images.arrays("train").labels)
    pictures = torch.cat(list(classifier_inputs(card, images, batch_size=len(labels), num_batches=1)()))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return list(zip(pictures.split(250), labels[order].split(250), strict=True))


@torch.no_grad()
def top1(net: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the per cent of images that are classified right."""
    right = sum(int((net(images).argmax(1) == labels).sum()) for images, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def main() -> None:
    """Prune, score and write the record after every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    for name in ("weights", "train", "val"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    net, card = import_classifier("resnet56_cifar", options.weights)
    images = NpzData(type="npz", train=options.train, val=options.val)
    batches = batches_of(card, options.val)
    dense = top1(net, batches)
    table: list[list[str]] = []
    for name, cuts in methods(net, card, images).items():
        scores = [f"{mean(top1(cut(ratio).eval(), batches) for cut in cuts):.2f}" for ratio in RATIOS]
        table.append([name, *scores])
        record: dict[str, Any] = {
            "kind": f"top-1 (%) of a ResNet-56 on CIFAR-10, pruned and not trained, on a CPU ({cpu_model()})",
            "num_images": SAMPLE["batch_size"] * SAMPLE["num_batches"],
            "seeds": {"random": SEEDS, "others": 0},
            "commit": git_commit(),
            "versions": installed_versions(),
            "columns": ["method", *(f"{ratio:.0%} removed" for ratio in RATIOS)],
            "table": [["dense", *[f"{dense:.2f}"] * len(RATIOS)], *table],
        }
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
