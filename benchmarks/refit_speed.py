"""Measure how long it takes to choose the channels of a VGG-16 on data, and to refit its weights.

Run:     python benchmarks/refit_speed.py RECORD.json [--images 100] [--positions 50] [--threads 2]
Writes:  a record: seconds and peak memory of each method, and the seconds of each layer

Half of every convolution goes but in the last, which the first linear layer reads. Weights and images are random: the
work is the same. Nothing is trained between the layers. Each method has a process of its own, for its peak memory.
"""

import argparse
import multiprocessing
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from records import write_cpu_record
from torchvision import models

from prune.refitting import METHODS, refit_model

BATCH = 10
"""Images in each."""
SKIP = ("features.28", "classifier.*")


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    method: str
    images: int
    positions: int
    side: int
    threads: int


def measured(task: Task) -> dict[str, Any]:
    """Return the seconds, those of all threads together, and the peak memory, in GiB, of one method."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(0)
    net = models.vgg16().eval()
    images = torch.randn(task.images, 3, task.side, task.side)
    at, began, cpu_began = [("", time.perf_counter())], time.perf_counter(), time.process_time()
    refit_model(
        net,
        (images[:1],),
        lambda: images.split(BATCH),
        0.5,
        method=task.method,
        num_positions=task.positions,
        between=lambda slim, group: at.append((group, time.perf_counter())),
        skip=SKIP,
    )
    ended, cpu = time.perf_counter(), time.process_time() - cpu_began
    layers = {name: end - start for (_, start), (name, end) in pairwise(at)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "method": task.method,
        "rows": task.images * task.positions,
        "seconds": ended - began,
        "cpu_seconds": cpu,
        "layer_seconds": layers,
        "peak_gib": peak / (2**30 if sys.platform == "darwin" else 2**20),
    }


COLUMNS = ("method", "rows", "seconds", "CPU seconds", "peak memory (GiB)")


def row(found: Mapping[str, Any]) -> list[str]:
    """Return the row of the table for what one process measured."""
    seconds = [f"{found[key]:.0f}" for key in ("seconds", "cpu_seconds")]
    return [found["method"], str(found["rows"]), *seconds, f"{found['peak_gib']:.1f}"]


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--positions", type=int, default=50, help="rows sampled from each image")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args(arguments)
    common = {key: value for key, value in vars(options).items() if key not in ("record", "methods")}
    tasks = [Task(method, **common) for method in options.methods]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = pool.map(measured, tasks, chunksize=1)
    write_cpu_record(options.record, "refitting a VGG-16", common, results, COLUMNS, [row(found) for found in results])


if __name__ == "__main__":
    main()
