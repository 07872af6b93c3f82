"""The picture of a training's curve, and how any plot over epochs is drawn. It gets figures only, not models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from classify.curve import Curve, curve_picture_file
from command.files import written_atomically
from deploy.text import drawable

__all__ = ["curve_picture", "over_epochs", "save_curve_picture"]

# Okabe and Ito's colours, distinct for colour-blind readers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vP"
SHARES = {"top1": "top-1", "top5": "top-5", "map": "mAP", "map50": "mAP at IoU 0.50"}
"""Validation figures that are drawn, and their names."""


def over_epochs(axes: Axes, ylabel: str, ink: str = "black") -> None:
    """Set up axes whose x axis counts epochs."""
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.grid(color=ink, alpha=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def curve_picture(curve: Curve, title: str) -> Figure:
    """Return losses, validation figures, if there are any, and learning rate over the epochs.

    Args:
        curve: Of at least one epoch.
        title: Drawn above.
    """
    figures = _validation(curve)
    panels = ["loss", *(["figures"] if figures else []), "lr"]
    figure = Figure((9, 2.6 * len(panels)), dpi=120, facecolor="white", layout="constrained")
    axes = dict(zip(panels, figure.subplots(len(panels), sharex=True), strict=True))
    _draw_losses(axes["loss"], curve)
    if figures:
        _draw_lines(axes["figures"], figures)
        over_epochs(axes["figures"], "share on validation images")
    iterations = [(_epoch_of(curve, point.iteration), point.lr) for point in curve.iterations]
    axes["lr"].plot(*zip(*iterations, strict=True), color=COLOURS[0], linewidth=1)
    over_epochs(axes["lr"], "learning rate")
    for one in panels[:-1]:
        axes[one].set_xlabel("")
    figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=12, parse_math=False)
    return figure


def save_curve_picture(curve: Curve, model: Path) -> None:
    """Write the picture beside a model file, whole or not at all."""
    with written_atomically(curve_picture_file(model)) as beside:
        curve_picture(curve, model.name).savefig(beside, format="png", metadata={"Software": None})


def _validation(curve: Curve) -> dict[str, list[tuple[float, float]]]:
    """Return (epoch, share) of every validation figure that is drawn, by its name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for epoch in curve.epochs:
        for key, name in SHARES.items():
            if (share := epoch.figures.get(key)) is not None:
                found.setdefault(name, []).append((epoch.epoch, share))
    return found


def _draw_losses(axes: Axes, curve: Curve) -> None:
    iterations = [(_epoch_of(curve, point.iteration), point.loss) for point in curve.iterations]
    axes.plot(*zip(*iterations, strict=True), color="#808080", alpha=0.5, linewidth=0.8, label="single iterations")
    names = list(dict.fromkeys(name for epoch in curve.epochs for name in epoch.losses))
    lines = {name: [(e.epoch, e.losses[name]) for e in curve.epochs if name in e.losses] for name in names}
    _draw_lines(axes, {"mean of the epoch": lines.pop("loss"), **lines})
    over_epochs(axes, "training loss")


def _draw_lines(axes: Axes, lines: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Draw one line per name; the legend shows each line's last value."""
    for index, (name, points) in enumerate(lines.items()):
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
        label = f"{drawable(name, 40)}: {points[-1][1]:.4g}"
        axes.plot(*zip(*points, strict=True), label=label, markersize=4, markevery=_every(len(points)), **look)
    legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, title="last value")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _every(num_points: int) -> int:
    return max(1, num_points // 30)


def _epoch_of(curve: Curve, iteration: int) -> float:
    """Return where an iteration is on an axis that has an epoch's mean at its end."""
    firsts = [point.iteration for point in curve.iterations]
    per_epoch = len(firsts) // len(curve.epochs)
    length = firsts[per_epoch] - firsts[0] if len(curve.epochs) > 1 else firsts[-1]
    return curve.epochs[0].epoch - 1 + (iteration - firsts[0] + 1) / length
