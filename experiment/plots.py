"""The report's figures as inline SVG. They get figures and labels only, not files or models."""

from __future__ import annotations

import io
import itertools
import math
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
from numpy.typing import NDArray

from classify.curve_plot import over_epochs
from deploy.text import drawable
from experiment.comparison import SCORES, Comparison
from experiment.pareto import pareto_front

__all__ = [
    "FIGURES",
    "INK",
    "LossCurve",
    "Point",
    "accuracy_plot",
    "comparison_plot",
    "loss_plot",
    "macs_plot",
    "speedup_plot",
    "svg",
]

FIGURES = ("latency_ms", "latency_p90_ms", "speedup", "speedup_low", "speedup_high", "mac_reduction", "macs")

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
COCO_MAP = "mAP (mean over IoU 0.50 to 0.95)"
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
    macs: float


_Places = Mapping[Point, tuple[float, float]]
_Tails = Mapping[Point, tuple[float, float]]
"""How far whiskers reach to the left and right of a point."""
_MARKER_PX = 7.0
_Pixels = tuple[float, float, float, float]
"""Left, bottom, right and top of what is drawn."""
_Reach = Mapping[Point, tuple[tuple[float, float], tuple[float, float]]]
"""The lower left and upper right ends of a point's whiskers."""


@dataclass(frozen=True)
class LossCurve:
    """The training loss of one ordering by epoch; epochs of what it goes on from are counted, too."""

    label: str
    ordering: str
    epochs: tuple[int, ...]
    losses: tuple[float, ...]


def accuracy_plot(points: list[Point], score: str = COCO_MAP) -> Markup:
    """Return a score, as it is named, against latency as SVG.

    Whiskers reach from the median to the 90th percentile, and one standard deviation over seeds up and down.
    """
    places = {point: (point.latency_ms, point.score) for point in points}
    tails = {point: (0.0, _length(point.latency_ms, point.latency_p90_ms)) for point in points}
    return _trade_off(places, tails, "median latency (ms), whisker to the 90th percentile", score)


def macs_plot(points: list[Point], score: str = COCO_MAP) -> Markup:
    """Return a score against multiply-adds as SVG."""
    unit, name = (1e9, "G") if max(point.macs for point in points) >= 1e9 else (1e6, "M")
    places = {point: (point.macs / unit, point.score) for point in points}
    return _trade_off(places, {}, f"MACs ({name})", score)


