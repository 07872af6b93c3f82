"""What an experiment writes for TensorBoard and the like besides its stages, whose folders hold results alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from classify.tracking import Backend, Tracker

__all__ = ["track_rows", "tracking_of"]

_FOLDER = "tracking"
_FIGURES = ("map", "map50", "top1", "macs", "params", "latency_ms", "speedup", "mac_reduction")


def tracking_of(stage: Path) -> Path:
    """Return the folder for the curves of a stage that works in the folder `stage`."""
    return stage.parents[1] / _FOLDER / stage.stem


def track_rows(backends: Sequence[Backend], rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the figures of every row, each as a run of its own named after it.

    Args:
        backends: Where to; none for nothing.
        rows: Of the results.
        folder: Run folder.
    """
    for row in rows if backends else ():
        tracker = Tracker(backends, folder / _FOLDER / "rows" / row["name"])
        tracker.write({name: row[name] for name in _FIGURES if row.get(name) is not None}, "result", 0)
        tracker.close()
