"""Methods side by side: a line for each method and ratio, a column for each way to its weights."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detect.orderings import CONTROLS

__all__ = ["SCORES", "UNCUT", "Compared", "Comparison", "comparison", "score_of", "spread_text", "way_of"]

Row = Mapping[str, Any]
SCORES = {"map": "mAP", "top1": "top-1"}
"""Figure that tells how good a model is -> its name in tables."""
UNCUT = ("dense", *CONTROLS)
"""Orderings of the dense network, in the order of their lines."""


@dataclass(frozen=True)
class Compared:
    """What one method at one ratio gave."""

    method: str
    prune_ratio: float | None
    """None of a preset."""
    by_way: Mapping[str, Mapping[int, float]]
    """Way to the weights -> seed -> score."""

    @property
    def ratio_text(self) -> str:
        """The ratio, "-" of a preset."""
        return "-" if self.prune_ratio is None else f"{self.prune_ratio:g}"

    def text(self, way: str, decimals: int = 3) -> str:
        """Return mean and sample standard deviation over seeds, "-" where there is no row."""
        return spread_text(list(self.by_way.get(way, {}).values()), decimals)


@dataclass(frozen=True)
class Comparison:
    """All methods of an experiment."""

    score: str
    """The key of the figure that is compared."""
    ways: Sequence[str]
    dense: Sequence[float]
    """Scores of the dense reference, one for each seed."""
    lines: Sequence[Compared]

    def table(self) -> list[list[str]]:
        """Return headers and lines, the dense reference first."""
        dense = spread_text(self.dense, 3)
        cells = [[line.method, line.ratio_text, *map(line.text, self.ways)] for line in self.lines]
        return [["method", "prune_ratio", *self.ways], ["dense", "0", *(dense for _ in self.ways)], *cells]


def score_of(rows: Sequence[Row]) -> str:
    """Return the key of the figure that tells how good the rows' models are: detectors have mAP, classifiers do not."""
    return "map" if any(row["map"] is not None for row in rows) else "top1"


def way_of(row: Row, score: str) -> str:
    """Return the way to a row's weights: its budget, and with detectors its ordering."""
    return str(row["budget"]) if score == "top1" else f"{row['ordering']} ({row['budget']})"


def comparison(rows: Sequence[Row]) -> Comparison:
    """Return the rows that have a score by method, ratio and way."""
    score = score_of(rows)
    lines: dict[tuple[str, float | None], dict[str, dict[int, float]]] = {}
    for row in (row for row in rows if row["ordering"] not in UNCUT and row[score] is not None):
        line = lines.setdefault((row["method"], row["prune_ratio"]), {})
        line.setdefault(way_of(row, score), {})[row["seed"]] = row[score]
    return Comparison(
        score,
        list(dict.fromkeys(way for line in lines.values() for way in line)),
        [row[score] for row in rows if row["ordering"] == "dense" and row[score] is not None],
        [Compared(*key, line) for key, line in sorted(lines.items(), key=lambda item: item[0][1] or 0)],
    )


def spread_text(values: Sequence[float], decimals: int) -> str:
    """Return mean and sample standard deviation of figures, "-" where there are none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}"
