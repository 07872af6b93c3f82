"""Train a trained ResNet-56 for CIFAR-10 on, with every method that acts in training, cut it and score it.

Run:     python benchmarks/methods_trained_resnet56.py RECORD.json --weights FILE.th --train FILE.npz --val FILE.npz
Writes:  a record of the table in docs/pruning.md, anew after every training; checkpoints in --work, where it goes on if
         it was stopped

Every training begins with the same weights and has the same schedule, images and seed; nothing is trained after a cut.
The cuts are those of `methods_resnet56.py`, the first convolution of every residual block, but for structure selection,
which removes that share of the blocks. Beside each method stands the cut of the dense network, trained as long, by the
criterion that the method ends with.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from methods_resnet56 import RATIOS, TRUNK, batches_of, top1
from torch import nn

from classify.augmentation import Augmentation
from classify.checkpoint import ModelCard
from classify.image_data import NpzData
from classify.importing import import_classifier
from classify.pruning import example_of
from classify.schedule import Schedule
from classify.train import train_classifier
from deploy.record import cpu_model, git_commit, installed_versions
from prune import Recipe, prune_model
from prune.learn.method import Method
from prune.learn.slimming import NetworkSlimming
from prune.learn.soft_filters import SoftFilterPruning
from prune.learn.structure_selection import StructureSelection

PENALTIES = {"slimming": 5e-3, "structure selection": 0.01}
SEED = 0


class Trainings:
    """Trains copies of a network, each with a method or none."""

    def __init__(self, net: nn.Module, card: ModelCard, images: NpzData, schedule: Schedule, work: Path) -> None:
        """Keep the network, which is not changed."""
        self.net, self.example, self._schedule, self._work = net, example_of(card), schedule, work
        self._images = images.images("train", card.preprocessing.image_hw[0], Augmentation(padding=4))

    def of(self, name: str, make: Callable[[nn.Module], Method] = lambda net: Method()) -> tuple[nn.Module, Method]:
        """Return the trained network and its method; a training that was stopped goes on."""
        net = copy.deepcopy(self.net)
        method = make(net)
        train_classifier(net, self._images, self._schedule, self._work / name, SEED, method=method)
        return net.eval(), method


def slim_networks(trainings: Trainings) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield each row's name and networks, one for each ratio."""
    dense, _ = trainings.of("dense")
    example = trainings.example
    yield "dense", [dense] * len(RATIOS)
    yield "l2", [prune_model(dense, example, ratio, skip=TRUNK, criterion="l2").model for ratio in RATIOS]
    recipes = [Recipe(prune_ratio=ratio, skip=TRUNK) for ratio in RATIOS]
    yield "soft filters", [_soft(trainings, recipe) for recipe in recipes]

    slimming = partial(NetworkSlimming, example_inputs=example, recipe=recipes[0], penalty=PENALTIES["slimming"])
    unpenalised = slimming(dense)
    yield "bn_scale, global", [unpenalised.slim(dense, prune_ratio=ratio).model for ratio in RATIOS]
    net, method = trainings.of("slimming", slimming)
    assert isinstance(method, NetworkSlimming)
    yield "slimming", [method.slim(net, prune_ratio=ratio).model for ratio in RATIOS]

    penalty = PENALTIES["structure selection"]
    net, method = trainings.of("structures", partial(StructureSelection, example_inputs=example, penalty=penalty))
    yield "structure selection", [_without_blocks(net, method, ratio) for ratio in RATIOS]


def _soft(trainings: Trainings, recipe: Recipe) -> nn.Module:
    make = partial(SoftFilterPruning, example_inputs=trainings.example, recipe=recipe)
    net, method = trainings.of(f"soft-{recipe.prune_ratio}", make)
    assert isinstance(method, SoftFilterPruning)
    return method.slim(net).model


def _without_blocks(net: nn.Module, method: Method, ratio: float) -> nn.Module:
    assert isinstance(method, StructureSelection)
    method.prune_ratio = ratio
    return method.slim(net).model


def main() -> None:
    """Train, cut, score and write the record after every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    for name in ("weights", "train", "val"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/methods-trained"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    schedule = Schedule(
        epochs=options.epochs,
        batch_size=64,
        optimizer="SGD",
        lr=0.01,
        milestones=(1.0,),
        amp="bf16",
        channels_last=True,
    )
    net, card = import_classifier("resnet56_cifar", options.weights)
    images = NpzData(type="npz", train=options.train, val=options.val)
    batches = batches_of(card, options.val)
    table: list[list[str]] = []
    for name, networks in slim_networks(Trainings(net, card, images, schedule, options.work)):
        table.append([name, *(f"{top1(network.eval(), batches):.2f}" for network in networks)])
        record = {
            "kind": f"top-1 (%) of a ResNet-56 on CIFAR-10, trained on with each method, cut, not fine-tuned, "
            f"on a CPU ({cpu_model()})",
            "before": f"{top1(net, batches):.2f}",
            "schedule": schedule.effective(),
            "penalties": PENALTIES,
            "seed": SEED,
            "commit": git_commit(),
            "versions": installed_versions(),
            "columns": [f"trained on for {options.epochs} epochs", *(f"{ratio:.0%} removed" for ratio in RATIOS)],
            "table": table,
        }
        options.record.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
