"""Measure the report of a large experiment: time, memory and sizes, from its results to the written page.

Run:     python benchmarks/report_speed.py RECORD.json [--detectors 200]
Writes:  a record of reading `results.json`, and of writing the page with its tables

The results are generated: what COCO's validation set gives (draws of 5000 images, 80 classes, three sizes), for
detectors of a ResNet-50 in all orderings, at several ratios and with five seeds. Figures in them mean nothing.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from records import write_cpu_record

from experiment.report import write_report
from experiment.results import read_results

SEEDS, CLASSES, DRAWS, BINS = 5, 80, 200, 60
WAYS = (
    ("prune_transfer", "finetune"),
    ("transfer_prune", "finetune"),
    ("scratch_transfer", "scratch_e"),
    ("scratch_transfer", "scratch_b"),
)
LAYERS = {
    "conv1": 64,
    **{
        f"layer{stage}.{block}.conv{i}": 64 * 2 ** (stage - 1) * (4 if i == 3 else 1)
        for stage, num in enumerate((3, 4, 6, 3), 1)
        for block in range(num)
        for i in (1, 2, 3)
    },
}


def generated_results(num_rows: int, seed: int = 0) -> dict[str, Any]:
    """Return results of that many detectors at least."""
    random = np.random.default_rng(seed)
    lines = -(-num_rows // SEEDS) - 1
    kinds = [(*WAYS[i % len(WAYS)], round(0.05 + 0.9 * (i // len(WAYS)) * len(WAYS) / lines, 2)) for i in range(lines)]
    rows = [_row(*kind, number, random) for number in range(SEEDS) for kind in (("dense", None, 0.0), *kinds)]
    names = [row["name"] for row in rows]
    classes = [f"class {i}" for i in range(CLASSES)]
    first_seed = [row["name"] for row in rows if row["seed"] == 0]
    return {
        **_about(classes),
        "rows": rows,
        "draws": {row["name"]: (row["map"] + random.normal(0, 0.004, DRAWS)).clip(0, 1).tolist() for row in rows},
        "per_class": {
            name: dict(zip(classes, random.uniform(0.1, 0.7, CLASSES).tolist(), strict=True)) for name in names
        },
        "widths": {row["name"]: _widths(row["prune_ratio"]) for row in rows},
        "weights": {name: {layer: _histogram(random) for layer in list(LAYERS)[::9]} for name in first_seed},
    }


def _row(ordering: str, budget: str | None, ratio: float, seed: int, random: np.random.Generator) -> dict[str, Any]:
    name = "-".join(filter(None, (ordering, budget, f"{ratio:g}" if budget else None, f"seed{seed}")))
    mac_reduction = 1 / (1 - ratio * (1 - 0.3 * ratio))
    speedup = 1.0 if ordering == "dense" else mac_reduction**0.7 * random.normal(1, 0.01)
    score = 0.38 - 0.2 * ratio**2 + random.normal(0, 0.003)
    sizes = {"map_small": 0.5 * score, "map_medium": score, "map_large": 1.3 * score}
    return {
        **{"name": name, "ordering": ordering, "budget": budget, "method": "l1" if budget else None},
        **{"prune_ratio": ratio, "seed": seed, "map": score, "map50": 1.5 * score, "map_framework": score, **sizes},
        **{"top1": 0.7, "macs": int(207e9 / mac_reduction), "params": int(41.5e6 * (1 - 0.6 * ratio))},
        **{"runtime": "onnxruntime", "precision": "fp32", "latency_ms": 900 / speedup, "latency_p90_ms": 930 / speedup},
        **{"latency_p99_ms": 960 / speedup, "speedup": speedup},
        **{"speedup_low": 0.99 * speedup if budget else None, "speedup_high": 1.01 * speedup if budget else None},
        **{"mac_reduction": mac_reduction, "device": "generated", "train_epochs": {"train_detector": 12}},
        **{"train_macs": 10**18, "train_lr": {"train_detector": 0.02}},
        **{"model": f"stages/{name}/model.safetensors", "onnx": f"stages/{name}/model.onnx"},
        "stages": [f"{stage}-0123456789ab" for stage in ("train_classifier", "transfer", "train_detector", "export")],
    }


def _widths(ratio: float) -> dict[str, int]:
    return {layer: num if layer.endswith("conv3") else round(num * (1 - ratio)) for layer, num in LAYERS.items()}


def _histogram(random: np.random.Generator) -> dict[str, Any]:
    counts = np.histogram(random.normal(0, 0.02, 10_000), BINS, (-0.08, 0.08))[0]
    return {"widest": 0.08, "counts": counts.tolist(), "std": 0.02, "num": 10_000, "num_zeros": 0}


def _about(classes: list[str]) -> dict[str, Any]:
    return {
        **{"version": 1, "experiment": "generated", "created": "2026-01-01T00:00:00+00:00", "command": "espalier run"},
        **{"git_commit": None, "versions": {}, "config": {}, "wall_s": 1.0, "pictures": [], "notes": []},
        "dataset": {"name": "coco", "num_train": 118_287, "num_val": 5000, "classes": classes},
        "latency": {
            **{"device": "generated", "is_gpu": True, "runtime": "onnxruntime", "precision": "fp32", "warmup": 5},
            **{"input_shape": [1, 3, 800, 1344], "rounds": 100, "order": "alternating"},
        },
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--detectors", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        file.write_text(json.dumps(generated_results(arguments.detectors)))
        began, processor = time.perf_counter(), time.process_time()
        results = read_results(file)
        read = time.perf_counter() - began
        page = write_report(results, Path(folder))
        wall, processor = time.perf_counter() - began, time.process_time() - processor
        sizes = {"results_mb": file.stat().st_size / 1e6, "page_mb": page.stat().st_size / 1e6}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"detectors": len(results["rows"]), "classes": CLASSES, "draws": DRAWS, **sizes}
    found |= {"read_s": read, "wall_s": wall, "processor_s": processor, "peak_mb": memory}
    columns = [
        "detectors",
        "classes",
        "results.json (MB)",
        "report.html (MB)",
        "time (s)",
        "of the processor (s)",
        "memory (MB)",
    ]
    table = [
        [
            *(str(found[key]) for key in ("detectors", "classes")),
            *(f"{found[key]:.1f}" for key in ("results_mb", "page_mb", "wall_s", "processor_s")),
            f"{memory:.0f}",
        ]
    ]
    write_cpu_record(arguments.record, "the report of a large experiment", {}, [found], columns, table)


if __name__ == "__main__":
    main()
