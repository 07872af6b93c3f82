"""The report's pictures of layers as inline SVG: channels that are kept, and weights. They get figures only."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from deploy.text import drawable
from experiment.architectures import SlimArchitecture
from experiment.histogram_plot import draw_histogram
from experiment.histograms import Histogram
from experiment.plots import INK, svg

__all__ = ["MOST_DRAWN", "weight_plots", "width_plot"]

MOST_DRAWN = 8
"""Architectures of which each has room for its bars."""
_NAMED = 14
"""Layers of which each is named below its bar."""
_KEPT = "#0080c8"
_WEIGHT_COLOURS = ("#7a8288", "#0080c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def width_plot(architectures: Sequence[SlimArchitecture]) -> Markup:
    """Return a row of bars for each architecture, its share of the dense channels; empty where there is none."""
    drawn = architectures[:MOST_DRAWN]
    if not drawn:
        return Markup("")
    figure = Figure((10.4, 0.5 + 1.2 * len(drawn)), dpi=72, layout="constrained", facecolor="none")
    for axes, one in zip(figure.subplots(len(drawn), 1, squeeze=False)[:, 0], drawn, strict=True):
        shares = [one.kept[layer] / num for layer, num in one.dense.items()]
        axes.set_facecolor("none")
        axes.bar(range(len(shares)), [1] * len(shares), width=0.8, color=INK, alpha=0.12)
        axes.bar(range(len(shares)), shares, width=0.8, color=_KEPT)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_title(_title(one), loc="left", fontsize=11, color=INK, parse_math=False)
        axes.set_xlim(-0.6, len(one.dense) - 0.4)
        axes.set_xticks([])
        axes.tick_params(colors=INK, labelsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[:].set_color(INK)
    step = -(-len(drawn[-1].dense) // _NAMED)
    names = [drawable(name, 24) for name in drawn[-1].dense][::step]
    axes.set_xticks(range(0, len(drawn[-1].dense), step), names, rotation=35, ha="right", rotation_mode="anchor")
    for label in axes.get_xticklabels():
        label.set_parse_math(False)
    return svg(figure)


def _title(one: SlimArchitecture) -> str:
    kept = sum(one.kept.values()) / sum(one.dense.values())
    return drawable(f"{one.name}: {kept:.0%} of all channels stay", 90)


def weight_plots(models: Mapping[str, Mapping[str, Histogram]]) -> dict[str, Markup]:
    """Return for each model its histograms as one SVG, a layer below the other; a layer has one scale in all models."""
    layers = [name for name in next(iter(models.values()), {}) if all(name in found for found in models.values())]
    if not layers:
        return {}
    highest = {layer: max(_highest(found[layer]) for found in models.values()) for layer in layers}
    plots = {}
    for i, (label, found) in enumerate(models.items()):
        figure = Figure((2.5, 1.2 * len(layers)), dpi=72, layout="constrained", facecolor="none")
        for axes, layer in zip(figure.subplots(len(layers), 1, squeeze=False)[:, 0], layers, strict=True):
            axes.set_facecolor("none")
            draw_histogram(axes, found[layer], _WEIGHT_COLOURS[i % len(_WEIGHT_COLOURS)], INK)
            axes.set_ylim(0, 1.05 * highest[layer] or 1)
            axes.set_title(drawable(layer, 34), loc="left", fontsize=9, color=INK, parse_math=False)
            axes.tick_params(colors=INK)
            axes.spines[:].set_color(INK)
        plots[label] = svg(figure)
    return plots


def _highest(layer: Histogram) -> float:
    """Return the highest density of its bins, as it is drawn."""
    return max(layer.counts) / max(1, layer.num - layer.num_zeros) / (2 * layer.widest / len(layer.counts))
