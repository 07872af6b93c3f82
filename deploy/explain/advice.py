"""What `espalier deploy explain` shows and advises; only what follows from the figures."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from deploy.explain.causes import CAUSES, MEANS, SHORT, Cause, MeasuredLayer
from deploy.explain.explained import Explained, StageTimes, measured_on
from prune.layer_rows import GRID

__all__ = ["WIDTH", "advice", "explained_text"]

WIDTH = 132
"""Columns that the table of layers takes, where no terminal says how many there are."""

_WORTH = 0.05  # of the slim file's time: what takes less is not worth a word
_WORTH_REST = 0.2
_MAX_LINES, _MAX_NAMES = 3, 4
_BOXES = ("rpn", "roi_head", "postprocessing")


def advice(told: Explained) -> list[str]:
    """Return what to try; each line says which figure speaks for it."""
    if not told.is_pruned:
        return ["prune it: the second file has as many channels as the first"]
    found = [*_advice_on_channels(told), *_advice_on_conditions(told), *_advice_on_rest(told)]
    return found or ["no remedy follows from the figures: espalier deploy sweep measures which widths are fast"]


def _advice_on_channels(told: Explained) -> Iterator[str]:
    total_ms, layout_ms = told.splits[1].total_ms, told.splits[1].layout_ms - told.splits[0].layout_ms
    misaligned, uncut = told.of("misaligned"), told.of("uncut")
    half_cut = [layer for layer in told.of("half_cut") if layer is not told.layers[0]]  # which reads the picture
    if _lost_ms(misaligned) >= _WORTH * total_ms:
        yield f"round_to={GRID}: {_lost(misaligned, total_ms)}, off its multiples"
    if layout_ms >= _WORTH * total_ms:
        yield f"round_to={GRID} or 16: changes of layout take {_share(layout_ms, total_ms)} more than in the dense file"
    if _lost_ms(half_cut) >= _WORTH * total_ms:
        yield f"cut the other side of {_names(half_cut, told)}, too: {_lost(half_cut, total_ms)}"
    left_ms = sum(layer.slim.ms for layer in uncut)
    if left_ms >= _WORTH * total_ms:
        yield f"prune {_names(uncut, told)}, too: left whole, {_count(uncut)} take {_share(left_ms, total_ms)}"


def _advice_on_conditions(told: Explained) -> Iterator[str]:
    slim, memory_bound = told.splits[1], told.of("memory_bound")
    short_ms = slim.short_ms(told.ceilings.shortest_ms)
    precision, is_gpu = told.rows[1]["precision"], told.record.is_gpu
    if short_ms >= _WORTH * slim.total_ms:
        graph = f", or one launch for all (deploy bench --runtime {told.rows[1]['runtime']}_graph)" if is_gpu else ""
        yield (
            f"a larger batch (deploy export --set batch=8){graph}: {_share(short_ms, slim.total_ms)} goes to nodes "
            f"that take at most {SHORT} times the shortest"
        )
    if precision != "int8" and _lost_ms(memory_bound) >= _WORTH * slim.total_ms:
        smaller = "half precision or int8" if is_gpu and precision in ("fp32", "tf32") else "int8"
        yield f"{smaller}, which moves fewer bytes: {_lost(memory_bound, slim.total_ms)}, bound by memory"


def _advice_on_rest(told: Explained) -> Iterator[str]:
    total_ms = told.splits[1].total_ms
    for stage in told.stages:
        rest_ms = stage.slim_ms - stage.slim_layers_ms
        if rest_ms >= _WORTH_REST * total_ms:
            remedy = "fewer proposals" if stage.stage in _BOXES else "another network"
            yield f"{remedy}: {_share(rest_ms, total_ms)} of {stage.stage} lies outside the layers that pruning cuts"


def explained_text(told: Explained) -> RenderableType:
    """Return on what it was measured, the verdict, the causes, all layers, the stages, and what to try."""
    marks = dict(zip((cause for cause in CAUSES if told.of(cause)), "1234567", strict=False))
    causes = [part for cause, mark in marks.items() for part in _cause(told, cause, mark)]
    lines = [Text.assemble("- ", line) for line in advice(told)]
    return Group(
        *_head(told), *causes, "", _layers(told, marks), "", _stages(told), "", Text("What to try", "bold"), *lines
    )


def _head(told: Explained) -> Iterator[Text]:
    dense, slim = told.rows
    yield Text(measured_on(told.record))
    interval = f"95 % interval {slim['speedup_low']:.2f} to {slim['speedup_high']:.2f}"
    yield Text.assemble(
        (f"speedup {slim['speedup']:.2f} ({interval}), MAC reduction {slim['mac_reduction']:.2f}", "bold"),
        f": {dense['latency_ms']:.2f} -> {slim['latency_ms']:.2f} ms",
    )
    yield Text(
        f"peak of this run: {told.ceilings.macs_per_ms / 1e6:,.1f} GMACs/s, by {told.peak_of}; "
        f"below {told.ceilings.macs_per_byte:.1f} MACs per byte memory is the limit",
        "dim",
    )


def _cause(told: Explained, cause: Cause, mark: str) -> Iterator[RenderableType]:
    """Yield what a cause means, and its layers, those that lost most first."""
    layers = told.of(cause)
    lost = "" if cause == "uncut" else f", {_lost_ms(layers):.2f} ms lost"
    title = f"{cause.replace('_', '-')}, {_count(layers)}{lost}"
    yield Text.assemble(f"\n{mark} ", (title, "bold"), f": {MEANS[cause]}")
    grid = Table.grid(padding=(0, 1))
    for layer in layers[:_MAX_LINES]:
        text = next(reason.text for reason in layer.reasons if reason.cause == cause)
        grid.add_row(Text(_display(layer, told)), Text(text, "dim"))
    if len(layers) > _MAX_LINES:
        grid.add_row(Text(f"and {len(layers) - _MAX_LINES} more", "dim"))
    yield Padding(grid, (0, 0, 0, 2))


def _layers(told: Explained, marks: dict[Cause, str]) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    for header in ("inputs", "outputs", f"x{GRID}", "MMACs", "kB", "ms", "faster", "fewer", "% of peak"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("why", no_wrap=True)
    for layer in told.layers:
        why = " ".join(marks[reason.cause] for reason in layer.reasons)
        table.add_row(*_cells(layer, told), why)
    notes = (
        f"x{GRID}: largest of 32, 16 and 8 that divides the outputs; kB: inputs, outputs and weights, each moved once; "
        f"faster, fewer: dense / slim time and MACs. Why: causes above."
    )
    shared = "A ~ stands before times that nodes of several layers share by their MACs."
    is_shared = any(not layer.slim.is_alone or not layer.dense.is_alone for layer in told.layers)
    return Group(table, "", Text(f"{notes} {shared if is_shared else ''}", "dim"))


def _cells(layer: MeasuredLayer, told: Explained) -> tuple[str | Text, ...]:
    row, shares = layer.row, told.peak_shares(layer)
    about = "" if layer.dense.is_alone and layer.slim.is_alone else "~"
    return (
        Text(_display(layer, told) + (f" x{layer.calls}" if layer.calls > 1 else "")),
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


def _stages(told: Explained) -> Table:
    dense, slim = told.splits
    caption = f"The nodes, watched one by one, take {dense.total_ms:.2f} and {slim.total_ms:.2f} ms together."
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption=caption, caption_justify="left")
    table.add_column("stage")
    for header in ("dense ms", "slim ms", "faster", "fewer MACs", "of it layers", "share of slim"):
        table.add_column(header, justify="right", no_wrap=True)
    for stage in told.stages:
        table.add_row(*_stage_cells(stage, slim.total_ms))
    if dense.layout_ms or slim.layout_ms:
        shown = f"{dense.layout_ms:.3f}", f"{slim.layout_ms:.3f}"
        table.add_row("layout changes", *shown, "", "", "", _percent(slim.layout_ms / slim.total_ms))
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


def _display(layer: MeasuredLayer, told: Explained) -> str:
    """Return the layer's name without what all of them begin with."""
    common = layer.row.name.partition(".")[0] + "."
    return layer.row.name.removeprefix(common if all(one.row.name.startswith(common) for one in told.layers) else "")


def _names(layers: Sequence[MeasuredLayer], told: Explained) -> str:
    left = len(layers) - _MAX_NAMES
    return ", ".join(_display(layer, told) for layer in layers[:_MAX_NAMES]) + (f" and {left} more" if left > 0 else "")


def _lost_ms(layers: Sequence[MeasuredLayer]) -> float:
    return sum(layer.lost_ms for layer in layers)


def _lost(layers: Sequence[MeasuredLayer], total_ms: float) -> str:
    return f"{_count(layers)} lose {_share(_lost_ms(layers), total_ms)} against their MACs"


def _share(ms: float, total_ms: float) -> str:
    return f"{ms:.2f} ms ({_percent(ms / total_ms)})"


def _count(layers: Sequence[MeasuredLayer]) -> str:
    return f"{len(layers)} layer" + "s" * (len(layers) != 1)


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before}->{after}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
