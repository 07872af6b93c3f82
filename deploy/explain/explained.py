"""Why a slim network is not faster: time and MACs of every layer of two deployed files.

`causes` pairs the layers and finds the causes; `advice` suggests what to try and prints the report.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from command.errors import RequestError
from command.files import existing_file, sha256_of
from command.progress import RunProgress
from deploy.deployment import ONNX_NAME
from deploy.engine import read_engine_info
from deploy.explain.causes import (
    CAUSES,
    STAGES,
    Cause,
    Ceilings,
    MeasuredLayer,
    Split,
    paired_layers,
    reasons,
    row_of,
    split_of,
    stages_of,
)
from deploy.explain.node_times import EngineProfiler, NodeTime, OnnxProfiler
from deploy.explain.onnx_layers import OnnxGraph, OnnxLayer
from deploy.explain.roofline import Roofline, measure_roofline
from deploy.latency import measure_with_progress
from deploy.onnx_file import load_onnx
from deploy.record import Record, record_from_measurement, rows_from_record
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.registry import ENGINE
from deploy.runtimes.runner import Runner
from deploy.runtimes.tensorrt import EngineRunner
from deploy.tensors import Arrays, random_inputs

__all__ = ["Explained", "StageTimes", "explain_deployed", "measured_on"]

NAMES = ("dense", "slim")
_WARMUP = 5
_REMEDY = "expected a folder that espalier deploy export wrote, the ONNX file in it, or an engine"


@dataclass(frozen=True)
class StageTimes:
    """The nodes of a stage together, dense and slim."""

    stage: str
    dense_ms: float
    slim_ms: float
    dense_layers_ms: float
    """Time of its convolutions and matrix products with weights."""
    slim_layers_ms: float
    dense_macs: int
    macs: int


@dataclass(frozen=True)
class Explained:
    """Result of `explain_deployed`."""

    record: Record
    """Latency of both files, run without profiling."""
    roofline: Roofline
    ceilings: Ceilings
    peak_of: str
    """What reached the most MACs per second: the matrix product of the roofline, or a layer."""
    layers: tuple[MeasuredLayer, ...]
    stages: tuple[StageTimes, ...]
    """Without the layout changes that the runtime inserted."""
    splits: tuple[Split, Split]
    """Those of the dense and the slim file."""

    @property
    def is_pruned(self) -> bool:
        """Whether any layer is narrower."""
        return any(layer.row.sides_cut for layer in self.layers)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Latency of the dense and of the slim file."""
        return list(rows_from_record(self.record))

    def of(self, cause: Cause) -> tuple[MeasuredLayer, ...]:
        """Return the layers with this cause, those that lost most first."""
        found = [layer for layer in self.layers if any(reason.cause == cause for reason in layer.reasons)]
        return tuple(sorted(found, key=lambda layer: (-layer.lost_ms, -layer.slim.ms)))

    def peak_shares(self, layer: MeasuredLayer) -> tuple[float | None, float | None]:
        """Return the share of the peak that a layer reached, dense and slim; None without a time."""
        costs = (layer.row.dense_macs, layer.dense.ms), (layer.row.macs, layer.slim.ms)
        dense, slim = (macs / ms / self.ceilings.macs_per_ms if ms else None for macs, ms in costs)
        return dense, slim

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        device, conditions, rows = self.record.device, self.record.conditions, self.rows
        by_cause = {cause: found for cause in CAUSES if (found := self.of(cause))}
        return {
            "is_gpu": device.is_gpu,
            "device": device.name,
            "num_threads": device.num_threads,
            "runtime": rows[1]["runtime"],
            "precision": rows[1]["precision"],
            "batch": rows[1]["batch"],
            "rounds": conditions.rounds,
            "files": conditions.config,
            "latency": dict(zip(NAMES, rows, strict=True)),
            "nodes_ms": {name: split.total_ms for name, split in zip(NAMES, self.splits, strict=True)},
            "layout_ms": {name: split.layout_ms for name, split in zip(NAMES, self.splits, strict=True)},
            "ceilings": {**asdict(self.ceilings), "peak_of": self.peak_of, "roofline": asdict(self.roofline)},
            "stages": [asdict(stage) for stage in self.stages],
            "layers": [
                {**layer.to_dict(), "peak_share": dict(zip(NAMES, self.peak_shares(layer), strict=True))}
                for layer in self.layers
            ],
            "causes": {
                cause: {
                    "layers": [layer.row.name for layer in found],
                    "slim_ms": sum(layer.slim.ms for layer in found),
                    "lost_ms": sum(layer.lost_ms for layer in found),
                }
                for cause, found in by_cause.items()
            },
        }


