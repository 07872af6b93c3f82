"""Measure what an experiment costs besides the work of its stages, and what a second process saves.

Run:     python benchmarks/conductor_speed.py RECORD.json [--config quickstart] [--rounds 3]
Needs:   an idle machine with two cores
Writes:  a record: seconds to find everything done in a matrix of about 500 stages; the wall time of a run of the config
         beside the sum of its stages' times; its wall time with one process and with two, of one thread each

The stages of the matrix are empty folders with whole records. Runs are commands of their own, in alternating order.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from records import write_cpu_record

from command.config import config_file, read_config
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.results import RESULTS
from experiment.stages import StageStore

MATRIX = (
    "backbones={'resnet18': {}, 'resnet34': {'name': 'resnet34'}}",
    "methods={'ratios': {'prune_ratios': [0.5, 0.7]}, 'taylor': {'criterion': 'taylor'}}",
    "seeds=[0, 1, 2]",
)


def matrix_row(folder: Path, rounds: int) -> dict[str, Any]:
    """Time how long it takes to find that a matrix is done."""
    config = read_config(config_file("quickstart"), MATRIX, ExperimentConfig)
    store = StageStore(folder / "stages")
    stages = make_plan(config, store).stages
    for stage in stages:
        store.run(replace(stage, work=lambda *_: {}), lambda *_: None)

    def found() -> None:
        plan = make_plan(config, store)
        store.check(plan.stages)
        assert all(map(store.is_finished, plan.stages))

    return {"what": f"{len(stages)} stages found done", "seconds": [_seconds(found) for _ in range(rounds)]}


def run_rows(config: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Time whole runs with one process and with two, of one thread each, alternately."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    shares = []
    for turn in range(rounds):
        for jobs in (1, 2) if turn % 2 else (2, 1):
            out = folder / f"{turn}-{jobs}"
            command = ["run", config, "--out", str(out), "--jobs", str(jobs), "--set", "num_threads=1"]
            whole = _seconds(partial(subprocess.run, [sys.executable, "-m", "espalier", *command], check=True))
            seconds[jobs].append(whole)
            if jobs == 1:
                shares.append(1 - json.loads((out / RESULTS).read_text())["wall_s"] / whole)
    return [
        {"what": f"{config}, one process", "seconds": seconds[1]},
        {"what": f"{config}, two processes", "seconds": seconds[2]},
        {"what": "share of one process's time that is no stage's, imports and checks included", "shares": shares},
    ]


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _cells(row: dict[str, Any]) -> list[str]:
    if "shares" in row:
        return [row["what"], f"{statistics.median(row['shares']):.1%}"]
    return [row["what"], f"{statistics.median(row['seconds']):.1f} s"]


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [matrix_row(Path(folder) / "matrix", options.rounds)]
        rows += run_rows(options.config, Path(folder), options.rounds)
    conditions = {"config": options.config, "rounds": options.rounds}
    table = [_cells(row) for row in rows]
    write_cpu_record(options.record, "an experiment around its stages", conditions, rows, ["what", "median"], table)


if __name__ == "__main__":
    main()
