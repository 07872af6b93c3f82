"""The picture of a sensitivity study. It gets figures and labels only, not files or models."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from deploy.text import drawable

__all__ = ["METRICS", "sensitivity_plot"]

METRICS = {"map": "mAP", "top1": "top-1 accuracy"}
"""Names of the scores in text."""

# Names that fit beside a panel; if more groups are to be skipped, the most sensitive are named.
NUM_LABELS = 20
# Of viridis, without its yellow end: that cannot be read on white.
SHADES = (0.0, 0.88)
SKIP_COLOUR = "#c02020"

Colour = tuple[float, float, float, float]


def sensitivity_plot(figures: Mapping[str, Any]) -> Figure:
    """Return a curve per group, and beside them what each loses and saves at the ratio of the recommendation.

    Args:
        figures: As `experiment.sensitivity.measure_sensitivity` returns them.
    """
    figure = Figure((16, 7), dpi=120, facecolor="white")
    left = figure.add_axes((0.05, 0.1, 0.29, 0.76))
    right = figure.add_axes((0.53, 0.1, 0.29, 0.76))
    curves, metric = figures["curves"], METRICS[figures["metric"]]
    colours = _colours(len(curves))
    named = _most_sensitive(curves, figures["recommendation"]["prune_ratio"])
    _draw_curves(left, curves, colours, named)
    _draw_trade(right, figures, colours)
    for axes in (left, right):
        axes.set_ylabel(f"{metric} lost (points)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
        axes.axhline(0, color="black", linewidth=0.8)
    score, num = 100 * figures["score"], figures["num_images"]
    title = f"{drawable(PurePath(figures['model']).name)}: {metric} {score:.1f} dense, on {num:,} images"
    figure.suptitle(title, x=0.05, ha="left", fontsize=13, parse_math=False)
    _draw_depth(figure, len(curves))
    return figure


def _draw_curves(
    axes: Axes, curves: Sequence[Mapping[str, Any]], colours: Sequence[Colour], named: Sequence[str]
) -> None:
    ends = {}
    for curve, colour in zip(curves, colours, strict=True):
        # the actual ratio, which rounding may have moved
        removed = [0.0, *(100 - 100 * point["num_kept"] / curve["num_channels"] for point in curve["points"])]
        drops = [0.0, *(100 * point["drop"] for point in curve["points"])]
        is_named = curve["group"] in named
        axes.plot(removed, drops, "o-", color=colour, markersize=3, linewidth=2 if is_named else 1)
        if is_named:
            ends[curve["group"]] = (removed[-1], drops[-1], colour)
    axes.set_title("Each group cut alone; the most sensitive are named", loc="left", fontsize=11)
    axes.set_xlabel("channels removed (%)")
    _label(axes, ends)


def _draw_trade(axes: Axes, figures: Mapping[str, Any], colours: Sequence[Colour]) -> None:
    advice = figures["recommendation"]
    ratio, limit, to_skip = advice["prune_ratio"], 100 * advice["max_drop"], set(advice["skip"])
    places = {}
    for curve, colour in zip(figures["curves"], colours, strict=True):
        point = next(point for point in curve["points"] if point["prune_ratio"] == ratio)
        x, y = 100 * point["macs_won"] / figures["macs"], 100 * point["drop"]
        is_skipped = curve["group"] in to_skip
        edge = {"edgecolor": SKIP_COLOUR, "linewidth": 1.8} if is_skipped else {"edgecolor": "none"}
        axes.scatter(x, y, 90 if is_skipped else 45, color=[colour], marker="X" if is_skipped else "o", **edge)
        if curve["group"] in advice["skip"][:NUM_LABELS]:
            places[curve["group"]] = (x, y, colour)
    axes.axhline(limit, color=SKIP_COLOUR, linestyle=(0, (5, 4)), linewidth=1)
    verdict = f"{len(to_skip)} of {len(figures['curves'])} to skip (X): more than {limit:g} points lost"
    axes.set_title(f"At {ratio:.0%}: {verdict}", loc="left", fontsize=11)
    axes.set_xlabel("MACs won (% of the dense model)")
    axes.margins(0.08)
    axes.set_xlim(left=0)
    _label(axes, places)


def _label(axes: Axes, places: Mapping[str, tuple[float, float, Colour]]) -> None:
    """Write names in a column to the right of the panel, each joined to its place by a line."""
    low, high = axes.get_ylim()
    ordered = sorted(places, key=lambda name: places[name][1])
    shares = [(places[name][1] - low) / (high - low) for name in ordered]
    for name, share in zip(ordered, _apart(shares, 1 / NUM_LABELS), strict=True):
        x, y, colour = places[name]
        axes.annotate(
            drawable(name),
            (x, y),
            (1.06, share),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def _apart(shares: Sequence[float], gap: float) -> list[float]:
    """Return the ascending places moved at least `gap` apart, within [0, 1] as far as they fit."""
    placed: list[float] = []
    for share in shares:
        placed.append(max(share, placed[-1] + gap) if placed else share)
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def _most_sensitive(curves: Sequence[Mapping[str, Any]], prune_ratio: float) -> list[str]:
    drops = {c["group"]: p["drop"] for c in curves for p in c["points"] if p["prune_ratio"] == prune_ratio}
    return sorted(drops, key=lambda name: -drops[name])[: NUM_LABELS // 2]


def _colours(num: int) -> list[Colour]:
    low, high = SHADES
    return [colormaps["viridis"](low + (high - low) * i / max(num - 1, 1)) for i in range(num)]


def _draw_depth(figure: Figure, num: int) -> None:
    """Draw the scale of the colours."""
    low, high = SHADES
    scale = ScalarMappable(Normalize(0, 1 / (high - low)), "viridis")
    bar = figure.colorbar(scale, cax=figure.add_axes((0.86, 0.93, 0.12, 0.02)), orientation="horizontal")
    bar.ax.set_xlim(0, 1)
    bar.set_ticks([0, 1], labels=["first group", "last"])
