"""Measure mAP and time of each precision, for one trained detector and with the same files.

Run:     python benchmarks/precisions.py RECORD.json MODEL --root FOLDER [--rounds 50] [--threads 1]
Expects: FOLDER/instances_train.json to calibrate int8, FOLDER/instances_val.json to score on, FOLDER/images
Writes:  a record: mAP of every exported file in ONNX Runtime and of the model in PyTorch, and times, taken alternately
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from records import write_cpu_record
from rich.console import Console

from deploy import Measurement, OnnxRunner, measure, random_inputs
from detect.data import CocoSet
from detect.deployed import evaluate_deployed
from detect.export import export_file
from detect.export_config import ExportConfig, Pictures

FORMS = {
    "fp32": {"precision": "fp32"},
    "fp32, for ONNX Runtime": {"precision": "fp32", "runtime": "onnxruntime"},
    "fp16": {"precision": "fp16"},
    "int8": {"precision": "int8"},
    "int8, for ONNX Runtime": {"precision": "int8", "runtime": "onnxruntime"},
}
"""Row -> keys of an export config; those without a runtime are built by every engine."""


def exported(model: Path, root: Path, work: Path) -> dict[str, Path]:
    """Export the model in every form and return the ONNX files."""
    pictures = Pictures(annotations=root / "instances_train.json", images=root / "images")
    files = {}
    for name, keys in FORMS.items():
        folder = work / name.replace(", ", "-").replace(" ", "-")
        export_file(model, ExportConfig(**keys, pictures=pictures), folder)
        files[name] = folder / "model.onnx"
    return files


def timed(files: dict[str, Path], rounds: int, threads: int) -> Measurement:
    """Time all files alternately on the same input."""
    runners = {name: OnnxRunner(path, num_threads=threads) for name, path in files.items()}
    return measure(runners, random_inputs(next(iter(runners.values())).inputs), warmup=5, rounds=rounds)


def results(files: dict[str, Path], model: Path, root: Path, measurement: Measurement) -> list[dict[str, Any]]:
    """Return mAP and time of every file."""
    coco = CocoSet(root / "instances_val.json", root / "images")
    rows = []
    for name, path in files.items():
        figures = evaluate_deployed(path, coco, model, None, Console(stderr=True)).figures
        speedup = measurement.speedups.get(name)
        latency = measurement.latencies[name]
        figures |= {"name": name, "latency_ms": latency.median_ms, "samples_ms": latency.samples_ms}
        rows.append({**figures, "speedup": [speedup.ratio, speedup.low, speedup.high] if speedup else None})
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows for the documents."""
    cells = []
    for row in rows:
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(*row["speedup"]) if row["speedup"] else "1"
        points = f"{100 * row['difference']:+.2f}"
        cells.append(
            [row["name"], f"{row['map']:.4f}", f"{row['map50']:.4f}", points, f"{row['latency_ms']:.1f}", ratio]
        )
    return cells


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = exported(arguments.model, arguments.root, Path(folder))
        measurement = timed(files, arguments.rounds, arguments.threads)
        rows = results(files, arguments.model, arguments.root, measurement)
    columns = ["file", "mAP", "mAP50", "points from PyTorch", "median (ms)", "times as fast (95 %)"]
    conditions = {"threads": arguments.threads, "rounds": arguments.rounds}
    write_cpu_record(arguments.record, "precisions of one detector", conditions, rows, columns, table(rows))


if __name__ == "__main__":
    main()
