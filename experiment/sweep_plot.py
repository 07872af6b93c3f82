"""The picture of a sweep over widths. It gets figures and labels only, not files or models."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

__all__ = ["sweep_plot"]

# Okabe and Ito's colours, distinct for colour-blind readers; the marker differs as well.
_STYLES = (("#d55e00", "o"), ("#0080c8", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"))
_INK = "#202020"
_DASHED: dict[str, Any] = {"color": _INK, "linewidth": 1, "linestyle": (0, (4, 3))}


def sweep_plot(figures: Mapping[str, Any]) -> Figure:
    """Return latency against MACs, and beside it speedup / MAC reduction; a line for each rounding.

    Args:
        figures: As `experiment.sweep.measure_sweep` returns them.
    """
    figure = Figure((14, 6), dpi=120, facecolor="white", layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    dense, *slim = figures["rows"]
    for i, round_to in enumerate(dict.fromkeys(row["round_to"] for row in slim)):
        rows = [row for row in slim if row["round_to"] == round_to]
        colour, marker = _STYLES[i % len(_STYLES)]
        style = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.4, "alpha": 0.85}
        _draw_latency(left, rows, dense, {**style, "label": f"round_to {round_to}"})
        rows = sorted(rows, key=lambda row: row["prune_ratio"])
        kept = [row["speedup"] / row["mac_reduction"] for row in rows]
        right.plot([row["prune_ratio"] for row in rows], kept, **style)
    _finish_latency(left, dense, figures["batch"])
    _finish_kept(right)
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    title = f"{figures['network']}: latency by width, {figures['measured_on']}"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    return figure


def _draw_latency(
    axes: Axes, rows: Sequence[Mapping[str, Any]], dense: Mapping[str, Any], style: Mapping[str, Any]
) -> None:
    rows = [*sorted(rows, key=lambda row: row["macs"]), dense]
    macs, times_ms = [row["macs"] / 1e9 for row in rows], [row["latency_ms"] for row in rows]
    axes.plot(macs, times_ms, **style)
    for row in rows[:-1]:
        if row["speedup_low"]:  # None where the widths are the dense ones
            ends_ms = [dense["latency_ms"] / row[end] for end in ("speedup_high", "speedup_low")]
            axes.plot([row["macs"] / 1e9] * 2, ends_ms, color=style["color"], linewidth=3, alpha=0.2)


def _finish_latency(axes: Axes, dense: Mapping[str, Any], batch: int) -> None:
    axes.plot([0, dense["macs"] / 1e9], [0, dense["latency_ms"]], label="if time fell as MACs do", **_DASHED)
    axes.plot(dense["macs"] / 1e9, dense["latency_ms"], "*", color=_INK, markersize=15, label="dense", zorder=5)
    axes.set_xlabel("MACs of one image (billions)")
    axes.set_ylabel(f"median latency of a batch of {batch} (ms), bars: 95 % interval of the speedup")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper left")


def _finish_kept(axes: Axes) -> None:
    axes.axhline(1, **_DASHED)
    axes.set_xlabel("channels removed, before rounding")
    axes.set_ylabel("speedup / MAC reduction; below 1 the speedup is smaller")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
