"""The report's figures as inline SVG. They get figures and labels only, not files or models."""

from __future__ import annotations

import io
import itertools
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from classify.curve_plot import over_epochs
from deploy.text import drawable
from experiment.comparison import SCORES, Comparison

__all__ = ["FIGURES", "LossCurve", "Point", "accuracy_plot", "comparison_plot", "loss_plot", "speedup_plot"]

FIGURES = ("latency_ms", "latency_p90_ms", "speedup", "speedup_low", "speedup_high", "mac_reduction")

# Drawn in this colour, then named `currentColor`: the page's text colour, light or dark.
INK = "#010203"
# Okabe and Ito's colours, distinct for colour-blind readers; the shape differs as well.
STYLE = {
    "dense": (INK, "D"),
    "dense_longer": (INK, "d"),
    "prune_transfer": ("#0080c8", "o"),
    "transfer_prune": ("#d55e00", "s"),
    "scratch_transfer": ("#009e73", "^"),
}
# Of ways to the weights of one method, in their order.
WAY_STYLE = (("#0080c8", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"))
# Of lines that have a colour in common.
DASHES = ("-", "--", ":", "-.")
MOST_NAMES = 10
"""Points of one plot that all have room for their names."""
# Possible places of a label around its marker: beside it first, which is easiest to read.
DIRECTIONS = [(1, 0), (-1, 0), (1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1)]


@dataclass(frozen=True)
class Point:
    """One model as the plots need it; `spread` is that of the score, 0 where there is one seed."""

    label: str
    ordering: str
    score: float
    spread: float
    latency_ms: float
    latency_p90_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    mac_reduction: float


@dataclass(frozen=True)
class LossCurve:
    """The training loss of one ordering by epoch; epochs of what it goes on from are counted, too."""

    label: str
    ordering: str
    epochs: tuple[int, ...]
    losses: tuple[float, ...]


def accuracy_plot(points: list[Point], score: str = "mAP (mean over IoU 0.50 to 0.95)") -> Markup:
    """Return a score, as it is named, against latency as SVG.

    Whiskers reach from the median to the 90th percentile, and one standard deviation over seeds up and down. Of many
    points, only those are named that no other one beats in both, and the dense ones.
    """
    figure, axes = _figure(height_inches=3.4 + 0.2 * len(points))
    for point in points:
        colour, marker = STYLE[point.ordering]
        tail = [[0.0], [_length(point.latency_ms, point.latency_p90_ms)]]
        axes.errorbar(point.latency_ms, point.score, point.spread, tail, marker, color=colour, markersize=8)
    axes.margins(0.25, 0.2)
    axes.set_xlabel("median latency (ms), whisker to the 90th percentile")
    axes.set_ylabel(score)
    axes.grid(color=INK, alpha=0.12)
    # Labels are placed in pixels, so the layout is fixed first.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn, labels = {point: _covered(axes, point) for point in points}, list[Bbox]()
    named = points if len(points) <= MOST_NAMES else [p for p in points if p.ordering == "dense" or _is_best(p, points)]
    for point in sorted(named, key=lambda point: -point.score):
        labels += _place_label(axes, point, drawn, labels)
    return _svg(figure)


def _is_best(point: Point, points: list[Point]) -> bool:
    """Return whether no other point is at least as fast and as good, and better in one."""
    return not any(
        (other.latency_ms, -other.score) != (point.latency_ms, -point.score)
        and other.latency_ms <= point.latency_ms
        and other.score >= point.score
        for other in points
    )


def speedup_plot(points: list[Point]) -> Markup:
    """Return measured speedup and MAC reduction of each detector but dense as SVG, empty where there is none."""
    others = [point for point in points if point.ordering != "dense"]
    if not others:
        return Markup("")
    figure, axes = _figure(height_inches=1.2 + 0.55 * len(others))
    for y, point in enumerate(others):
        _draw_pair(axes, y, point)
    axes.axvline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(x=0.15)
    axes.set_ylim(len(others) - 0.5, -0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("times better than dense (x); the dashed line is dense")
    axes.plot([], [], "o", color=INK, label="measured speedup")
    axes.plot([], [], "o", color=INK, markerfacecolor="none", label="MAC reduction")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, handletextpad=0.2)
    return _svg(figure)


def comparison_plot(compared: Comparison) -> Markup:
    """Return the score of every method, a line for each ratio and a marker for each way to its weights, as SVG."""
    if not compared.lines:
        return Markup("")
    lines, num = compared.lines, len(compared.ways)
    figure, axes = _figure(height_inches=1.4 + len(lines) * (0.22 + 0.1 * num))
    for number, way in enumerate(compared.ways):
        colour, marker = WAY_STYLE[number % len(WAY_STYLE)]
        drawn = [(y, list(line.by_way[way].values())) for y, line in enumerate(lines) if way in line.by_way]
        places = [y + 0.6 * ((number + 0.5) / num - 0.5) for y, _ in drawn]
        means = [statistics.fmean(values) for _, values in drawn]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in drawn]
        axes.errorbar(
            means, places, None, spreads, marker, color=colour, markersize=6, capsize=2, label=drawable(way, 48)
        )
    for place, scores in enumerate(compared.dense.values()):
        dashes = (0, (4, 3)) if len(compared.dense) == 1 else (place * 2, (4, 3))
        axes.axvline(
            statistics.fmean(scores), color=INK, linewidth=1, linestyle=dashes, label="dense" if not place else None
        )
    axes.set_yticks(range(len(lines)), [drawable(f"{compared.name(line)}, {line.ratio_text}", 48) for line in lines])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    for y in range(1, len(lines)):
        axes.axhline(y - 0.5, color=INK, alpha=0.12, linewidth=1)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(f"{SCORES[compared.score]}, whiskers: standard deviation over seeds")
    axes.grid(axis="x", color=INK, alpha=0.12)
    legend = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, handletextpad=0.4
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure)


