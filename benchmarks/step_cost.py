"""Measure what a training step costs beside a plain PyTorch loop: same network, batches, optimizer and clipping.

Run:     python benchmarks/step_cost.py RECORD.json [--device cuda] [--rounds 10] [--seconds 2] [--threads 1]
Writes:  a record: milliseconds per step of both, measured alternately in one run, and their ratio with its interval

The plain loop loads, copies, normalises, computes, clips, steps and changes the rate; it reports nothing and never
reads the loss. Ours is `fit` as the commands call it, with its progress lines. Both hold their images in memory.
A round trains each for as many steps as take about `--seconds`; the first steps are not counted, nor is what happens
once an epoch. On a CPU the clock is the process's processor time, to which other programs add little.
"""

import argparse
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from records import write_cpu_record
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from classify.backbones import Architecture, build_classifier
from classify.data import MEAN, STD
from classify.mmengine_runner import silent, using_threads
from classify.schedule import Schedule
from classify.synthetic import SHAPES
from classify.train import fit, train_classifier
from command.progress import RunProgress
from deploy.latency import order_of_round, speedup_from_samples
from detect.config import DetectorSettings
from detect.model import new_detector
from detect.synthetic import write_scenes
from detect.train import train_loader

NUM_SKIPPED = 5
"""First steps of a round, which are slower in both loops."""
LR = 1e-4


class Photographs(Dataset[tuple[Tensor, int]]):
    """Random images in memory: `num` of them by number, of a few that are there."""

    def __init__(self, num: int, side: int) -> None:
        """Draw the images."""
        self.num, self.images = num, torch.randint(0, 256, (64, 3, side, side), dtype=torch.uint8)

    def __len__(self) -> int:
        """Return how many images there are."""
        return self.num

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self.images[index % 64], index % 10


@dataclass(frozen=True)
class Subject:
    """What is trained: by our loop, and by the plain one."""

    name: str
    batch: int
    ours: Callable[[int, "Stopwatch"], object]
    """Trains for so many steps; the stopwatch is called after each."""
    plain: Callable[[int, "Stopwatch"], object]


class Stopwatch:
    """Times the steps after the first ones, once the device has done them."""

    def __init__(self, num_steps: int, device: str) -> None:
        """Set the number of steps."""
        self.num_steps, self.device, self.done = num_steps, device, 0

    def __call__(self) -> None:
        """Count a step."""
        self.done += 1
        if self.done in (NUM_SKIPPED, self.num_steps):
            if self.device == "cuda":
                torch.cuda.synchronize()
            now = time.process_time() if self.device == "cpu" else time.perf_counter()
            self.start, self.end = (now, now) if self.done == NUM_SKIPPED else (self.start, now)

    @property
    def ms_per_step(self) -> float:
        """Mean of the steps that count."""
        return 1e3 * (self.end - self.start) / (self.num_steps - NUM_SKIPPED)


class WatchedProgress(RunProgress):
    """The progress lines of the commands, and a stopwatch."""

    def __init__(self, watch: Stopwatch) -> None:
        """Print nowhere."""
        super().__init__(Console(file=io.StringIO()), [1.0])
        self.watch = watch

    def __call__(self, *report: Any) -> None:
        """Report and count a step."""
        super().__call__(*report)
        self.watch()


def classifier(name: str, side: int, batch: int, device: str) -> Subject:
    """Return a classifier of ten classes on square images."""
    net = build_classifier(Architecture(name, 10))

    def ours(num_steps: int, watch: Stopwatch) -> None:
        with tempfile.TemporaryDirectory() as folder, WatchedProgress(watch).stage("train") as progress:
            data = Photographs(num_steps * batch, side)
            train_classifier(net, data, schedule_of(batch), Path(folder), 0, progress)

    def plain(num_steps: int, watch: Stopwatch) -> None:
        net.to(device).train()
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
        loader = DataLoader(Photographs(num_steps * batch, side), batch, shuffle=True, pin_memory=device == "cuda")

        def losses() -> Iterator[Tensor]:
            for images, labels in loader:
                scores = net((images.to(device, non_blocking=True) - mean) / std)
                yield nn.functional.cross_entropy(scores, labels.to(device, non_blocking=True))

        plain_loop(net, losses(), num_steps, watch)

    return Subject(f"{name}, {side} x {side}", batch, ours, plain)


class Scenes(Dataset[Any]):
    """Generated scenes as mmdet's pipeline makes them, in memory: `num` of them by number, of a few that are there."""

    def __init__(self, num: int, ready: list[Any]) -> None:
        """Set the scenes."""
        self.num, self.ready = num, ready

    def __len__(self) -> int:
        """Return how many scenes there are."""
        return self.num

    def __getitem__(self, index: int) -> Any:
        """Return a scene and its boxes."""
        return self.ready[index % len(self.ready)]


