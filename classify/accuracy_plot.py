"""The picture of a classifier's accuracy. It gets figures and a title only, not files or models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deploy.text import drawable

__all__ = ["accuracy_picture"]

# Of Okabe and Ito's colours, distinct for colour-blind readers.
ACCURACY, GAP = "#0072b2", "#d55e00"
# Names that fit beside a panel.
NUM_LABELS = 40


def accuracy_picture(figures: Mapping[str, Any], title: str) -> Figure:
    """Return the reliability diagram, the number of images by confidence, and the accuracy by class.

    Args:
        figures: As `classify.accuracy.detailed_accuracy` returns them.
        title: Drawn above them, with the accuracy.
    """
    figure = Figure((14, 7), dpi=120, facecolor="white", layout="constrained")
    panels = figure.subplot_mosaic("AC;AC;AC;BC")
    _draw_reliability(panels["A"], figures["bins"], figures["calibration_error"])
    _draw_numbers(panels["B"], figures["bins"])
    _draw_classes(panels["C"], figures["per_class"], figures["top1"])
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
    text = f"{drawable(title)}: top-1 {figures['top1']:.2f} %, on {figures['num_images']:,} images"
    figure.suptitle(text, x=0.01, ha="left", fontsize=13, parse_math=False)
    return figure


def _draw_reliability(axes: Axes, bins: Sequence[Mapping[str, Any]], error: float) -> None:
    """Draw Guo et al.'s diagram: bars of accuracy, and the gap to the confidence."""
    full = [one for one in bins if one["num"]]
    lows, accuracy, confidence = (np.array([one[key] for one in full]) for key in ("low", "accuracy", "confidence"))
    width = 1 / len(bins)
    axes.bar(lows, accuracy, width, align="edge", color=ACCURACY, edgecolor="white", label="accuracy")
    gap, label = confidence - accuracy, "gap to the mean confidence"
    axes.bar(lows, gap, width, accuracy, align="edge", color=GAP, edgecolor=GAP, alpha=0.35, label=label)
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=(0, (5, 4)))
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.set_title(f"Expected calibration error {error:.4f}", loc="left", fontsize=11)
    axes.legend(loc="upper left", frameon=False)


def _draw_numbers(axes: Axes, bins: Sequence[Mapping[str, Any]]) -> None:
    axes.bar([one["low"] for one in bins], [one["num"] for one in bins], 1 / len(bins), align="edge", color="#808080")
    axes.set(xlim=(0, 1), xlabel="confidence", ylabel="images")


def _draw_classes(axes: Axes, per_class: Mapping[str, float | None], top1: float) -> None:
    known = sorted((percent, name) for name, percent in per_class.items() if percent is not None)
    shown = known[:NUM_LABELS][::-1]  # the worst on top
    axes.barh(range(len(shown)), [percent for percent, _ in shown], color=ACCURACY)
    axes.axvline(top1, color="black", linewidth=1, linestyle=(0, (5, 4)))
    axes.set_yticks(range(len(shown)), [drawable(name, 24) for _, name in shown])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(shown) - 0.4), xlabel="top-1 accuracy (%)")
    which = f"The {len(shown)} worst of {len(known):,} classes" if len(shown) < len(known) else "By class"
    axes.set_title(f"{which}; the dashed line is of all images", loc="left", fontsize=11)