@dataclass(frozen=True)
class _Subject:
    path: Path
    backend: str | None
    """The backend that built it; None for an ONNX file."""
    graph: OnnxGraph

    @property
    def kind(self) -> str:
        return f"an engine for {self.backend}" if self.backend else "an ONNX file"


def explain_deployed(dense: Path, slim: Path, num_threads: int, rounds: int, console: Console) -> Explained:
    """Measure two deployed files, alternately in one process, and compare every layer.

    Args:
        dense: A folder that `deploy export` wrote, an ONNX file, or an engine with its ONNX file beside it.
        slim: The same network, pruned; an engine for the same backend if `dense` is one.
        num_threads: CPU threads of ONNX Runtime.
        rounds: Measured rounds, >= 1.
        console: Shows progress.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If a file is not readable, or the two differ in network, kind or precision.
        WorkError: If an engine is given and there is no GPU.
    """
    subjects = _opened(dense, slim)
    pairs = paired_layers(subjects[0].graph, subjects[1].graph, f"{dense} and {slim}")
    runners = {name: _runner(subject, num_threads) for name, subject in zip(NAMES, subjects, strict=True)}
    _check_precision(f"{dense} and {slim}", runners)
    inputs = random_inputs(runners["dense"].inputs)
    progress = RunProgress(console, [1.0, 2.0, 2.0])
    with progress.stage("both files"):
        measurement = measure_with_progress(runners, inputs, _WARMUP, rounds, progress)
    with progress.stage("every node of both"):
        times = _node_times(subjects, num_threads, inputs, rounds, progress)
    with progress.stage("what the machine can do"):
        roofline = measure_roofline(runners["dense"])
    macs = {name: sum(layer.macs for layer in side) for name, side in zip(NAMES, zip(*pairs, strict=True), strict=True)}
    files = {name: str(subject.path) for name, subject in zip(NAMES, subjects, strict=True)}
    record = record_from_measurement(measurement, runners, inputs, macs=macs, config=files)
    return _explained(record, roofline, pairs, subjects, times)


def measured_on(record: Record) -> str:
    """Return the line that names the device, runtime and conditions of a record."""
    device, conditions, reference = record.device, record.conditions, record.candidates[record.reference]
    return (
        f"measured on {device.text}, {reference.runtime}, {reference.precision}, batch {reference.batch}, "
        f"{conditions.rounds} rounds in alternating order"
    )


def _opened(dense: Path, slim: Path) -> tuple[_Subject, _Subject]:
    first, second = _subject(dense), _subject(slim)
    if first.kind != second.kind:
        raise RequestError(
            f"{dense} and {slim}: cannot be compared, got {first.kind} and {second.kind}; expected two of the same kind"
        )
    return first, second


def _subject(path: Path) -> _Subject:
    path = existing_file(path / ONNX_NAME if path.is_dir() else path, _REMEDY)
    if path.suffix != ENGINE:
        return _Subject(path, None, _graph(path))
    info = read_engine_info(path)
    onnx = path.parent / (info.onnx_file or f"{path.stem}.onnx")
    existing_file(onnx, "expected the file that the engine was built from, beside it")
    if sha256_of(onnx) != info.onnx_sha256:
        raise RequestError(
            f"{onnx}: changed since {path.name} was built from it, got another sha256; "
            f"rebuild it with: espalier deploy build {shlex.quote(str(onnx))}"
        )
    return _Subject(path, info.backend, _graph(onnx))


