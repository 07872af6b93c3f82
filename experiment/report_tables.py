"""The tables of a report: what is in their cells, whatever they become."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from experiment.comparison import SCORES, UNCUT, Comparison, score_of
from experiment.report_lines import Line, Row, differing
from experiment.verdicts import Judged

__all__ = [
    "EPOCHS",
    "SEEDS",
    "TRAIN_MACS",
    "Cell",
    "Column",
    "Table",
    "class_table",
    "columns_of",
    "difference_table",
    "interval_text",
    "is_voc",
    "method_table",
    "spread_table",
]

EPOCHS, SEEDS, TRAIN_MACS = "epochs", "seeds", "training MACs"
UNITS = {"E": 1e18, "P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "ms": 1.0}
_FIGURES = ("map", "map50", "top1", "train_macs", "macs", "params", "latency_ms", "speedup", "mac_reduction")
MOST_COLUMNS = 10
"""Of a table whose columns are lines or architectures, so that a page has room for it."""
Cell = str | int | float | None


class Column(NamedTuple):
    """One column of the table; the header carries the unit."""

    header: str
    cell: Callable[[Line], str]
    is_number: bool = True


class Table(NamedTuple):
    """A table besides that of the results."""

    name: str
    """Of its CSV file."""
    title: str
    headers: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    num_texts: int = 1
    """Columns that hold no numbers, from the left."""
    most: int = 0
    """Columns for which a page has room; 0 where it has for all. CSV, Markdown and LaTeX have all."""

    def texts(self) -> list[list[str]]:
        """Return the cells as they are shown; in the CSV they are unrounded."""
        return [[_shown(cell) for cell in row] for row in self.cells]

    @property
    def alignment(self) -> str:
        """A letter per column, as LaTeX has it."""
        return "l" * self.num_texts + "r" * (len(self.headers) - self.num_texts)


def _shown(cell: Cell) -> str:
    if cell is None:
        return "-"
    return f"{round(cell, 3) + 0.0:.3f}" if isinstance(cell, float) else str(cell)


def method_table(compared: Comparison) -> Table:
    """Return the methods side by side."""
    headers, *cells = compared.table()
    return Table("methods", "Methods side by side", headers, cells)


def difference_table(judged: Sequence[Judged]) -> Table:
    """Return every difference with its interval and verdict."""
    headers = ["first", "second", "verdict", "difference", "95% from", "to", "seeds", "over images"]
    cells = [
        [one.first.label, one.second.label, one.verdict, found.mean, *_bounds(one), found.num_seeds, _images(one)]
        for one in judged
        for found in (one.difference,)
    ]
    return Table("differences", f"Differences in {SCORES[judged[0].first.score]}", headers, cells, num_texts=3)


def _bounds(one: Judged) -> list[float | None]:
    return [one.difference.low, one.difference.high] if one.difference.is_known else [None, None]


def _images(one: Judged) -> str:
    return "no" if one.difference.image_error is None else "yes"


def spread_table(lines: Sequence[Line]) -> Table:
    """Return mean and sample standard deviation over seeds of every line's figures, for a CSV."""
    labels = differing([row for line in lines for row in line.rows])
    figures = [key for key in _FIGURES if any(line.values(key) for line in lines)]
    headers = [*labels, "seeds", *(f"{key}.{what}" for key in figures for what in ("mean", "sd"))]
    cells: list[list[Cell]] = [
        [
            *(line.rows[0].get(key) for key in labels),
            len(line.rows),
            *(cell for key in figures for cell in _mean_and_sd(line.values(key))),
        ]
        for line in lines
    ]
    return Table("summary", "Mean and standard deviation", headers, cells, len(labels))


def _mean_and_sd(values: Sequence[float]) -> list[Cell]:
    return [statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None]


def class_table(lines: Sequence[Line], per_class: Mapping[str, Mapping[str, float | None]]) -> Table | None:
    """Return the mAP of each band of sizes and of each class, means over seeds; None where none is known."""
    bands = [key for key in ("map_small", "map_medium", "map_large") if any(row.get(key) for row in lines[0].rows)]
    classes = dict.fromkeys(name for found in per_class.values() for name in found)
    if not bands and not classes:
        return None
    cells: list[list[Cell]] = [
        ["size", band.removeprefix("map_"), *(_mean(row.get(band) for row in line.rows) for line in lines)]
        for band in bands
    ]
    for name in classes:
        found = (_mean(one.get(name) for one in line.drawn(per_class).values()) for line in lines)
        cells.append(["class", name, *found])
    headers = ["kind", "of", *(line.label for line in lines)]
    return Table("classes", "mAP by size and class", headers, cells, 2, MOST_COLUMNS)


def _mean(figures: Iterator[float | None]) -> float | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if known else None


def columns_of(lines: list[Line]) -> list[Column]:
    """Return the columns of the table of results."""
    rows = [row for line in lines for row in line.rows]
    score = score_of(rows)
    columns = [_text_column(key) for key in differing(rows)]
    if len({row["seed"] for row in rows}) > 1:
        columns.append(Column(SEEDS, lambda line: ", ".join(str(row["seed"]) for row in line.rows), is_number=False))
    return [
        *columns,
        Column(EPOCHS, Line.both_epochs),
        *([_scaled_column(TRAIN_MACS, "train_macs", (*"EPTGM",), lines)] if _is_counted(rows) else []),
        Column("mAP (VOC07)" if is_voc(rows) else SCORES[score], lambda line: line.number(score, 3)),
        *([Column("AP50", lambda line: line.number("map50", 3))] if score == "map" and not is_voc(rows) else []),
        _scaled_column("MACs", "macs", ("G", "M"), lines),
        _scaled_column("params", "params", ("G", "M"), lines),
        _scaled_column("latency", "latency_ms", ("ms",), lines),
        Column("speedup (x)", lambda line: line.number("speedup", 2)),
        *([Column("95% interval", interval_text)] if any(interval_text(line) != "-" for line in lines) else []),
        Column("MAC reduction (x)", lambda line: line.number("mac_reduction", 2)),
    ]


def is_voc(rows: Sequence[Row]) -> bool:
    """Return whether mAP is VOC's: one figure, at an IoU of 0.5."""
    return bool(rows[0].get("metric") == "voc07")


def _is_counted(rows: Sequence[Row]) -> bool:
    """Return whether the training MACs of all rows are known, and some are not 0."""
    return all(row.get("train_macs") for row in rows)


def _text_column(key: str) -> Column:
    """Return the column of a text that all rows of a line share; the dense ones have no method, but are named."""

    def cell(line: Line) -> str:
        name = line.first("ordering") if key == "method" and line.place < len(UNCUT) else line.first(key)
        return "-" if name is None else str(name)

    return Column(key, cell, is_number=False)


def _scaled_column(name: str, key: str, units: tuple[str, ...], lines: list[Line]) -> Column:
    """Choose the largest unit that fits, and the decimals that give the smallest figure three digits, at most three."""
    values = [value for line in lines for value in line.values(key)]
    unit = next((unit for unit in units if max(values) >= UNITS[unit]), units[-1])
    decimals = 2 - math.floor(math.log10(min(values) / UNITS[unit]))
    return Column(f"{name} ({unit})", lambda line: line.number(key, min(3, max(0, decimals)), UNITS[unit]))


def interval_text(line: Line) -> str:
    """Return the interval of a line's speedup, "-" where it has none or there are several seeds."""
    low, high = line.mean("speedup_low"), line.mean("speedup_high")
    return f"{low:.2f}-{high:.2f}" if len(line.rows) == 1 and low < high else "-"
