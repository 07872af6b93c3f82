"""Pictures of what pruned networks keep, and of their weights. They get figures and labels only, not models."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from math import isqrt
from pathlib import PurePath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from deploy.text import drawable
from experiment.histogram_plot import draw_histogram
from experiment.histograms import LayerWeights, histogram_of, widest_of
from experiment.patterns import LayerShare, Pattern

__all__ = ["pattern_plot", "weights_plot"]

# Okabe and Ito's colours, distinct for colour-blind readers.
COLOURS = ("#0080c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, BAND = "#202020", "#f3f3f0"
WHOLE = 0.3
"""How opaque the bars of layers are that keep all they have."""
NAMED = 24
"""Layers of which each is named below its bar."""


def pattern_plot(patterns: Sequence[Pattern]) -> Figure:
    """Return a row for each network: what each layer keeps, by stages; of single weights the kernels beside it."""
    with_kernels = any(pattern.kernels for pattern in patterns)
    num_kernels = max((len(pattern.kernels) for pattern in patterns), default=0)
    figure = Figure((15 if with_kernels else 12, 0.6 + 3.1 * len(patterns)), dpi=120, facecolor="white")
    figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.1)
    rows = figure.subfigures(len(patterns), 1, squeeze=False)[:, 0]
    for row, pattern, colour in zip(rows, patterns, _cycled(len(patterns)), strict=True):
        if pattern.kernels:
            bars, kernels = row.subfigures(1, 2, width_ratios=(11, max(4, 1.5 * num_kernels)))
            _draw_kernels(kernels, pattern)
        else:
            bars = row
        _draw_bars(bars.subplots(), pattern, colour)
    return figure


def _draw_bars(axes: Axes, pattern: Pattern, colour: str) -> None:
    layers = pattern.layers
    shades = [to_rgba(colour, 1 if layer.kept < 1 else WHOLE) for layer in layers]
    axes.bar(range(len(layers)), [layer.kept for layer in layers], width=0.74, color=shades, zorder=2)
    first = 0
    for i, (size, run) in enumerate(groupby(layers, key=lambda layer: layer.size)):
        num = len(list(run))
        if i % 2 == 0:
            axes.axvspan(first - 0.5, first + num - 0.5, color=BAND, zorder=0)
        mean = float(np.mean([layer.kept for layer in layers[first : first + num]]))
        axes.hlines(mean, first - 0.5, first + num - 0.5, color=INK, linewidth=1.4, zorder=3)
        if num > len(layers) / 30:
            text = f"{isqrt(size)} x {isqrt(size)}\n{mean:.0%}"
            axes.text(first + (num - 1) / 2, 1.03, text, ha="center", va="bottom", fontsize=9, color=INK)
        first += num
    axes.set_title(
        drawable(f"{PurePath(pattern.name).name}: {pattern.what} kept (line: average of a stage)"),
        loc="left",
        fontsize=12,
        pad=34,
        parse_math=False,
    )
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25, zorder=1)
    _name_layers(axes, layers)


def _name_layers(axes: Axes, layers: Sequence[LayerShare]) -> None:
    step = -(-len(layers) // NAMED)
    shown = range(0, len(layers), step)
    names = [drawable(layers[i].name, 24) for i in shown]
    axes.set_xticks(shown, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
    for label in axes.get_xticklabels():
        label.set_parse_math(False)


def _draw_kernels(figure: Figure, pattern: Pattern) -> None:
    """Draw where in its 3 x 3 kernels each stage keeps weights, in one scale of colours."""
    grid = figure.subplots(1, len(pattern.kernels), squeeze=False)[0]
    most = max(kernel.max() for kernel in pattern.kernels.values())
    for axes, (size, kernel) in zip(grid, pattern.kernels.items(), strict=True):
        axes.imshow(kernel, cmap="Blues", vmin=0, vmax=most)
        for (y, x), share in np.ndenumerate(kernel):
            ink = "white" if share > 0.6 * most else INK
            axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=9, color=ink)
        axes.set_title(f"{isqrt(size)} x {isqrt(size)}", fontsize=9, color=INK)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    middle = grid[len(grid) // 2]
    middle.set_xlabel("share kept at each place\nof the 3 x 3 kernels (%)", fontsize=9, color=INK, labelpad=8)


def weights_plot(models: Mapping[str, Mapping[str, LayerWeights]], layers: Sequence[str]) -> Figure:
    """Return a histogram for each of these layers (a row) of each model (a column); a row has one scale.

    Args:
        models: Label -> layers of the model by name. Weights that are zero are not drawn; their share is written.
        layers: Names that every model has.
    """
    figure = Figure((0.8 + 3.6 * len(models), 1.0 + 1.7 * len(layers)), dpi=120, facecolor="white")
    figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.06)
    grid = figure.subplots(len(layers), len(models), squeeze=False, sharex="row", sharey="row")
    for row, layer in zip(grid, layers, strict=True):
        widest = max(widest_of(one[layer]) for one in models.values())
        for axes, found, colour in zip(row, models.values(), _cycled(len(models)), strict=True):
            draw_histogram(axes, histogram_of(found[layer], widest), colour)
        row[0].set_ylabel(drawable(layer, 24), fontsize=9, parse_math=False)
    for axes, label in zip(grid[0], models, strict=True):
        axes.set_title(drawable(label, 34), fontsize=11, loc="left", parse_math=False)
    figure.supxlabel("weight", fontsize=10)
    return figure


def _cycled(num: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(num)]
