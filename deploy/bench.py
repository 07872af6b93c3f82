"""Measures files against each other on the same random inputs, for `espalier deploy bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from command.errors import RequestError
from command.progress import RunProgress
from deploy.latency import measure_with_progress
from deploy.record import Record, record_from_measurement, rows_from_record
from deploy.runtimes.module import OpenModel
from deploy.runtimes.registry import runner_for, runtimes_of
from deploy.runtimes.runner import FileRunner
from deploy.tensors import Arrays, random_inputs

__all__ = ["bench_files", "figures_from_record"]


def bench_files(
    models: Sequence[Path],
    runtimes: Sequence[str],
    *,
    warmup: int,
    rounds: int,
    num_threads: int,
    console: Console,
    open_model: OpenModel | None = None,
) -> Record:
    """Return the record of all files in their runtimes, timed in alternating order.

    Args:
        models: ONNX files, engines and, with `open_model`, model files; the first of a batch is the reference.
        runtimes: Names in `deploy.runtimes.registry.RUNTIMES`; each runs the files of its kind. Files that none of
            them can run use the default runtime of their kind.
        warmup: Rounds that are run first and discarded.
        rounds: Measured rounds.
        num_threads: CPU threads of a runtime.
        console: Shows progress.
        open_model: Opens model files.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If a file or runtime is given twice, a runtime is unknown or runs none of the files, or inputs
            differ in more than their batch.
        WorkError: If a runtime needs a GPU and finds none.
    """
    _refuse_repeated("a file", "each file once", models)
    _refuse_repeated("a runtime", "each runtime once", runtimes)
    runners = _runners(models, runtimes, num_threads, open_model)
    inputs = _inputs(runners)
    progress = RunProgress(console, [1.0])
    with progress.stage("measure"):
        measurement = measure_with_progress(runners, inputs, warmup, rounds, progress)
    config = {"models": [str(path) for path in models], "runtimes": list(runtimes)}
    return record_from_measurement(measurement, runners, inputs, config=config)


def figures_from_record(record: Record) -> dict[str, Any]:
    """Return a record's figures and conditions as JSON values, without the samples."""
    return {
        "is_gpu": record.is_gpu,
        "device": record.device.name,
        "num_threads": record.device.num_threads,
        "rounds": record.conditions.rounds,
        "warmup": record.conditions.warmup,
        "gpu_warning": record.gpu.warning if record.gpu else None,
        "rows": rows_from_record(record),
    }


def _refuse_repeated(what: str, expected: str, got: Sequence[object]) -> None:
    if len(set(got)) != len(got):
        raise RequestError(f"bench: {what} is given twice, got {' '.join(map(str, got))}; expected {expected}")


def _runners(
    models: Sequence[Path], named: Sequence[str], num_threads: int, open_model: OpenModel | None
) -> dict[str, FileRunner]:
    """Open every file in its runtimes; rows are named after the file, and the runtime if there are several."""
    pairs = runtimes_of(models, named)
    is_plain = len({runtime for _, runtime in pairs}) == 1
    return {
        str(path) if is_plain else f"{path} ({runtime})": runner_for(path, runtime, num_threads, open_model=open_model)
        for path, runtime in pairs
    }


def _inputs(runners: Mapping[str, FileRunner]) -> dict[str, Arrays]:
    """Return random inputs for every runner; only the batch and the dtype may differ between files."""
    wanted = _sizes(next(iter(runners.values())))
    for name, runner in runners.items():
        if (got := _sizes(runner)) != wanted:
            raise RequestError(f"{name}: inputs differ from the first file's, got {got}; expected {wanted}, any batch")
    return {name: random_inputs(runner.inputs) for name, runner in runners.items()}


def _sizes(runner: FileRunner) -> dict[str, tuple[int | None, ...]]:
    """Return the input shapes without the batch."""
    return {name: spec.shape[1:] for name, spec in runner.inputs.items()}
