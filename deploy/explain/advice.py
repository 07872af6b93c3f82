"""Prints the report of `espalier deploy explain`, with advice that follows from the figures alone."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deploy.explain.causes import CAUSES, MEANS, SHORT, Cause, MeasuredLayer, type_of
from deploy.explain.explained import Explained, StageTimes
from deploy.explain.profiled import measured_on
from deploy.text import printable
from prune.layer_rows import GRID

__all__ = ["WIDTH", "advice", "explained_text"]

WIDTH = 132
"""Width of the report where the output is not a terminal."""

_MIN_SHARE = 0.05  # of the slim file's time: causes that take less are not mentioned
_MIN_SHARE_OF_REST = 0.2
_MAX_LINES, _MAX_NAMES = 3, 4
_BOXES = ("rpn", "roi_head", "postprocessing")


def advice(explained: Explained) -> list[str]:
    """Return what to try; each line gives the figure behind it."""
    if not explained.is_pruned:
        return ["prune it: both files have the same channels"]
    found = [*_advice_on_channels(explained), *_advice_on_conditions(explained), *_advice_on_rest(explained)]
    return found or ["the figures point to no remedy: measure which widths are fast with espalier deploy sweep"]


def _advice_on_channels(explained: Explained) -> Iterator[str]:
    total_ms, layout_ms = explained.splits[1].total_ms, explained.splits[1].layout_ms - explained.splits[0].layout_ms
    misaligned, uncut = explained.of("misaligned"), explained.of("uncut")
    half_cut = [
        layer for layer in explained.of("half_cut") if layer is not explained.layers[0]
    ]  # which reads the image
    if _lost_ms(misaligned) >= _MIN_SHARE * total_ms:
        yield f"round_to={GRID}: {_lost(misaligned, total_ms)}, not at its multiples"
    if layout_ms >= _MIN_SHARE * total_ms:
        yield f"round_to={GRID} or 16: layout changes take {_share(layout_ms, total_ms)} more than in the dense file"
    if _lost_ms(half_cut) >= _MIN_SHARE * total_ms:
        yield f"cut the other side of {_names(half_cut, explained)}, too: {_lost(half_cut, total_ms)}"
    left_ms = sum(layer.slim.ms for layer in uncut)
    if left_ms >= _MIN_SHARE * total_ms:
        yield f"prune {_names(uncut, explained)}, too: {_count(uncut)} left whole take {_share(left_ms, total_ms)}"


def _advice_on_conditions(explained: Explained) -> Iterator[str]:
    slim, memory_bound = explained.splits[1], explained.of("memory_bound")
    short_ms = slim.short_ms(explained.ceilings.shortest_ms)
    precision, is_gpu = explained.rows[1]["precision"], explained.record.is_gpu
    if short_ms >= _MIN_SHARE * slim.total_ms:
        graph = (
            f", or one launch for all (deploy bench --runtime {explained.rows[1]['runtime']}_graph)" if is_gpu else ""
        )
        yield (
            f"a larger batch (deploy export --set batch=8){graph}: {_share(short_ms, slim.total_ms)} is spent in nodes "
            f"that take at most {SHORT} times as long as the shortest"
        )
    if precision != "int8" and _lost_ms(memory_bound) >= _MIN_SHARE * slim.total_ms:
        smaller = "fp16 or int8" if is_gpu and precision in ("fp32", "tf32") else "int8"
        yield f"{smaller}, which moves fewer bytes: {_lost(memory_bound, slim.total_ms)}, bound by memory"


def _advice_on_rest(explained: Explained) -> Iterator[str]:
    total_ms = explained.splits[1].total_ms
    for stage in explained.stages:
        rest_ms = stage.slim_ms - stage.slim_layers_ms
        if rest_ms >= _MIN_SHARE_OF_REST * total_ms:
            remedy = "fewer proposals" if stage.stage in _BOXES else "another network"
            yield f"{remedy}: {_share(rest_ms, total_ms)} of {stage.stage} is outside the layers that pruning cuts"


def explained_text(explained: Explained) -> RenderableType:
    """Return the report: device, speedup, causes, all layers, stages, and what to try."""
    marks = dict(zip((cause for cause in CAUSES if explained.of(cause)), "1234567", strict=False))
    causes = [part for cause, mark in marks.items() for part in _cause(explained, cause, mark)]
    lines = [Text.assemble("- ", line) for line in advice(explained)]
    return Group(
        *_head(explained),
        *causes,
        *(_removed(explained) if explained.removed else ()),
        "",
        _layers(explained, marks),
        "",
        _stages(explained),
        "",
        Text("What to try", "bold"),
        *lines,
    )


def _head(explained: Explained) -> Iterator[Text]:
    dense, slim = explained.rows
    yield Text(measured_on(explained.record))
    interval = f"95 % interval {slim['speedup_low']:.2f} to {slim['speedup_high']:.2f}"
    yield Text.assemble(
        (f"speedup {slim['speedup']:.2f} ({interval}), MAC reduction {slim['mac_reduction']:.2f}", "bold"),
        f": {dense['latency_ms']:.2f} -> {slim['latency_ms']:.2f} ms",
    )
    yield Text(
        f"peak of this run: {explained.ceilings.macs_per_ms / 1e6:,.1f} GMACs/s, by {explained.peak_of}; "
        f"memory is the limit below {explained.ceilings.macs_per_byte:.1f} MACs per byte",
        "dim",
    )


def _cause(explained: Explained, cause: Cause, mark: str) -> Iterator[RenderableType]:
    """Yield the meaning of a cause, and its layers, those that lost most first."""
    layers = explained.of(cause)
    lost = "" if cause == "uncut" else f", {_lost_ms(layers):.2f} ms lost"
    title = f"{cause.replace('_', '-')}, {_count(layers)}{lost}"
    yield Text.assemble(f"\n{mark} ", (title, "bold"), f": {MEANS[cause]}")
    grid = Table.grid(padding=(0, 1))
    for layer in layers[:_MAX_LINES]:
        text = next(reason.text for reason in layer.reasons if reason.cause == cause)
        grid.add_row(Text(_display(layer, explained)), Text(text, "dim"))
    if len(layers) > _MAX_LINES:
        grid.add_row(Text(f"and {len(layers) - _MAX_LINES} more", "dim"))
    yield Padding(grid, (0, 0, 0, 2))


def _removed(explained: Explained) -> Iterator[RenderableType]:
    """Yield what is gone, with its time and MACs in the dense file."""
    ms, macs = sum(one.dense.ms for one in explained.removed), sum(one.layer.macs for one in explained.removed)
    title = f"removed, {_count(explained.removed)}"
    yield Text.assemble("\n", (title, "bold"), f": {ms:.2f} ms and {macs / 1e6:.3g} MMACs of the dense file")
    grid = Table.grid(padding=(0, 1))
    for one in explained.removed:
        about = "" if one.dense.is_alone else "~"
        name, figures = printable(one.layer.name), f"{about}{one.dense.ms:.3f} ms, {one.layer.macs / 1e6:.3g} MMACs"
        grid.add_row(Text(name), Text(f"{type_of(one.layer)}, {figures}", "dim"))
    yield Padding(grid, (0, 0, 0, 2))


def _layers(explained: Explained, marks: dict[Cause, str]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    for header in ("inputs", "outputs", f"x{GRID}", "MMACs", "kB", "ms", "faster", "fewer", "% of peak"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True)
    for layer in explained.layers:
        why = " ".join(marks[reason.cause] for reason in layer.reasons)
        table.add_row(*_cells(layer, explained), why)
    notes = (
        f"x{GRID}: largest of 32, 16 and 8 that divides the outputs; kB: inputs, outputs and weights, each moved once; "
        f"faster, fewer: dense / slim time and MACs; why: the causes above."
    )
    shared = "~: one node computes several layers, and its time is shared by their MACs."
    is_shared = any(not layer.slim.is_alone or not layer.dense.is_alone for layer in explained.layers)
    return Group(table, "", Text(f"{notes} {shared if is_shared else ''}", "dim"))


def _cells(layer: MeasuredLayer, explained: Explained) -> tuple[str | Text, ...]:
    row, shares = layer.row, explained.peak_shares(layer)
    about = "" if layer.dense.is_alone and layer.slim.is_alone else "~"
    return (
        Text(_display(layer, explained) + (f" x{layer.calls}" if layer.calls > 1 else "")),
        row.type.removeprefix("conv "),
        _change(str(row.dense_channels_in), str(row.channels_in)),
        _change(str(row.dense_channels_out), str(row.channels_out)),
        Text("no", "yellow") if row.multiple_of == 1 else str(row.multiple_of),
        _change(f"{row.dense_macs / 1e6:.3g}", f"{row.macs / 1e6:.3g}"),
        _change(f"{row.dense_bytes / 1e3:.0f}", f"{row.bytes / 1e3:.0f}"),
        about + _change(f"{layer.dense.ms:.3f}", f"{layer.slim.ms:.3f}"),
        "" if layer.speedup is None else f"{layer.speedup:.2f}",
        f"{layer.mac_reduction:.2f}",
        _change(*("" if share is None else f"{100 * share:.0f}" for share in shares)),
    )


def _stages(explained: Explained) -> Table:
    dense, slim = explained.splits
    caption = f"Profiled one by one, the nodes take {dense.total_ms:.2f} and {slim.total_ms:.2f} ms in all."
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=caption, caption_justify="left")
    table.add_column("stage")
    for header in ("dense ms", "slim ms", "faster", "fewer MACs", "layers ms", "share of slim"):
        table.add_column(header, justify="right", no_wrap=True)
    for stage in explained.stages:
        table.add_row(*_stage_cells(stage, slim.total_ms))
    if dense.layout_ms or slim.layout_ms:
        times = f"{dense.layout_ms:.3f}", f"{slim.layout_ms:.3f}"
        table.add_row("layout changes", *times, "", "", "", _percent(slim.layout_ms / slim.total_ms))
    return table


def _stage_cells(stage: StageTimes, total_ms: float) -> Sequence[str]:
    return (
        stage.stage,
        f"{stage.dense_ms:.3f}",
        f"{stage.slim_ms:.3f}",
        f"{stage.dense_ms / stage.slim_ms:.2f}" if stage.slim_ms else "",
        f"{stage.dense_macs / stage.macs:.2f}" if stage.macs else "",
        _change(f"{stage.dense_layers_ms:.3f}", f"{stage.slim_layers_ms:.3f}"),
        _percent(stage.slim_ms / total_ms),
    )


def _display(layer: MeasuredLayer, explained: Explained) -> str:
    """Return the layer's name without the prefix that all of them share."""
    common = layer.row.name.partition(".")[0] + "."
    is_shared = all(one.row.name.startswith(common) for one in explained.layers)
    return printable(layer.row.name.removeprefix(common) if is_shared else layer.row.name)


def _names(layers: Sequence[MeasuredLayer], explained: Explained) -> str:
    left = len(layers) - _MAX_NAMES
    return ", ".join(_display(layer, explained) for layer in layers[:_MAX_NAMES]) + (
        f" and {left} more" if left > 0 else ""
    )


def _lost_ms(layers: Sequence[MeasuredLayer]) -> float:
    return sum(layer.lost_ms for layer in layers)


def _lost(layers: Sequence[MeasuredLayer], total_ms: float) -> str:
    return f"{_count(layers)} lose {_share(_lost_ms(layers), total_ms)} against their MACs"


def _share(ms: float, total_ms: float) -> str:
    return f"{ms:.2f} ms ({_percent(ms / total_ms)})"


def _count(layers: Sequence[object]) -> str:
    return f"{len(layers)} layer" + "s" * (len(layers) != 1)


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before}->{after}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
