"""Measure the fixed-shape detector's NMS: rounds of arithmetic against ONNX's NonMaxSuppression, on the same boxes.

Run:     python benchmarks/nms_speed.py RECORD.json [--rounds 50] [--threads 2]
Writes:  a record: times of both in ONNX Runtime and in OpenVINO, measured alternately, and how many boxes both keep

Boxes are distributed like proposals: many around each of a few objects, best first. Both must keep the same boxes.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import write_cpu_record
from torch import Tensor, nn

from deploy import Arrays, Measurement, OnnxRunner, Runner, measure, onnx_from_module
from deploy.runtimes.openvino import OpenVinoRunner
from detect.fixed_boxes import keep_best, keep_by_operator
from detect.fixed_shape import NMS_ITERATIONS, Suppress

NUM_BOXES = (1000, 2000)
NUM_OBJECTS = 40
IOU_THRESHOLD = 0.7
FORMS: dict[str, Suppress] = {"rounds": partial(keep_best, num_iterations=NMS_ITERATIONS), "operator": keep_by_operator}
RUNTIMES = {"ONNX Runtime": OnnxRunner, "OpenVINO": OpenVinoRunner}


class Nms(nn.Module):
    """NMS alone, with float32 outputs; every box is valid."""

    def __init__(self, suppress: Suppress) -> None:
        """Set the form of NMS."""
        super().__init__()
        self.suppress = suppress

    def forward(self, boxes_1X4: Tensor) -> tuple[Tensor, Tensor]:
        """Return which boxes (1, X, 4) are kept, float32 (1, X), and whether the rounds were enough (1,)."""
        valid_1X = boxes_1X4[..., 2] > boxes_1X4[..., 0]
        keep_1X, converged_1 = self.suppress(boxes_1X4, valid_1X, IOU_THRESHOLD)
        return keep_1X.float(), converged_1.float()


def crowded_boxes(num_boxes: int) -> Tensor:
    """Return boxes (1, X, 4) in an image of 800 x 1344 pixels, each near one of the objects."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(NUM_OBJECTS, 2, generator=generator) * torch.tensor([1344.0, 800.0])
    size = 30 + 200 * torch.rand(NUM_OBJECTS, 2, generator=generator)
    which = torch.randint(NUM_OBJECTS, (num_boxes,), generator=generator)
    centre_X2 = centre[which] + 0.1 * size[which] * torch.randn(num_boxes, 2, generator=generator)
    size_X2 = size[which] * (0.15 * torch.randn(num_boxes, 2, generator=generator)).exp()
    return torch.cat([centre_X2 - size_X2 / 2, centre_X2 + size_X2 / 2], -1)[None]


def timed(num_boxes: int, rounds: int, threads: int) -> tuple[Measurement, int]:
    """Return the times of every form in every runtime, and how many boxes all of them keep."""
    boxes = crowded_boxes(num_boxes)
    inputs: Arrays = {"boxes": boxes.numpy()}
    runners: dict[str, Runner] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form, suppress in FORMS.items():
            file = Path(folder) / f"{form}.onnx"
            onnx_from_module(Nms(suppress).eval(), {"boxes": boxes}, file, ["keep", "converged"])
            runners |= {f"{form}, {name}": open_file(file, num_threads=threads) for name, open_file in RUNTIMES.items()}
        return measure(runners, inputs, warmup=5, rounds=rounds), num_kept(runners, inputs)


def num_kept(runners: dict[str, Runner], inputs: Arrays) -> int:
    """Return how many boxes are kept; raises if the runners disagree or the rounds were too few."""
    found = [runner.run(inputs) for runner in runners.values()]
    for outputs in found:
        if not outputs["converged"].all() or not np.array_equal(outputs["keep"], found[0]["keep"]):
            raise RuntimeError(f"NMS: {', '.join(runners)} disagree, got different boxes; expected the same ones")
    return int(found[0]["keep"].sum())


def rows_of(num_boxes: int, kept: int, measurement: Measurement) -> list[dict[str, Any]]:
    """Return the medians of both forms, in milliseconds, one row for each runtime."""
    median_ms = {name: latency.median_ms for name, latency in measurement.latencies.items()}
    return [
        {"boxes": num_boxes, "kept": kept, "runtime": runtime}
        | {form: median_ms[f"{form}, {runtime}"] for form in FORMS}
        | {f"{form}_samples": measurement.latencies[f"{form}, {runtime}"].samples_ms for form in FORMS}
        for runtime in RUNTIMES
    ]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    results = []
    for num_boxes in NUM_BOXES:
        measurement, kept = timed(num_boxes, arguments.rounds, arguments.threads)
        results += rows_of(num_boxes, kept, measurement)
    columns = ["boxes", "kept", "runtime", f"{NMS_ITERATIONS} iterations (ms)", "NonMaxSuppression (ms)"]
    table = [
        [str(row["boxes"]), str(row["kept"]), row["runtime"], f"{row['rounds']:.1f}", f"{row['operator']:.1f}"]
        for row in results
    ]
    conditions = {"threads": arguments.threads, "rounds": arguments.rounds}
    write_cpu_record(arguments.record, "suppression of boxes", conditions, results, columns, table)


if __name__ == "__main__":
    main()