def detector(side: int, batch: int, device: str) -> Subject:
    """Return our Faster R-CNN on ResNet-18, narrow on a CPU, with generated scenes."""
    narrow = DetectorSettings((side, side), fpn_channels=64, head_channels=128, num_proposals=100, roi_samples=64)
    settings = narrow if device == "cpu" else DetectorSettings((side, side))
    net, card = new_detector(Architecture("resnet18", 1), SHAPES, settings, 0)
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope("mmdet"), silent():
        loader = train_loader(card, write_scenes(Path(folder), 16, (side, side), seed=0))
        dataset = DATASETS.build(loader["dataset"])
        ready = [dataset[index] for index in range(len(dataset))]

    def ours(num_steps: int, watch: Stopwatch) -> None:
        with tempfile.TemporaryDirectory() as folder, WatchedProgress(watch).stage("train") as progress:
            loader = {"dataset": Scenes(num_steps * batch, ready)}
            fit(net, loader, schedule_of(batch), Path(folder), 0, progress, scope="mmdet")

    def plain(num_steps: int, watch: Stopwatch) -> None:
        net.to(device).train()
        scenes = Scenes(num_steps * batch, ready)
        loader = DataLoader(scenes, batch, shuffle=True, collate_fn=pseudo_collate, pin_memory=device == "cuda")

        def losses() -> Iterator[Tensor]:
            for samples in loader:
                data = net.data_preprocessor(samples, True)
                found = net.loss(data["inputs"], data["data_samples"])
                parts = [found[name] for name in found if "loss" in name]
                yield sum(sum(part) if isinstance(part, list) else part for part in parts)

        plain_loop(net, losses(), num_steps, watch)

    return Subject(f"Faster R-CNN on ResNet-18, {side} x {side}", batch, ours, plain)


def plain_loop(net: nn.Module, losses: Iterator[Tensor], num_steps: int, watch: Stopwatch) -> None:
    """Take steps of SGD at a cosine's rate, with clipped gradients."""
    sgd = torch.optim.SGD(net.parameters(), LR, momentum=0.9, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, num_steps)
    for loss in losses:
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        sgd.step()
        sgd.zero_grad()
        rate.step()
        watch()


def schedule_of(batch: int) -> Schedule:
    """Return a schedule of one epoch as `plain_loop` has it."""
    return Schedule(1, batch, LR, "SGD", warmup_iters=0)


def steps_in(subject: Subject, seconds: float, device: str) -> int:
    """Return how many steps of the plain loop take so long; it warms up, too."""
    watch = Stopwatch(2 * NUM_SKIPPED, device)
    subject.plain(2 * NUM_SKIPPED, watch)
    return NUM_SKIPPED + max(NUM_SKIPPED, math.ceil(1e3 * seconds / watch.ms_per_step))


def measured(subject: Subject, num_steps: int, rounds: int, device: str) -> dict[str, Any]:
    """Return the times of both loops, and ours / plain."""
    loops = {"plain": subject.plain, "ours": subject.ours}
    samples: dict[str, list[float]] = {name: [] for name in loops}
    for index in range(rounds):
        for name in order_of_round(list(loops), index):
            watch = Stopwatch(num_steps, device)
            loops[name](num_steps, watch)
            samples[name].append(watch.ms_per_step)
    ratio = speedup_from_samples(samples["ours"], samples["plain"])  # median / median
    milliseconds = {name: statistics.median(found) for name, found in samples.items()}
    return {
        "net": subject.name,
        "batch": subject.batch,
        "steps_per_round": num_steps - NUM_SKIPPED,
        **milliseconds,
        "ratio": ratio.ratio,
        "low": ratio.low,
        "high": ratio.high,
        "samples_ms": samples,
    }


def subjects(device: str) -> list[Subject]:
    """Return what is measured: small networks, whose steps are short; larger ones on a GPU."""
    if device == "cpu":
        return [
            classifier("resnet20_cifar", 32, 32, device),
            classifier("resnet18", 64, 16, device),
            classifier("resnet18", 224, 4, device),
            detector(128, 2, device),
        ]
    return [
        classifier("resnet20_cifar", 32, 128, device),
        classifier("resnet18", 64, 128, device),
        classifier("resnet18", 224, 128, device),
        detector(512, 4, device),
    ]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    device = arguments.device
    with using_threads(arguments.threads):
        results = [
            measured(one, steps_in(one, arguments.seconds, device), arguments.rounds, device)
            for one in subjects(device)
        ]
    columns = ["network, images", "batch", "plain loop (ms a step)", "ours (ms a step)", "ours / plain (95 % interval)"]
    table = [
        [
            *(row["net"], str(row["batch"]), f"{row['plain']:.2f}", f"{row['ours']:.2f}"),
            f"{row['ratio']:.3f} ({row['low']:.3f} to {row['high']:.3f})",
        ]
        for row in results
    ]
    conditions: dict[str, Any] = {name: getattr(arguments, name) for name in ("rounds", "seconds", "threads")}
    if device == "cuda":
        conditions |= {"kind": "training steps, measured on a GPU", "device": torch.cuda.get_device_name()}
    write_cpu_record(arguments.record, "training steps", conditions, results, columns, table)


if __name__ == "__main__":
    main()
