"""The losses of an experiment's trainings as the lines of a plot; trainings that rows share are drawn once."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from classify.curve import Curve, read_curve
from experiment.plots import LossCurve

__all__ = ["CurveFiles", "Drawn", "loss_curves"]

CurveFiles = Mapping[str, Mapping[str, str]]
"""Row's name -> training's name, in their order -> its curve, relative to the run's folder."""
Drawn = tuple[str, str, Sequence[str]]
"""Label and ordering of a line, and the names of its rows, which differ by their seed."""


def loss_curves(part: str, lines: Sequence[Drawn], files: CurveFiles, folder: Path) -> list[LossCurve]:
    """Return the loss per epoch, its mean over seeds, of every line that has a training of its own.

    Args:
        part: "classifier" or "detector": whose trainings are drawn, one after the other.
        lines: In the order in which they are drawn; a training is drawn with the first that has it.
        files: Files that are missing are left out.
        folder: The run's.

    Raises:
        RequestError: If a file is there, but is no curve.
    """
    taken: set[str] = set()
    curves = []
    for label, ordering, names in lines:
        trainings = [files[name] for name in names if name in files]
        if points := list(_points(part, trainings, folder, taken)):
            curves.append(LossCurve(label, ordering, *zip(*points, strict=True)))
    return curves


def _points(
    part: str, trainings: Sequence[Mapping[str, str]], folder: Path, taken: set[str]
) -> Iterator[tuple[int, float]]:
    """Yield (epoch, loss) of the trainings whose files are not among those taken, and add them to these."""
    done = 0
    for name in dict.fromkeys(chain.from_iterable(trainings)):
        files = {stages[name] for stages in trainings if name in stages}
        curves = [read_curve(folder / file) for file in sorted(files) if part in name and (folder / file).exists()]
        if name.startswith("scratch"):  # from random weights: what was trained before only told the widths
            done = 0
        losses = _losses(curves)
        if not files <= taken:
            yield from ((done + epoch, statistics.fmean(values)) for epoch, values in losses.items())
        taken |= files
        done += max(losses, default=0)


def _losses(curves: Sequence[Curve]) -> dict[int, list[float]]:
    """Return the loss of every seed by epoch."""
    losses: dict[int, list[float]] = {}
    for point in chain.from_iterable(curve.epochs for curve in curves):
        if "loss" in point.losses:
            losses.setdefault(point.epoch, []).append(point.losses["loss"])
    return losses