def loss_plot(curves: list[LossCurve], unit: str) -> Markup:
    """Return loss against epoch as SVG, empty where there is none."""
    if not curves:
        return Markup("")
    figure, axes = _figure(height_inches=3.2 + 0.2 * len(curves))
    dashes = {colour: itertools.cycle(DASHES) for colour, _ in STYLE.values()}
    for curve in curves:
        colour, marker = STYLE[curve.ordering]
        (line,) = axes.plot(curve.epochs, curve.losses, marker=marker, markersize=4, color=colour)
        line.set(label=drawable(curve.label, 48), linestyle=next(dashes[colour]))
    over_epochs(axes, f"training loss ({unit})", INK)
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, labelcolor=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return _svg(figure)


def _draw_pair(axes: Axes, y: int, point: Point) -> None:
    colour, marker = STYLE[point.ordering]
    down, up = _length(point.speedup_low, point.speedup), _length(point.speedup, point.speedup_high)
    axes.plot([point.speedup, point.mac_reduction], [y, y], color=colour, alpha=0.4)
    axes.errorbar(point.speedup, y, None, [[down], [up]], marker, color=colour, markersize=8, capsize=3)
    axes.plot(point.mac_reduction, y, marker, markersize=8, color=colour, markerfacecolor="none")
    side = 1 if point.speedup > point.mac_reduction else -1
    ends = [point.speedup - down, point.speedup + up]
    _annotate(axes, f"{point.speedup:.2f}", (ends[side > 0], y), (side, 0), 9)
    beyond = max(point.mac_reduction, ends[1]) if side < 0 else min(point.mac_reduction, ends[0])
    _annotate(axes, f"{point.mac_reduction:.2f}", (beyond, y), (-side, 0), 9)
    _annotate(axes, point.label, (1, y - 0.4), (1, 0), 6)


def _place_label(axes: Axes, point: Point, drawn: Mapping[Point, Bbox], labels: list[Bbox]) -> list[Bbox]:
    """Write the label at the nearest place around its marker that covers nothing, with a line to it from further away.

    The line crosses nothing either. If every place is taken, the label is written beside its marker all the same.

    Returns:
        The pixels that label and line take.
    """
    at = (point.latency_ms, point.score)
    others = [*labels, *(box for other, box in drawn.items() if other != point)]
    label = _annotate(axes, point.label, at, (1, 0), 8)
    for distance, direction in itertools.product(range(8, 240, 8), DIRECTIONS):
        _move(label, direction, distance)
        box = label.get_window_extent().padded(2)
        is_inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
        line = _leader(axes.transData.transform(at), direction, distance)
        if is_inside and not box.overlaps(drawn[point]) and not any(b.count_overlaps(others) for b in (box, *line)):
            if line:
                leader = {"arrowstyle": "-", "color": INK, "alpha": 0.4, "shrinkA": 0, "shrinkB": 4}
                axes.annotate("", at, label.xyann, textcoords="offset points", arrowprops=leader)
            return [box, *line]
    _move(label, (1, 1), 8)
    return [label.get_window_extent()]


def _leader(at: NDArray[np.float64], direction: tuple[int, int], distance: int) -> list[Bbox]:
    """Return pixels along a line from a marker's edge to a label, none to one beside it; a point is a pixel here."""
    return [
        Bbox([place, place]).padded(1) for place in (at + np.multiply(direction, d) for d in range(10, distance, 3))
    ]


def _annotate(axes: Axes, text: str, at: tuple[float, float], direction: tuple[int, int], points: float) -> Annotation:
    """Write a text at a distance in points from a place, in a direction of (right, up)."""
    label = axes.annotate(
        drawable(text, 48), at, textcoords="offset points", xytext=(0, 0), color=INK, parse_math=False
    )
    _move(label, direction, points)
    return label


def _move(label: Annotation, direction: tuple[int, int], points: float) -> None:
    right, up = direction
    label.xyann = (right * points, up * points)
    label.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
    label.set_verticalalignment("bottom" if up > 0 else "top" if up < 0 else "center")


def _covered(axes: Axes, point: Point) -> Bbox:
    """Return the pixels of the point's marker and whiskers."""
    right = point.latency_ms + _length(point.latency_ms, point.latency_p90_ms)
    corners = [(point.latency_ms, point.score - point.spread), (right, point.score + point.spread)]
    return Bbox(axes.transData.transform(corners)).padded(4)


def _figure(height_inches: float) -> tuple[Figure, Axes]:
    # At 72 points an inch this is as wide as a phone, so the text is readable there.
    figure = Figure((5.2, height_inches), dpi=72, layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    return figure, axes


def _svg(figure: Figure) -> Markup:
    file = io.StringIO()
    # Text stays text: small, searchable, in the page's font. Without a date the same results give the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "espalier"}):
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    _, start, rest = file.getvalue().partition("<svg")
    # The figures share the page, and matplotlib gives their groups the same ids.
    return Markup(re.sub(r'<g id="[^"]*"', "<g", start + rest).replace(INK, "currentColor"))


def _length(start: float, end: float) -> float:
    """Return how far a whisker reaches, 0 if the end is not beyond the start."""
    return end - start if end > start else 0.0
