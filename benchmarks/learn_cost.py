"""Measure what methods that act in training add to a training step, and to the end of an epoch.

Run:     python benchmarks/learn_cost.py RECORD.json [--rounds 30] [--threads 1]
Writes:  a record: whole steps (forward, backward, SGD with momentum) with and without each method, timed alternately,
         and how long the calls at the end of an epoch take

Times are CPU time of this process, which others disturb less than its wall time. A method's share is its median step
over the plain median step, less one, with the 95 % interval of a bootstrap. Its own calls are timed by themselves too;
what hooks add to the passes is not in them.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import write_cpu_record
from torch import Tensor, nn

from classify.backbones import Architecture, build_classifier
from deploy.latency import latency_from_samples, order_of_round, speedup_from_samples
from prune import Recipe
from prune.learn.early_bird import EarlyBird
from prune.learn.magnitude import HeldMasks, magnitude_masks
from prune.learn.method import Method
from prune.learn.slimming import NetworkSlimming
from prune.learn.soft_filters import SoftFilterPruning
from prune.learn.structure_selection import StructureSelection

NETWORKS = {"resnet56_cifar": (32, 32), "resnet18": (64, 16), "resnext50_32x4d": (64, 8)}
"""Name -> side of the images, images of a batch."""
HALF = Recipe(prune_ratio=0.5)
IN_STEPS: dict[str, Callable[[nn.Module, tuple[Tensor]], Method]] = {
    "plain": lambda net, example: Method(),
    "slimming": lambda net, example: NetworkSlimming(net, example, HALF),
    "structure selection": StructureSelection,
    "held masks": lambda net, example: HeldMasks(net, magnitude_masks(net, 0.5)),
}
AT_EPOCHS: dict[str, Callable[[nn.Module, tuple[Tensor]], Method]] = {
    "soft filters": lambda net, example: SoftFilterPruning(net, example, HALF),
    "early bird": lambda net, example: EarlyBird(net, example, HALF),
}
NUM_EPOCH_ENDS = 5
LR = 0.01


class Training:
    """A network, its optimizer and a method."""

    def __init__(self, net: nn.Module, method: Callable[[nn.Module, tuple[Tensor]], Method], images: Tensor) -> None:
        """Copy the network."""
        self.net = copy.deepcopy(net).train()
        self.method = method(self.net, (images[:1],))
        self.optimizer = torch.optim.SGD(self.net.parameters(), LR, momentum=0.9, weight_decay=1e-4)
        self.images, self.labels = images, torch.arange(len(images)) % 10

    def step(self) -> tuple[float, float]:
        """Take a step; return its time, and that of the method's own calls in it, in milliseconds."""
        start = time.process_time()
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.net(self.images), self.labels).backward()
        calls = _ms(lambda: self.method.after_backward(self.net))
        self.optimizer.step()
        calls += _ms(lambda: self.method.after_step(self.net, LR))
        return (time.process_time() - start) * 1e3, calls

    def end_epoch(self, epoch: int) -> float:
        """Return the time of the call at the end of an epoch, in milliseconds."""
        return _ms(lambda: self.method.after_epoch(self.net, epoch))


def _ms(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def rows_of(name: str, rounds: int, warmup: int = 2) -> list[dict[str, Any]]:
    """Return a row for each method on one network."""
    side, batch = NETWORKS[name]
    torch.manual_seed(0)
    net, images = build_classifier(Architecture(name, 10)), torch.randn(batch, 3, side, side)
    trainings = {method: Training(net, make, images) for method, make in IN_STEPS.items()}
    samples: dict[str, list[tuple[float, float]]] = {method: [] for method in trainings}
    for index in range(warmup + rounds):
        for method in order_of_round(list(trainings), index):
            samples[method].append(trainings[method].step())
    kept = {method: times[warmup:] for method, times in samples.items()}
    rows = [{"network": name, "batch": batch, "side": side, **_in_steps(m, kept)} for m in kept if m != "plain"]
    for method, make in AT_EPOCHS.items():
        training = Training(net, make, images)
        times = [training.end_epoch(epoch) for epoch in range(NUM_EPOCH_ENDS)]
        rows.append({"network": name, "batch": batch, "side": side, "method": method, "epoch_end_samples_ms": times})
    return rows


def _in_steps(method: str, samples_ms: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    (plain, _), (own, calls) = (zip(*samples_ms[name], strict=True) for name in ("plain", method))
    more = speedup_from_samples(own, plain)  # median of the method's step / median of the plain one
    shares = {"share": more.ratio - 1, "share_low": more.low - 1, "share_high": more.high - 1}
    return {"method": method, **shares, "plain_samples_ms": plain, "samples_ms": own, "calls_ms": calls}


def cells(row: dict[str, Any]) -> list[str]:
    """Return the row as text."""
    where = [row["network"], str(row["batch"]), row["method"]]
    if "share" not in row:
        return [*where, "", "", "", f"{latency_from_samples(row['epoch_end_samples_ms']).median_ms:.0f}"]
    plain_ms = latency_from_samples(row["plain_samples_ms"]).median_ms
    share = f"{row['share']:+.1%} ({row['share_low']:+.1%} to {row['share_high']:+.1%})"
    return [*where, f"{plain_ms:.0f}", share, f"{latency_from_samples(row['calls_ms']).median_ms / plain_ms:.2%}", ""]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [row for name in NETWORKS for row in rows_of(name, arguments.rounds)]
    columns = [
        "network",
        "batch",
        "method",
        "plain step (CPU ms)",
        "added to a step",
        "own calls",
        "end of an epoch (CPU ms)",
    ]
    conditions = {"threads": arguments.threads, "rounds": arguments.rounds, "dtype": "float32", "clock": "CPU time"}
    table = [cells(row) for row in results]
    write_cpu_record(arguments.record, "methods in training", conditions, results, columns, table)


if __name__ == "__main__":
    main()
