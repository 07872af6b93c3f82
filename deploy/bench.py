"""Measures deployed folders and files against each other on the same random inputs, for `espalier deploy bench`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from command.errors import RequestError
from command.progress import RunProgress
from deploy.deployment import deployed_file
from deploy.latency import measure_with_progress
from deploy.record import Record, record_from_measurement, rows_from_record
from deploy.runtimes.module import OpenModel
from deploy.runtimes.registry import runner_for, runtimes_of
from deploy.runtimes.runner import FileRunner
from deploy.tensors import Arrays, TensorSpec, random_inputs, with_shapes

__all__ = ["bench_files", "figures_from_record"]

_REMEDY = "expected a folder that espalier deploy export wrote, an ONNX file, an engine or a model file"


def bench_files(
    models: Sequence[Path],
    runtimes: Sequence[str],
    *,
    warmup: int,
    rounds: int,
    num_threads: int,
    console: Console,
    open_model: OpenModel | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Record:
    """Return the record of all files in their runtimes, timed in alternating order.

    Args:
        models: Deployed folders (of which the ONNX file is measured), ONNX files, engines and, with `open_model`, model
            files; the first of a batch is the reference.
        runtimes: Names in `deploy.runtimes.registry.RUNTIMES`; each runs the files of its kind. Files that none of
            them can run use the default runtime of their kind.
        warmup: Rounds that are run first and discarded.
        rounds: Measured rounds.
        num_threads: CPU threads of a runtime.
        console: Shows progress.
        open_model: Opens model files.
        shapes: Of inputs with free dimensions, by name.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If a free dimension has no size, a file or runtime is given twice, a runtime is unknown or runs
            none of the files, or inputs differ in more than their batch.
        WorkError: If a runtime needs a GPU and finds none.
    """
    files = [deployed_file(path, _REMEDY) for path in models]
    _refuse_repeated("a file", "each file once", files)
    _refuse_repeated("a runtime", "each runtime once", runtimes)
    runners = _runners(dict(zip(files, models, strict=True)), runtimes, num_threads, open_model)
    inputs = _inputs({name: with_shapes(runner.inputs, shapes or {}) for name, runner in runners.items()})
    progress = RunProgress(console, [1.0])
    with progress.stage("measure"):
        measurement = measure_with_progress(runners, inputs, warmup, rounds, progress)
    config = {"models": [str(path) for path in models], "runtimes": list(runtimes), "shapes": dict(shapes or {})}
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
    files: Mapping[Path, Path], named: Sequence[str], num_threads: int, open_model: OpenModel | None
) -> dict[str, FileRunner]:
    """Open every file in its runtimes; rows have the name given for the file, and the runtime if there are several."""
    pairs = runtimes_of(list(files), named)
    is_plain = len({runtime for _, runtime in pairs}) == 1
    return {
        str(files[file]) if is_plain else f"{files[file]} ({runtime})": runner_for(
            file, runtime, num_threads, open_model=open_model
        )
        for file, runtime in pairs
    }


def _inputs(wanted: Mapping[str, Mapping[str, TensorSpec]]) -> dict[str, Arrays]:
    """Return random inputs for every runner's; only the batch and the dtype may differ between files."""
    first = _sizes(next(iter(wanted.values())))
    for name, specs in wanted.items():
        if (got := _sizes(specs)) != first:
            raise RequestError(f"{name}: inputs differ from the first file's, got {got}; expected {first}, any batch")
    return {name: random_inputs(specs) for name, specs in wanted.items()}


def _sizes(specs: Mapping[str, TensorSpec]) -> dict[str, tuple[int | None, ...]]:
    """Return the shapes without the batch."""
    return {name: spec.shape[1:] for name, spec in specs.items()}
