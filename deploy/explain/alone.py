"""What the time of one network goes to, and which of it falls little or not at all when the network is pruned."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from deploy.explain.causes import SHORT, STAGES, Ceilings, Split, is_memory_bound, is_short, lags, type_of
from deploy.explain.onnx_layers import OnnxGraph, OnnxLayer
from deploy.explain.profiled import Profiled, ceilings_of, measured_on, open_subject, profile
from deploy.record import Record, rows_from_record
from deploy.text import printable

__all__ = ["Alone", "TimedLayer", "alone_text", "explain_alone", "limits_of"]

Limit = Literal["memory", "start"]
_MOST_OPERATORS, _MOST_NAMES = 12, 4
_INSERTED = "inserted by the runtime"


@dataclass(frozen=True)
class TimedLayer:
    """A convolution or matrix product with weights, and its time."""

    layer: OnnxLayer
    stage: str
    ms: float
    is_alone: bool
    """Whether it was timed alone; else a node computed several layers, and its time is shared by their MACs."""
    peak_share: float | None
    """MACs per second, as a share of the peak; None without a time."""
    limits: tuple[Limit, ...]
    """What its time follows rather than its MACs: the bytes that it moves, or the start of its node."""

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        layer = {name: value for name, value in asdict(self.layer).items() if name not in ("nodes", "operator")}
        timed = {name: value for name, value in asdict(self).items() if name != "layer"}
        return {**layer, "type": type_of(self.layer), "calls": len(self.layer.nodes), **timed}


@dataclass(frozen=True)
class Alone:
    """Result of `explain_alone`."""

    record: Record
    """Latency of the file, run without profiling."""
    ceilings: Ceilings
    peak_of: str
    """What reached the most MACs per second."""
    layers: tuple[TimedLayer, ...]
    unsized: tuple[str, ...]
    """Nodes with weights, of a size that only a run can tell; their time is outside the layers."""
    operators: dict[str, tuple[float, int]]
    """By operators, the time of their nodes and how many there are, those that take most first."""
    split: Split

    @property
    def row(self) -> dict[str, Any]:
        """Latency of the file."""
        return rows_from_record(self.record)[0]

    @property
    def stages(self) -> dict[str, tuple[float, float]]:
        """By stage, the time of its layers and of its other nodes, without layout changes."""
        known = [stage for stage in STAGES if stage in self.split.rest_ms] or list(self.split.rest_ms)
        layers_ms = {stage: sum(layer.ms for layer in self.layers if layer.stage == stage) for stage in known}
        return {stage: (layers_ms[stage], self.split.rest_ms[stage]) for stage in known}

    @property
    def short_ms(self) -> float:
        """Time of the nodes that are limited by their start."""
        return self.split.short_ms(self.ceilings.shortest_ms)

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        device, conditions = self.record.device, self.record.conditions
        return {
            "is_gpu": device.is_gpu,
            "device": device.name,
            "num_threads": device.num_threads,
            "rounds": conditions.rounds,
            "files": conditions.config,
            "latency": self.row,
            "nodes_ms": self.split.total_ms,
            "layout_ms": self.split.layout_ms,
            "short_ms": self.short_ms,
            "ceilings": {**asdict(self.ceilings), "peak_of": self.peak_of},
            "stages": {
                stage: {"layers_ms": layers_ms, "rest_ms": rest_ms}
                for stage, (layers_ms, rest_ms) in self.stages.items()
            },
            "operators": {name: {"ms": ms, "num_nodes": num} for name, (ms, num) in self.operators.items()},
            "layers": [layer.to_dict() for layer in self.layers],
            "unsized": list(self.unsized),
            "limits": list(limits_of(self)),
        }


def explain_alone(
    path: Path, num_threads: int, rounds: int, console: Console, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Alone:
    """Measure a deployed file and every node of it.

    Args:
        path: A folder that `deploy export` wrote, an ONNX file, or an engine with its ONNX file beside it.
        num_threads: CPU threads of ONNX Runtime.
        rounds: Measured rounds, >= 1.
        console: Shows progress.
        shapes: Of inputs with free dimensions, by name.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If a file is not readable, or an input has a free dimension.
        WorkError: If an engine is given and there is no GPU.
    """
    subject = open_subject(path, shapes or {}, is_partial=True)
    profiled = profile({"network": subject}, num_threads, rounds, shapes or {}, console)
    (split,), (stages,) = profiled.splits, profiled.stages
    timed = {name: part for name, part in split.layers.items() if part.ms and part.is_alone}
    rates = {name: subject.graph.layers[name].macs / part.ms for name, part in timed.items()}
    ceilings, peak_of = ceilings_of(profiled, rates)
    layers = tuple(_timed(layer, split, stages, ceilings) for layer in subject.graph.layers.values())
    operators = _operators(profiled, subject.graph)
    return Alone(profiled.record, ceilings, peak_of, layers, tuple(subject.graph.unsized), operators, split)


def _timed(layer: OnnxLayer, split: Split, stages: Mapping[str, str], ceilings: Ceilings) -> TimedLayer:
    part = split.layers[layer.name]
    share = layer.macs / part.ms / ceilings.macs_per_ms if part.ms else None
    limits: list[Limit] = []
    if part.ms and part.is_alone:
        is_bound = is_memory_bound(layer.macs, layer.bytes, part.ms, ceilings)
        limits += ["memory"] * (is_bound and lags(layer.bytes / _halved(layer), 4.0))
        limits += ["start"] * is_short(part.ms / len(layer.nodes), ceilings)
    return TimedLayer(layer, stages[layer.nodes[0]], part.ms, part.is_alone, share, tuple(limits))


def _halved(layer: OnnxLayer) -> float:
    """Return the bytes that a layer moves with half of its channels on both sides, and so a quarter of its MACs."""
    return (layer.bytes - layer.weight_bytes) / 2 + layer.weight_bytes / 4


def _operators(profiled: Profiled, graph: OnnxGraph) -> dict[str, tuple[float, int]]:
    """Return the time and number of nodes by the operators that they compute."""
    found: dict[str, list[float]] = defaultdict(list)
    for time in profiled.times[0]:
        types = [graph.nodes[name].op_type for name in graph.sources(time.name, time.operator)]
        found[" + ".join(dict.fromkeys(types)) or time.operator or _INSERTED].append(time.time_ms)
    ordered = sorted(found.items(), key=lambda item: -sum(item[1]))
    return {name: (sum(times), len(times)) for name, times in ordered}


def limits_of(alone: Alone) -> Iterator[str]:
    """Yield what falls little or not at all when the network is pruned; each line gives the figure behind it."""
    total_ms = alone.split.total_ms
    layers = "layers of fixed size" if alone.unsized else "layers that pruning cuts"
    for stage, (_, rest_ms) in alone.stages.items():
        if rest_ms:
            yield f"{_share(rest_ms, total_ms)} is in {stage}, outside the {layers}"
    if alone.split.layout_ms:
        yield f"{_share(alone.split.layout_ms, total_ms)} is changes of layout, which the runtime inserts"
    if bound := [layer for layer in alone.layers if "memory" in layer.limits]:
        ms = _share(sum(layer.ms for layer in bound), total_ms)
        yield f"{ms} is in {_names(bound)}, bound by memory: it follows the bytes moved, not the MACs"
    if alone.short_ms:
        yield (
            f"{_share(alone.short_ms, total_ms)} is in nodes that take at most {SHORT} times as long as the shortest: "
            f"starting them costs the same however narrow they are"
        )


def alone_text(alone: Alone) -> RenderableType:
    """Return the report: device, latency, stages, operators, layers, and what pruning would not speed up."""
    lines = [Text.assemble("- ", printable(line)) for line in limits_of(alone)]
    title = Text("What pruning speeds up little or not at all", "bold")
    tables = (_stage_table(alone), "", _operator_table(alone), "", _layer_table(alone))
    return Group(*_head(alone), "", *tables, "", title, *lines)


def _head(alone: Alone) -> Iterator[Text]:
    layers_ms = sum(layer.ms for layer in alone.layers)
    yield Text(measured_on(alone.record))
    yield Text.assemble(
        (f"{alone.row['latency_ms']:.2f} ms", "bold"),
        f"; {_percent(layers_ms / alone.split.total_ms)} of the nodes' time is in {len(alone.layers)} layers with "
        f"weights, {sum(layer.layer.macs for layer in alone.layers) / 1e6:,.4g} MMACs",
    )
    yield Text(
        f"peak of this run: {alone.ceilings.macs_per_ms / 1e6:,.1f} GMACs/s, by {printable(alone.peak_of)}; memory is "
        f"the limit below {alone.ceilings.macs_per_byte:.1f} MACs per byte",
        "dim",
    )
    if alone.unsized:
        yield Text(f"{len(alone.unsized)} more have no fixed size, and count as outside the layers", "dim")


def _stage_table(alone: Alone) -> Table:
    total_ms = alone.split.total_ms
    caption = f"Profiled one by one, the nodes take {total_ms:.2f} ms in all."
    table = _table("stage", "ms", "share", "layers ms", "other nodes ms", caption=caption)
    for stage, (layers_ms, rest_ms) in alone.stages.items():
        ms = layers_ms + rest_ms
        table.add_row(stage, f"{ms:.3f}", _percent(ms / total_ms), f"{layers_ms:.3f}", f"{rest_ms:.3f}")
    if alone.split.layout_ms:
        table.add_row("layout changes", f"{alone.split.layout_ms:.3f}", _percent(alone.split.layout_ms / total_ms))
    return table


def _operator_table(alone: Alone) -> Table:
    table = _table("operators", "nodes", "ms", "share")
    items = list(alone.operators.items())
    others = [figures for _, figures in items[_MOST_OPERATORS:]]
    if others:
        items = [*items[:_MOST_OPERATORS], ("others", (sum(ms for ms, _ in others), sum(num for _, num in others)))]
    for name, (ms, num) in items:
        table.add_row(Text(printable(name)), str(num), f"{ms:.3f}", _percent(ms / alone.split.total_ms))
    return table


def _layer_table(alone: Alone) -> Table:
    shared = "" if all(layer.is_alone for layer in alone.layers) else " ~: one node computes several layers."
    caption = f"kB: inputs, outputs and weights, each moved once; limit: what its time follows, not its MACs.{shared}"
    headers = ("inputs", "outputs", "MMACs", "kB", "ms", "share", "% of peak", "limit")
    table = _table("layer", "type", *headers, caption=caption)
    for timed in alone.layers:
        layer = timed.layer
        calls = f" x{len(layer.nodes)}" if len(layer.nodes) > 1 else ""
        table.add_row(
            Text(printable(layer.name) + calls),
            type_of(layer).removeprefix("conv "),
            str(layer.channels_in),
            str(layer.channels_out),
            f"{layer.macs / 1e6:.3g}",
            f"{layer.bytes / 1e3:.0f}",
            f"{'' if timed.is_alone else '~'}{timed.ms:.3f}",
            _percent(timed.ms / alone.split.total_ms),
            "" if timed.peak_share is None else f"{100 * timed.peak_share:.0f}",
            " ".join(timed.limits),
        )
    return table


def _table(first: str, *headers: str, caption: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=caption, caption_justify="left")
    table.add_column(first, overflow="fold")
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _names(layers: Sequence[TimedLayer]) -> str:
    longest = sorted(layers, key=lambda layer: -layer.ms)
    left = len(longest) - _MOST_NAMES
    names = ", ".join(layer.layer.name for layer in longest[:_MOST_NAMES])
    return names + (f" and {left} more" if left > 0 else "")


def _share(ms: float, total_ms: float) -> str:
    return f"{ms:.2f} ms ({_percent(ms / total_ms)} of the whole)"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