def _trade_off(places: _Places, tails: _Tails, cost: str, score: str) -> Markup:
    """Draw a score against a cost, and a line through the front; of many points, dense and some of these have names."""
    points = list(places)
    figure, axes = _figure(height_inches=min(5.2, 3.4 + 0.2 * len(points)))
    front = [points[i] for i in pareto_front(*zip(*places.values(), strict=True))]
    axes.plot(*zip(*(places[p] for p in front), strict=True), color=INK, alpha=0.45, linewidth=1.2, zorder=1)
    for point, (x, y) in places.items():
        colour, marker = STYLE[point.ordering]
        tail = [[side] for side in tails.get(point, (0.0, 0.0))]
        face = colour if point in front else "none"
        axes.errorbar(x, y, point.spread, tail, marker, color=colour, markersize=7, markerfacecolor=face, elinewidth=1)
    axes.margins(0.25, 0.2)
    axes.set_xlabel(cost)
    axes.set_ylabel(score)
    axes.grid(color=INK, alpha=0.12)
    some = front[:: -(-len(front) // (MOST_NAMES // 2)) or 1]
    named = points if len(points) <= MOST_NAMES else [p for p in points if p.ordering == "dense" or p in some]
    right = {point: x + tails.get(point, (0.0, 0.0))[1] for point, (x, _) in places.items()}
    reach = {p: ((x, y - p.spread), (right[p], y + p.spread)) for p, (x, y) in places.items()}
    _name_points(figure, axes, places, reach, named)
    return svg(figure)


def speedup_plot(points: list[Point]) -> Markup:
    """Return measured speedup against MAC reduction of each model but dense as SVG, empty where there is none.

    On the diagonal a model would be as many times faster as it has fewer MACs.
    """
    others = [point for point in points if point.ordering != "dense"]
    if not others:
        return Markup("")
    figure, axes = _figure(height_inches=min(5.2, 3.4 + 0.2 * len(others)))
    places = {point: (point.mac_reduction, point.speedup) for point in others}
    for point, (x, y) in places.items():
        colour, marker = STYLE[point.ordering]
        down, up = _length(point.speedup_low, y), _length(y, point.speedup_high)
        axes.errorbar(x, y, [[down], [up]], None, marker, color=colour, markersize=7, elinewidth=1)
    axes.plot(1, 1, "D", color=INK, markerfacecolor="none")  # dense
    axes.axline((1, 1), slope=1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(0.25, 0.2)
    axes.set_xlabel("MAC reduction (x)")
    axes.set_ylabel("measured speedup (x)")
    axes.grid(color=INK, alpha=0.12)
    reach = {p: ((x, min(y, p.speedup_low)), (x, max(y, p.speedup_high))) for p, (x, y) in places.items()}
    _name_points(figure, axes, places, reach, others if len(others) <= MOST_NAMES else [])
    return svg(figure)


def _name_points(figure: Figure, axes: Axes, places: _Places, reach: _Reach, named: list[Point]) -> None:
    """Write names beside their points, and the orderings' colours above where some have none."""
    if len(named) < len(places):
        _add_orderings(axes, list(places))
    # Labels are placed in pixels, so the layout is fixed first.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    drawn = {point: _pixels(axes, ends) for point, ends in reach.items()}
    labels: list[_Pixels] = []
    for points in sorted(_together(axes, places, named), key=lambda points: -places[points[0]][1]):
        place = places[points[0]]
        more = f" and {len(points) - 1} more" if len(points) > 1 else ""
        own, others = ([box for p, box in drawn.items() if (p in points) is is_own] for is_own in (True, False))
        labels += _place_label(axes, points[0].label + more, place, labels, own, others)


def _together(axes: Axes, places: _Places, named: list[Point]) -> list[list[Point]]:
    """Return the points, those together whose markers cover each other: they share a label."""
    groups: list[list[Point]] = []
    for point in named:
        at = axes.transData.transform(places[point])
        near = (one for one in groups if math.dist(at, axes.transData.transform(places[one[0]])) < _MARKER_PX)
        group = next(near, None)
        if group is None:
            groups.append([point])
        else:
            group.append(point)
    return groups


def _add_orderings(axes: Axes, points: list[Point]) -> None:
    for ordering in dict.fromkeys(point.ordering for point in points):
        colour, marker = STYLE[ordering]
        axes.plot([], [], marker, color=colour, label=ordering)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, handletextpad=0.2)


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
    return svg(figure)


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
    return svg(figure)


def _place_label(
    axes: Axes, text: str, at: tuple[float, float], labels: list[_Pixels], own: list[_Pixels], others: list[_Pixels]
) -> list[_Pixels]:
    """Write a label at the nearest place around its marker that covers nothing, with a line to it from further away.

    The line crosses nothing either. Where there is no such place, it covers no label; in the end it is written beside
    its marker all the same.

    Args:
        axes: Of the marker.
        text: The label.
        at: The marker's place.
        labels: Pixels of labels and lines.
        own: Of the marker.
        others: Of all other markers.

    Returns:
        The pixels that label and line take.
    """
    label = _annotate(axes, text, at, (1, 0), 8)
    place, size = axes.transData.transform(at), np.array(label.get_window_extent().padded(2).size)
    left, bottom, right, top = axes.bbox.extents
    tries = itertools.product(([*labels, *others], labels), range(8, 240, 8), DIRECTIONS)
    for taken, distance, direction in tries:
        box = _box_beside(place, size, direction, distance)
        is_inside = left <= box[0] and box[2] <= right and bottom <= box[1] and box[3] <= top
        if not is_inside or _overlap([box], own):
            continue
        line = _leader(place, direction, distance)
        if not _overlap([box, *line], taken):
            _move(label, direction, distance)
            if line:
                leader = {"arrowstyle": "-", "color": INK, "alpha": 0.4, "shrinkA": 0, "shrinkB": 4}
                axes.annotate("", at, label.xyann, textcoords="offset points", arrowprops=leader)
            return [box, *line]
    side = 1 if place[0] < (left + right) / 2 else -1
    _move(label, (side, 1), 8)
    return [_box_beside(place, size, (side, 1), 8)]


def _pixels(axes: Axes, ends: tuple[tuple[float, float], tuple[float, float]]) -> _Pixels:
    """Return what whiskers and marker take, from two corners in the units of the axes."""
    (left, bottom), (right, top) = axes.transData.transform(ends)
    return left - 4, bottom - 4, right + 4, top + 4


def _box_beside(place: NDArray[np.float64], size: NDArray[np.float64], direction: tuple[int, int], far: int) -> _Pixels:
    """Return the box of that size at a distance from a place, as `_move` aligns a label; a point is a pixel here."""
    (x, y), (width, height) = place + np.multiply(direction, far), size
    left, bottom = x + (direction[0] - 1) / 2 * width, y + (direction[1] - 1) / 2 * height
    return left, bottom, left + width, bottom + height


def _overlap(boxes: list[_Pixels], others: list[_Pixels]) -> bool:
    if not others:
        return False
    one, other = np.array(boxes)[:, None], np.array(others)[None]
    return bool(((one[..., :2] < other[..., 2:]) & (other[..., :2] < one[..., 2:])).all(-1).any())


def _leader(at: NDArray[np.float64], direction: tuple[int, int], distance: int) -> list[_Pixels]:
    """Return pixels along a line from a marker's edge to a label, none to one beside it."""
    places = (at + np.multiply(direction, far) for far in range(10, distance, 3))
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in places]


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


def svg(figure: Figure) -> Markup:
    """Return a figure as SVG for a page; what is drawn in `INK` gets the page's colour of text."""
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
