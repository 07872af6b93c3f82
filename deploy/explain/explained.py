"""Why a slim network is not faster: time and MACs of every layer of two deployed files.

`causes` pairs the layers and finds the causes; `advice` suggests what to try and prints the report.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from command.errors import RequestError
from deploy.explain.causes import (
    CAUSES,
    STAGES,
    Cause,
    Ceilings,
    MeasuredLayer,
    RemovedLayer,
    Split,
    paired_layers,
    reasons,
    removed_layers,
    row_of,
)
from deploy.explain.onnx_layers import OnnxLayer
from deploy.explain.profiled import Profiled, ceilings_of, open_subject, profile
from deploy.explain.roofline import Roofline
from deploy.record import Record, rows_from_record

__all__ = ["Explained", "StageTimes", "explain_deployed"]

NAMES = ("dense", "slim")


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
    """Those that both files have."""
    removed: tuple[RemovedLayer, ...]
    """Those that the dense file alone has, in its order."""
    stages: tuple[StageTimes, ...]
    """Without the layout changes that the runtime inserted."""
    splits: tuple[Split, Split]
    """Those of the dense and the slim file."""

    @property
    def is_pruned(self) -> bool:
        """Whether any layer is narrower, or gone."""
        return bool(self.removed) or any(layer.row.sides_cut for layer in self.layers)

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
            "removed": [layer.to_dict() for layer in self.removed],
            "causes": {
                cause: {
                    "layers": [layer.row.name for layer in found],
                    "slim_ms": sum(layer.slim.ms for layer in found),
                    "lost_ms": sum(layer.lost_ms for layer in found),
                }
                for cause, found in by_cause.items()
            },
        }


def explain_deployed(
    dense: Path,
    slim: Path,
    num_threads: int,
    rounds: int,
    console: Console,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Explained:
    """Measure two deployed files, alternately in one process, and compare every layer.

    Args:
        dense: A folder that `deploy export` wrote, an ONNX file, or an engine with its ONNX file beside it.
        slim: The same network, pruned; an engine for the same backend if `dense` is one.
        num_threads: CPU threads of ONNX Runtime.
        rounds: Measured rounds, >= 1.
        console: Shows progress.
        shapes: Of inputs with free dimensions, by name.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If a file is not readable, or the two differ in network, kind or precision.
        WorkError: If an engine is given and there is no GPU.
    """
    first, second = open_subject(dense, shapes or {}), open_subject(slim, shapes or {})
    if first.kind != second.kind:
        raise RequestError(
            f"{dense} and {slim}: cannot be compared, got {first.kind} and {second.kind}; expected two of the same kind"
        )
    pairs = paired_layers(first.graph, second.graph, f"{dense} and {slim}")
    subjects = dict(zip(NAMES, (first, second), strict=True))
    removed = removed_layers(first.graph, second.graph)
    return _explained(profile(subjects, num_threads, rounds, shapes or {}, console), pairs, removed)


def _explained(
    profiled: Profiled, pairs: Sequence[tuple[OnnxLayer, OnnxLayer]], removed: Sequence[OnnxLayer]
) -> Explained:
    dense, slim = profiled.splits
    layers = [
        MeasuredLayer(
            row=row_of(before, after),
            stage=profiled.stages[0][before.nodes[0]],
            calls=len(after.nodes),
            dense=dense.layers[before.name],
            slim=slim.layers[after.name],
        )
        for before, after in pairs
    ]
    ceilings, peak_of = ceilings_of(profiled, dict(_rates(layers)))
    if any(layer.row.sides_cut for layer in layers):
        layers = [replace(layer, reasons=tuple(reasons(layer, ceilings))) for layer in layers]
    gone = tuple(RemovedLayer(one, profiled.stages[0][one.nodes[0]], dense.layers[one.name]) for one in removed)
    found = tuple(_stage_times(layers, gone, (dense, slim)))
    record, roofline = profiled.record, profiled.roofline
    return Explained(record, roofline, ceilings, peak_of, tuple(layers), gone, found, (dense, slim))


def _rates(layers: Sequence[MeasuredLayer]) -> Iterator[tuple[str, float]]:
    """Yield the MACs per millisecond of every layer that was timed alone, with its name."""
    for layer in layers:
        for name, part, macs in (("dense", layer.dense, layer.row.dense_macs), ("slim", layer.slim, layer.row.macs)):
            if part.ms and part.is_alone:
                yield f"{layer.row.name}, {name}", macs / part.ms


def _stage_times(
    layers: Sequence[MeasuredLayer], removed: Sequence[RemovedLayer], splits: tuple[Split, Split]
) -> Iterator[StageTimes]:
    rests = [split.rest_ms for split in splits]
    stages = [stage for stage in STAGES if stage in rests[0]] or list(rests[0])
    for stage in stages:
        inside = [layer for layer in layers if layer.stage == stage]
        gone = [layer for layer in removed if layer.stage == stage]
        dense_ms = sum(layer.dense.ms for layer in inside) + sum(layer.dense.ms for layer in gone)
        slim_ms = sum(layer.slim.ms for layer in inside)
        yield StageTimes(
            stage=stage,
            dense_ms=dense_ms + rests[0][stage],
            slim_ms=slim_ms + rests[1].get(stage, 0.0),
            dense_layers_ms=dense_ms,
            slim_layers_ms=slim_ms,
            dense_macs=sum(layer.row.dense_macs for layer in inside) + sum(one.layer.macs for one in gone),
            macs=sum(layer.row.macs for layer in inside),
        )
