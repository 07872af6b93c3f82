"""Rows of the results gathered into lines: the rows of a line differ by their seed alone."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiment.comparison import CUT, FAMILY, UNCUT, cut_of, family_of, score_of

__all__ = ["Line", "Row", "differing", "lines_of"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the table: the rows that differ only by their seed."""

    label: str
    rows: list[Row]

    @property
    def is_dense(self) -> bool:
        """Whether it is the reference."""
        return bool(self.first("ordering") == "dense")

    @property
    def place(self) -> int:
        """Place in the table: the dense detectors first."""
        ordering = self.first("ordering")
        return UNCUT.index(ordering) if ordering in UNCUT else len(UNCUT)

    def first(self, key: str) -> Any:
        """Return the value of the key in the first row."""
        return self.rows[0].get(key)

    @property
    def family(self) -> tuple[str | None, ...]:
        """What it has in common with the lines that it is compared with."""
        return family_of(self.rows[0])

    @property
    def cut(self) -> tuple[Any, ...]:
        """What was cut."""
        return cut_of(self.rows[0])

    @property
    def is_slim(self) -> bool:
        """Whether its networks are pruned."""
        return self.place == len(UNCUT)

    @property
    def score(self) -> str:
        """Key of the figure that tells how good the models are."""
        return score_of(self.rows)

    def values(self, key: str) -> list[float]:
        """Return the key's figure of every row that has one: the reference has no speedup interval."""
        return [row[key] for row in self.rows if row.get(key) is not None]

    def by_seed(self, key: str) -> dict[int, float]:
        """Return the key's figure of every seed that has one."""
        return {row["seed"]: row[key] for row in self.rows if row[key] is not None}

    def drawn(self, draws: Mapping[str, Any]) -> dict[int, Any]:
        """Return by seed what is given by the rows' names, without what is empty."""
        return {row["seed"]: draws[row["name"]] for row in self.rows if draws.get(row["name"])}

    def mean(self, key: str) -> float:
        """Return the mean over seeds, NaN where no row has a figure."""
        return statistics.fmean(self.values(key) or [math.nan])

    def spread(self, key: str) -> float:
        """Return the sample standard deviation over seeds, 0 where there are not two figures."""
        return statistics.stdev(self.values(key)) if len(self.values(key)) > 1 else 0.0

    def epochs(self, part: str) -> int:
        """Return the epochs of all trainings of a part, "classifier" or "detector"."""
        return sum(num for stage, num in self.first("train_epochs").items() if part in stage)

    def both_epochs(self) -> str:
        """Return the epochs of classification and detection, of the former alone where there is no detector."""
        detector = f"+{self.epochs('detector')}" if self.score == "map" else ""
        return f"{self.epochs('classifier')}{detector}"

    def number(self, key: str, decimals: int, unit: float = 1.0) -> str:
        """Return the mean in a unit, with the spread where the seeds differ."""
        mean, spread = self.mean(key) / unit, self.spread(key) / unit
        return f"{mean:.{decimals}f}" + (f" ± {spread:.{decimals}f}" if spread else "")


def lines_of(rows: list[Row]) -> list[Line]:
    """Gather rows that differ only by seed, dense first, then its controls."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((family_of(row), row["ordering"], row["budget"], *cut_of(row)), []).append(row)
    lines = [Line(_label(group[0], rows), group) for group in groups.values()]
    families = list(dict.fromkeys(line.family for line in lines))
    return sorted(lines, key=lambda line: (families.index(line.family), line.place))


def differing(rows: list[Row]) -> list[str]:
    """Return what tells the slim rows apart, besides their seeds: keys of rows."""
    slim = [row for row in rows if row["ordering"] not in UNCUT]
    first = "ordering" if score_of(rows) == "map" else "method"
    return list(dict.fromkeys((first, "budget", *_several(FAMILY, rows), *_differing_cuts(slim))))


def _differing_cuts(slim: list[Row]) -> list[str]:
    """Return what tells cuts apart; how much was cut is left out where the method's name tells."""
    keys = _several(CUT, slim)
    if "method" in keys and len({row["method"] for row in slim}) == len({cut_of(row) for row in slim}):
        return ["method"]
    return keys


def _several(keys: Sequence[str], rows: list[Row]) -> list[str]:
    """Return the keys that have several values."""
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]


def _label(row: Row, rows: list[Row]) -> str:
    first, *rest = differing(rows)
    if row["ordering"] in UNCUT:
        first, rest = "ordering", _several(FAMILY, rows)
    more = [str(row[key]) for key in rest if row.get(key) is not None]
    return f"{row[first]} ({', '.join(more)})" if more else str(row[first])
