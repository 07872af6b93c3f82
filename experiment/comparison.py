"""Methods side by side: a line for each method and ratio, a column for each way to its weights."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from detect.orderings import CONTROLS

__all__ = [
    "CUT",
    "FAMILY",
    "SCORES",
    "UNCUT",
    "Compared",
    "Comparison",
    "comparison",
    "cut_of",
    "family_of",
    "score_of",
    "spread_text",
    "way_of",
]

Row = Mapping[str, Any]
SCORES = {"map": "mAP", "top1": "top-1"}
"""Figure that tells how good a model is -> its name in tables."""
UNCUT = ("dense", *CONTROLS)
"""Orderings of the dense network, in the order of their lines."""
FAMILY = ("backbone", "target")
"""Keys of rows that have a dense network of their own, which they are compared with."""
CUT = ("method", "prune_ratio", "limit")
"""Keys of rows that tell what was cut."""


@dataclass(frozen=True)
class Compared:
    """What one method at one ratio gave."""

    family: tuple[str | None, ...]
    method: str
    prune_ratio: float | None
    """None of a preset, and where there is a limit."""
    limit: str | None
    by_way: dict[str, dict[int, float]]
    """Way to the weights -> seed -> score."""

    @property
    def ratio_text(self) -> str:
        """The ratio or the limit, "-" of a preset."""
        return (self.limit or "-") if self.prune_ratio is None else f"{self.prune_ratio:g}"

    def text(self, way: str, decimals: int = 3) -> str:
        """Return mean and sample standard deviation over seeds, "-" where there is no row."""
        return spread_text(list(self.by_way.get(way, {}).values()), decimals)


@dataclass(frozen=True)
class Comparison:
    """All methods of an experiment."""

    score: str
    """The key of the figure that is compared."""
    ways: Sequence[str]
    dense: Mapping[tuple[str | None, ...], Sequence[float]]
    """Scores of the dense reference of each family, one for each seed."""
    lines: Sequence[Compared]

    def name(self, line: Compared) -> str:
        """Return the method, with the family where there are several."""
        return ", ".join([*self._family(line.family), line.method])

    def table(self) -> list[list[str]]:
        """Return headers and lines, those of a family together, its dense reference first."""
        several = len(self.dense) > 1
        has_limits = any(line.limit for line in self.lines)
        cells = [
            row
            for family, scores in self.dense.items()
            for dense in (spread_text(scores, 3),)
            for row in (
                [*self._family(family), "dense", "0", *(dense for _ in self.ways)],
                *(
                    [*self._family(family), line.method, line.ratio_text, *map(line.text, self.ways)]
                    for line in self.lines
                    if line.family == family
                ),
            )
        ]
        named = ["of"] if several else []
        return [[*named, "method", "prune_ratio or limit" if has_limits else "prune_ratio", *self.ways], *cells]

    def _family(self, family: tuple[str | None, ...]) -> list[str]:
        places = range(len(FAMILY)) if len(self.dense) > 1 else ()
        told = [family[place] for place in places if len({one[place] for one in self.dense}) > 1]
        return [" ".join(filter(None, told))] if told else []


def score_of(rows: Sequence[Row]) -> str:
    """Return the key of the figure that tells how good the rows' models are: detectors have mAP, classifiers do not."""
    return "map" if any(row["map"] is not None for row in rows) else "top1"


def family_of(row: Row) -> tuple[str | None, ...]:
    """Return what tells the dense network of a row from others; earlier versions had one."""
    return tuple(row.get(key) for key in FAMILY)


def cut_of(row: Row) -> tuple[Any, ...]:
    """Return what tells the cut of a row from others."""
    return tuple(row.get(key) for key in CUT)


def way_of(row: Row, score: str) -> str:
    """Return the way to a row's weights: its budget, and with detectors its ordering."""
    return str(row["budget"]) if score == "top1" else f"{row['ordering']} ({row['budget']})"


def comparison(rows: Sequence[Row]) -> Comparison:
    """Return the rows that have a score by method, ratio and way."""
    score = score_of(rows)
    lines: dict[Any, Compared] = {}
    dense: dict[tuple[str | None, ...], list[float]] = {}
    for row in (row for row in rows if row[score] is not None):
        if row["ordering"] == "dense":
            dense.setdefault(family_of(row), []).append(row[score])
        elif row["ordering"] not in UNCUT:
            line = Compared(family_of(row), row["method"], row["prune_ratio"], row.get("limit"), {})
            by_way = lines.setdefault((line.family, cut_of(row)), line).by_way
            by_way.setdefault(way_of(row, score), {})[row["seed"]] = row[score]
    return Comparison(
        score,
        list(dict.fromkeys(way for line in lines.values() for way in line.by_way)),
        dense,
        sorted(lines.values(), key=lambda line: line.prune_ratio or 0),
    )


def spread_text(values: Sequence[float], decimals: int) -> str:
    """Return mean and sample standard deviation of figures, "-" where there are none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{decimals}f}{spread}"
