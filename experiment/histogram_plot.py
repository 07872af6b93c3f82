"""One layer's weights in a picture, of a command or of the report."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from experiment.histograms import Histogram

__all__ = ["draw_histogram"]

INK = "#202020"


def draw_histogram(axes: Axes, layer: Histogram, colour: str, ink: str = INK) -> None:
    """Draw a layer's weights, without those that are zero, their share in words."""
    edges = np.linspace(-layer.widest, layer.widest, len(layer.counts) + 1)
    density = np.array(layer.counts) / max(1, layer.num - layer.num_zeros) / (edges[1] - edges[0])
    axes.stairs(density, edges, fill=True, color=colour, alpha=0.9)
    axes.axvline(0, color=ink, linewidth=0.6, alpha=0.5)
    notes = [f"std {layer.std:.3g}", f"{layer.num:,} weights"]
    if layer.num_zeros:
        notes.append(f"{layer.num_zeros / layer.num:.0%} zeros")
    axes.text(0.98, 0.94, "\n".join(notes), transform=axes.transAxes, ha="right", va="top", fontsize=8, color=ink)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
