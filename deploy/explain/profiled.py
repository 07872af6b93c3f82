"""The files to explain, opened and measured: their latency, the time of every node, and what the machine can do."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from command.errors import RequestError
from command.files import existing_file, sha256_of
from command.progress import RunProgress
from deploy.deployment import deployed_file
from deploy.engine import read_engine_info
from deploy.explain.causes import Ceilings, Split, split_of, stages_of
from deploy.explain.node_times import EngineProfiler, NodeTime, OnnxProfiler
from deploy.explain.onnx_layers import OnnxGraph
from deploy.explain.roofline import Roofline, measure_roofline
from deploy.latency import measure_with_progress
from deploy.onnx_file import load_onnx, with_input_shapes
from deploy.record import Record, record_from_measurement
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.registry import ENGINE
from deploy.runtimes.tensorrt import EngineRunner
from deploy.tensors import Arrays, random_inputs, with_shapes

__all__ = ["Profiled", "Subject", "ceilings_of", "measured_on", "open_subject", "profile"]

_WARMUP = 5
_REMEDY = "expected a folder that espalier deploy export wrote, the ONNX file in it, or an engine"
_Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Subject:
    """A file to explain, and the graph in it."""

    path: Path
    backend: str | None
    """The backend that built it; None for an ONNX file."""
    graph: OnnxGraph

    @property
    def kind(self) -> str:
        """What it is, for messages."""
        return f"an engine for {self.backend}" if self.backend else "an ONNX file"


@dataclass(frozen=True)
class Profiled:
    """Result of `profile`; all but the record and the roofline in the order of the files."""

    record: Record
    """Latency of all files, run without profiling."""
    roofline: Roofline
    times: tuple[tuple[NodeTime, ...], ...]
    stages: tuple[dict[str, str], ...]
    """The stage of every node."""
    splits: tuple[Split, ...]


def open_subject(path: Path, shapes: _Shapes, *, is_partial: bool = False) -> Subject:
    """Return a deployed folder's ONNX file, another one, or an engine with the ONNX file that it was built from.

    Args:
        path: The folder or file.
        shapes: Of inputs of an ONNX file with free dimensions; an engine's are fixed.
        is_partial: Whether to leave out layers of unknown size, as those behind ONNX's NonMaxSuppression.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If it is not readable, or a layer has a free dimension.
    """
    path = deployed_file(path, _REMEDY)
    if path.suffix != ENGINE:
        return Subject(path, None, _graph(path, shapes, is_partial))
    info = read_engine_info(path)
    onnx = path.parent / (info.onnx_file or f"{path.stem}.onnx")
    existing_file(onnx, "expected the file that the engine was built from, beside it")
    if sha256_of(onnx) != info.onnx_sha256:
        raise RequestError(
            f"{onnx}: changed since {path.name} was built from it, got another sha256; "
            f"rebuild it with: espalier deploy build {shlex.quote(str(onnx))}"
        )
    built = {name: spec.fixed_shape(name) for name, spec in info.inputs.items()}
    return Subject(path, info.backend, _graph(onnx, built, is_partial))


def _graph(path: Path, shapes: _Shapes, is_partial: bool) -> OnnxGraph:
    try:
        return OnnxGraph(with_input_shapes(load_onnx(path), shapes), is_partial=is_partial)
    except ValueError as error:
        raise RequestError(f"{error}" if str(path) in str(error) else f"{path}: {error}") from error


def profile(
    subjects: Mapping[str, Subject], num_threads: int, rounds: int, shapes: _Shapes, console: Console
) -> Profiled:
    """Measure files of one kind by name, alternately in one process, first as they are and then node by node.

    Raises:
        RequestError: If they differ in precision or inputs.
        WorkError: If they are engines and there is no GPU.
    """
    runners = {name: _runner(subject, num_threads) for name, subject in subjects.items()}
    _check_precision(" and ".join(str(subject.path) for subject in subjects.values()), runners.values())
    first = next(iter(runners.values()))
    inputs = random_inputs(with_shapes(first.inputs, shapes))
    progress = RunProgress(console, [1.0, 2.0, 2.0])
    with progress.stage("latency"):
        measurement = measure_with_progress(runners, inputs, _WARMUP, rounds, progress)
    with progress.stage("every node"):
        times = _node_times(subjects, num_threads, inputs, rounds, progress)
    with progress.stage("what the machine can do"):
        roofline = measure_roofline(first)
    macs = {name: sum(layer.macs for layer in one.graph.layers.values()) for name, one in subjects.items()}
    files = {name: str(subject.path) for name, subject in subjects.items()}
    record = record_from_measurement(measurement, runners, inputs, macs=macs, config=files)
    graphs = [subject.graph for subject in subjects.values()]
    stages = tuple(stages_of(graph) for graph in graphs)
    splits = tuple(split_of(*parts) for parts in zip(times, graphs, stages, strict=True))
    return Profiled(record, roofline, times, stages, splits)


def measured_on(record: Record) -> str:
    """Return the line that names the device, runtime and conditions of a record."""
    device, conditions, reference = record.device, record.conditions, record.candidates[record.reference]
    order = " in alternating order" if len(record.candidates) > 1 else ""
    return (
        f"measured on {device.text}, {reference.runtime}, {reference.precision}, batch {reference.batch}, "
        f"{conditions.rounds} rounds{order}"
    )


def ceilings_of(profiled: Profiled, rates: Mapping[str, float]) -> tuple[Ceilings, str]:
    """Return the ceilings, and what reached the peak: with Winograd or int8 a layer can exceed a float product.

    Args:
        profiled: Result of `profile`.
        rates: MACs per millisecond that layers reached, by name.
    """
    roofline = profiled.roofline
    side = roofline.matrix_side
    product = f"a product of {side} x {side} matrices in {roofline.precision}"
    reached = {product: roofline.macs_per_s / 1000, **rates}
    peak_of = max(reached, key=lambda name: reached[name])
    times_ms = [ms for split in profiled.splits for ms in split.nodes_ms if ms > 0]
    if not times_ms:
        raise RequestError("explain: nothing to measure, got a file that computes nothing; expected layers")
    shortest_ms = min(times_ms)
    return Ceilings(reached[peak_of], roofline.bytes_per_s / 1000, shortest_ms), peak_of


def _runner(subject: Subject, num_threads: int) -> OnnxRunner | EngineRunner:
    return EngineRunner(subject.path) if subject.backend else OnnxRunner(subject.path, num_threads=num_threads)


def _check_precision(subject: str, runners: Iterable[OnnxRunner | EngineRunner]) -> None:
    precisions = [runner.precision for runner in runners]
    if len(set(precisions)) > 1:
        raise RequestError(
            f"{subject}: cannot be compared, got {' and '.join(precisions)}; expected the same precision"
        )


def _node_times(
    subjects: Mapping[str, Subject], num_threads: int, inputs: Arrays, rounds: int, progress: RunProgress
) -> tuple[tuple[NodeTime, ...], ...]:
    profilers = {
        name: EngineProfiler(subject.path) if subject.backend else OnnxProfiler(subject.path, num_threads=num_threads)
        for name, subject in subjects.items()
    }
    measure_with_progress(profilers, inputs, _WARMUP, rounds, progress)
    return tuple(profiler.node_times(rounds) for profiler in profilers.values())