def _graph(path: Path) -> OnnxGraph:
    try:
        return OnnxGraph(load_onnx(path))
    except ValueError as error:
        raise RequestError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error


def _runner(subject: _Subject, num_threads: int) -> OnnxRunner | EngineRunner:
    return EngineRunner(subject.path) if subject.backend else OnnxRunner(subject.path, num_threads=num_threads)


def _check_precision(subject: str, runners: Mapping[str, Runner]) -> None:
    precisions = [runner.precision for runner in runners.values()]
    if len(set(precisions)) > 1:
        raise RequestError(
            f"{subject}: cannot be compared, got {' and '.join(precisions)}; expected the same precision"
        )


def _node_times(
    subjects: Sequence[_Subject], num_threads: int, inputs: Arrays, rounds: int, progress: RunProgress
) -> list[tuple[NodeTime, ...]]:
    profilers = {
        name: EngineProfiler(subject.path) if subject.backend else OnnxProfiler(subject.path, num_threads=num_threads)
        for name, subject in zip(NAMES, subjects, strict=True)
    }
    measure_with_progress(profilers, inputs, _WARMUP, rounds, progress)
    return [profiler.node_times(rounds) for profiler in profilers.values()]


def _explained(
    record: Record,
    roofline: Roofline,
    pairs: Sequence[tuple[OnnxLayer, OnnxLayer]],
    subjects: Sequence[_Subject],
    times: Sequence[Sequence[NodeTime]],
) -> Explained:
    stages = [stages_of(subject.graph) for subject in subjects]
    parts = zip(times, subjects, stages, strict=True)
    dense, slim = (split_of(times, subject.graph, where) for times, subject, where in parts)
    layers = [
        MeasuredLayer(
            row=row_of(before, after),
            stage=stages[0][before.nodes[0]],
            calls=len(after.nodes),
            dense=dense.layers[before.name],
            slim=slim.layers[after.name],
        )
        for before, after in pairs
    ]
    ceilings, peak_of = _ceilings(roofline, layers, (dense, slim))
    if any(layer.row.sides_cut for layer in layers):
        layers = [replace(layer, reasons=tuple(reasons(layer, ceilings))) for layer in layers]
    found = _stage_times(layers, (dense, slim))
    return Explained(record, roofline, ceilings, peak_of, tuple(layers), tuple(found), (dense, slim))


def _ceilings(roofline: Roofline, layers: Sequence[MeasuredLayer], splits: tuple[Split, Split]) -> tuple[Ceilings, str]:
    """Return the ceilings, and what reached the peak: with Winograd or int8 a layer can exceed a float product."""
    side = roofline.matrix_side
    reached = {f"a product of {side} x {side} matrices in {roofline.precision}": roofline.macs_per_s / 1000}
    for layer in layers:
        for name, part, macs in (("dense", layer.dense, layer.row.dense_macs), ("slim", layer.slim, layer.row.macs)):
            if part.ms and part.is_alone:
                reached[f"{layer.row.name}, {name}"] = macs / part.ms
    peak_of = max(reached, key=lambda name: reached[name])
    shortest_ms = min(ms for split in splits for ms in split.nodes_ms if ms > 0)
    return Ceilings(reached[peak_of], roofline.bytes_per_s / 1000, shortest_ms), peak_of


def _stage_times(layers: Sequence[MeasuredLayer], splits: tuple[Split, Split]) -> Iterator[StageTimes]:
    rests = [split.rest_ms for split in splits]
    stages = [stage for stage in STAGES if stage in rests[0]] or list(rests[0])
    for stage in stages:
        inside = [layer for layer in layers if layer.stage == stage]
        dense_ms, slim_ms = sum(layer.dense.ms for layer in inside), sum(layer.slim.ms for layer in inside)
        yield StageTimes(
            stage=stage,
            dense_ms=dense_ms + rests[0][stage],
            slim_ms=slim_ms + rests[1].get(stage, 0.0),
            dense_layers_ms=dense_ms,
            slim_layers_ms=slim_ms,
            dense_macs=sum(layer.row.dense_macs for layer in inside),
            macs=sum(layer.row.macs for layer in inside),
        )
