"""Results become tables, plots and one self-contained HTML page. Nothing is trained or measured here.

`plots.py` draws the figures, `report_pictures.py` prepares the detections, `report.html` lays out the page.
"""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from rich import box
from rich.table import Table
from rich.text import Text

from command.errors import RequestError
from command.files import written_atomically
from deploy.text import latex_table, markdown, printable
from experiment import plots, report_pictures
from experiment.comparison import SCORES, UNCUT, comparison, score_of
from experiment.loss_curves import Drawn, loss_curves
from experiment.results import RESULTS, read_results

__all__ = ["read_results", "table_latex", "table_markdown", "table_text", "write_report"]

Row = dict[str, Any]
UNITS = {"G": 1e9, "M": 1e6, "ms": 1.0}
# So that the table fits a terminal of 80 columns; every word has its own line there.
SHORT_HEADERS = {"prune_ratio": "prune ratio", "speedup (x)": "speed up (x)", "MAC reduction (x)": "MACs cut (x)"}
_EPOCHS, _SEEDS = "epochs", "seeds"
_BY_TRAINING = ("train_epochs", "train_lr")
"""Keys of a row with a figure for each training."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Beginnings of a text that spreadsheets would run as a formula."""


@dataclass(frozen=True)
class _Line:
    """One line of the table: the rows that differ only by their seed."""

    label: str
    rows: list[Row]

    @property
    def is_dense(self) -> bool:
        return bool(self.first("ordering") == "dense")

    @property
    def place(self) -> int:
        """Place in the table: the dense detectors first."""
        ordering = self.first("ordering")
        return UNCUT.index(ordering) if ordering in UNCUT else len(UNCUT)

    def first(self, key: str) -> Any:
        """Return the value of the key in the first row."""
        return self.rows[0][key]

    @property
    def score(self) -> str:
        """Key of the figure that tells how good the models are."""
        return score_of(self.rows)

    def values(self, key: str) -> list[float]:
        """Return the key's figure of every row that has one: the reference has no speedup interval."""
        return [row[key] for row in self.rows if row[key] is not None]

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


class _Column(NamedTuple):
    """One column of the table; the header carries the unit."""

    header: str
    cell: Callable[[_Line], str]
    is_number: bool = True


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write `results.csv` and `report.html`, each whole or not at all, and return the latter's path.

    The results are what `results.json` holds; relative paths in them are relative to the folder.

    Raises:
        RequestError: If a picture is there, but is not the image that the results describe, or a curve is damaged.
    """
    for name, text in (("results.csv", _csv_text(results["rows"])), ("report.html", _page(results, folder))):
        with written_atomically(folder / name) as partial:
            # a file name of other bytes than UTF-8 may be in the command
            partial.write_text(text, encoding="utf-8", errors="replace", newline="")
    return folder / "report.html"


def table_text(results: dict[str, Any]) -> Table:
    """Return the table for a terminal: the device above it, the main finding below."""
    lines = _lines(results["rows"])
    below = (_EPOCHS,) if lines[0].score == "map" else (_EPOCHS, _SEEDS)  # 80 columns are full
    columns = [column for column in _columns(lines) if column.header not in below]
    caption = _finding(lines)
    if lines[0].score == "map":
        epochs = "; ".join(f"{line.label} {line.both_epochs()}" for line in lines)
        caption += f" Epochs of classification and detection: {epochs}."
    title = Text(printable(_device_sentence(results)))
    table = Table(title=title, caption=Text(printable(caption)), box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for column in columns:
        header = Text(SHORT_HEADERS.get(column.header, column.header).replace(" ", "\n"))
        table.add_column(header, justify="right" if column.is_number else "left", overflow="fold")
    table.columns[0].no_wrap = True  # where it is narrow, orderings are the last to be folded
    for line in lines:
        table.add_row(
            *(Text(printable(column.cell(line))) for column in columns), style="bold" if line.is_dense else ""
        )
    return table


def table_markdown(results: dict[str, Any]) -> str:
    """Return the table for a document, in GitHub's Markdown, under a sentence that names the device."""
    lines = _lines(results["rows"])
    columns = _columns(lines)
    table = [
        [column.header for column in columns],
        ["---:" if column.is_number else "---" for column in columns],
        *([markdown(column.cell(line)) for column in columns] for line in lines),
    ]
    device = markdown(_device_sentence(results))
    return "\n".join([device, "", *_piped(table), *_compared_markdown(results["rows"]), ""])


def _piped(table: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in table]


def _compared_markdown(rows: list[Row]) -> list[str]:
    """Return the methods side by side, and the verdicts, where there are several."""
    if not _has_methods(rows):
        return []
    compared = comparison(rows)
    headers, *cells = ([markdown(cell) for cell in line] for line in compared.table())
    rule = ["---", *("---:" for _ in headers[1:])]
    return ["", *_piped([headers, rule, *cells]), "", markdown(compared.verdicts())]


def _has_methods(rows: list[Row]) -> bool:
    """Return whether methods are compared, or classifiers alone are the result."""
    return score_of(rows) == "top1" or len({row["method"] for row in rows if row["method"]}) > 1


def table_latex(results: dict[str, Any]) -> str:
    """Return the same table for LaTeX, with the device and the finding as comments."""
    lines = _lines(results["rows"])
    columns = _columns(lines)
    cells = [[column.cell(line) for column in columns] for line in lines]
    alignment = "".join("r" if column.is_number else "l" for column in columns)
    notes = _device_sentence(results), _finding(lines)
    return latex_table([column.header for column in columns], alignment, cells, notes)


def _lines(rows: list[Row]) -> list[_Line]:
    """Gather rows that differ only by seed, dense first, then its controls."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in ("ordering", "budget", "method", "prune_ratio")), []).append(row)
    lines = [_Line(_label(group[0], rows), group) for group in groups.values()]
    return sorted(lines, key=lambda line: line.place)


def _differing(rows: list[Row]) -> list[str]:
    """Return what tells the slim rows apart, besides their seeds: keys of rows."""
    slim = [row for row in rows if row["ordering"] not in UNCUT]
    first = "ordering" if score_of(rows) == "map" else "method"
    some = [key for key in ("method", "prune_ratio") if len({row[key] for row in slim}) > 1]
    return list(dict.fromkeys((first, "budget", *some)))


def _label(row: Row, rows: list[Row]) -> str:
    first, *rest = _differing(rows)
    return row["ordering"] if row["ordering"] in UNCUT else f"{row[first]} ({', '.join(str(row[key]) for key in rest)})"


def _columns(lines: list[_Line]) -> list[_Column]:
    rows = [row for line in lines for row in line.rows]
    score = score_of(rows)
    columns = [_text_column(key) for key in _differing(rows)]
    if len({row["seed"] for row in rows}) > 1:
        columns.append(_Column(_SEEDS, lambda line: ", ".join(str(row["seed"]) for row in line.rows), is_number=False))
    return [
        *columns,
        _Column(_EPOCHS, _Line.both_epochs),
        _Column("mAP (VOC07)" if _is_voc(rows) else SCORES[score], lambda line: line.number(score, 3)),
        *([_Column("AP50", lambda line: line.number("map50", 3))] if score == "map" and not _is_voc(rows) else []),
        _scaled_column("MACs", "macs", ("G", "M"), lines),
        _scaled_column("params", "params", ("G", "M"), lines),
        _scaled_column("latency", "latency_ms", ("ms",), lines),
        _Column("speedup (x)", lambda line: line.number("speedup", 2)),
        _Column("95% interval", _interval),
        _Column("MAC reduction (x)", lambda line: line.number("mac_reduction", 2)),
    ]


def _is_voc(rows: list[Row]) -> bool:
    """Return whether mAP is VOC's: one figure, at an IoU of 0.5."""
    return bool(rows[0].get("metric") == "voc07")


def _text_column(key: str) -> _Column:
    """Return the column of a text that all rows of a line share; the dense ones have no method, but are named."""

    def cell(line: _Line) -> str:
        name = line.first("ordering") if key == "method" and line.place < len(UNCUT) else line.first(key)
        return "-" if name is None else str(name)

    return _Column(key, cell, is_number=False)


def _scaled_column(name: str, key: str, units: tuple[str, ...], lines: list[_Line]) -> _Column:
    """Choose the largest unit that fits, and the decimals that give the smallest figure three digits, at most three."""
    values = [value for line in lines for value in line.values(key)]
    unit = next((unit for unit in units if max(values) >= UNITS[unit]), units[-1])
    decimals = 2 - math.floor(math.log10(min(values) / UNITS[unit]))
    return _Column(f"{name} ({unit})", lambda line: line.number(key, min(3, max(0, decimals)), UNITS[unit]))


def _interval(line: _Line) -> str:
    low, high = line.mean("speedup_low"), line.mean("speedup_high")
    return f"{low:.2f}-{high:.2f}" if len(line.rows) == 1 and low < high else "-"


def _device_sentence(results: Mapping[str, Any]) -> str:
    return f"Latency was measured on {results['latency']['device']}."


def _finding(lines: list[_Line]) -> str:
    """Return sentences: the slim model with the highest score, its speedup, the control, and what is noise."""
    dense, slim = lines[0], [line for line in lines if line.place == len(UNCUT)]
    if not slim:
        return "Only the dense network was run."
    score = dense.score
    best = max(slim, key=lambda line: (line.mean(score), line.mean("speedup")))
    accuracy = f"{best.label} reaches {best.number(score, 3)} {SCORES[score]} (dense: {dense.number(score, 3)})"
    interval = "" if _interval(best) == "-" else f" (95% interval {_interval(best)})"
    doubt = ", no measured gain" if best.mean("speedup_low") <= 1 else ""
    gain = f"{best.number('speedup', 2)}x measured speedup{interval}{doubt}"
    noise = "One seed: differences smaller than the noise between seeds, which one seed cannot show, mean nothing."
    if len(best.rows) > 1:
        noise = f"Means over {len(best.rows)} seeds ± sample standard deviation: differences of that size mean nothing."
    finding = f"{accuracy} at {gain}, with {best.number('mac_reduction', 2)}x fewer MACs. "
    if score == "top1":
        rows = [row for line in lines for row in line.rows]
        return f"{finding}{comparison(rows).verdicts()} {noise}"
    return f"{_unequal(lines)}{finding}{_control(lines)}{noise}"


def _unequal(lines: list[_Line]) -> str:
    """Return a sentence that detectors were trained for different numbers of epochs, or nothing."""
    epochs = [line.epochs("detector") for line in lines]
    others = [f"{line.label} {num}" for line, num in zip(lines, epochs, strict=True) if num != epochs[0]]
    if not others:
        return ""
    dense = f"{lines[0].label} {epochs[0]}, {', '.join(others)}"
    return f"Detectors were trained for {min(epochs)} to {max(epochs)} epochs ({dense}), which alone can change mAP. "


def _control(lines: list[_Line]) -> str:
    """Return a sentence on the dense detector that was trained longer, or nothing."""
    for line in lines:
        if line.first("ordering") == "dense_longer":
            return (
                f"Dense trained for {line.epochs('detector')} epochs (dense_longer) reaches {line.number('map', 3)} "
                f"mAP; it is not pruned, so its {line.number('speedup', 2)}x is what a speedup can be without pruning. "
            )
    return ""


def _csv_text(rows: list[Row]) -> str:
    trainings = [
        {f"{key}.{stage}": num for key in _BY_TRAINING for stage, num in row.get(key, {}).items()} for row in rows
    ]
    stages = sorted({name for row in trainings for name in row})
    columns = [*dict.fromkeys(key for row in rows for key in row if key not in _BY_TRAINING), *stages]
    flat = [{**row, **training} for row, training in zip(rows, trainings, strict=True)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(map(_csv_cell, columns))
    writer.writerows([_csv_cell(row.get(column)) for column in columns] for row in flat)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a text so that spreadsheets show it instead of running it; a number is none, even a negative one."""
    if not isinstance(value, str):
        return value
    text = value.replace("\0", "\ufffd")  # which some readers of CSV refuse
    return f"'{text}" if text.startswith(FORMULA) else text


def _page(results: dict[str, Any], folder: Path) -> str:
    lines = _lines(results["rows"])
    names, classes = [row["name"] for line in lines for row in line.rows], results["dataset"]["classes"]
    drawn = [_picture(i, picture, classes, names, folder) for i, picture in enumerate(results["pictures"])]
    points = [_point(line) for line in lines]
    losses = partial(
        loss_curves, lines=[_drawn(line) for line in lines], files=results.get("curves", {}), folder=folder
    )
    compared = comparison(results["rows"]) if _has_methods(results["rows"]) else None
    source = Path(__file__).with_suffix(".html").read_text("utf-8")
    return jinja2.Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True).render(
        results=results,
        device_sentence=_device_sentence(results),
        finding=_finding(lines),
        columns=_columns(lines),
        lines=lines,
        score=lines[0].score,
        compared=compared,
        comparison_plot=plots.comparison_plot(compared) if compared else "",
        is_voc=_is_voc(results["rows"]),
        accuracy_plot=plots.accuracy_plot(points, *_score_name(lines)),
        speedup_plot=plots.speedup_plot([_point(line) for line in _architectures(lines)]),
        classifier_plot=plots.loss_plot(losses("classifier"), "nats"),
        detector_plot=plots.loss_plot(losses("detector"), "no unit"),
        pictures=drawn,
        legend=report_pictures.legend(drawn),
        least_score=report_pictures.LEAST_SCORE,
        largest_gap=max(abs(line.mean("map") - line.mean("map_framework")) for line in lines),  # NaN without mAP
        config_text=json.dumps(results["config"], indent=2, default=str, ensure_ascii=False),
    )


def _picture(i: int, picture: Row, classes: list[str], names: list[str], folder: Path) -> report_pictures.Picture:
    try:
        return report_pictures.prepare(picture, classes, names, folder)
    except (RequestError, OSError) as error:  # a name that is too long for the system, no permission
        raise RequestError(f"{folder / RESULTS}: pictures.{i}.file: {error!s:.500}") from error


def _architectures(lines: list[_Line]) -> list[_Line]:
    """Return the first line of each network: classifiers of one method and ratio differ by their weights alone."""
    if lines[0].score == "map":
        return lines
    return list({(line.first("method"), line.first("prune_ratio")): line for line in reversed(lines)}.values())[::-1]


def _score_name(lines: list[_Line]) -> list[str]:
    """Return the name of the score in the plot, where it is not COCO's mAP."""
    if lines[0].score == "top1":
        return ["top-1 accuracy"]
    return ["mAP (VOC2007: IoU 0.50, 11 recalls)"] if _is_voc(lines[0].rows) else []


def _drawn(line: _Line) -> Drawn:
    return line.label, line.first("ordering"), [row["name"] for row in line.rows]


def _point(line: _Line) -> plots.Point:
    figures = {key: line.mean(key) for key in plots.FIGURES}
    score, spread = line.mean(line.score), line.spread(line.score)
    return plots.Point(line.label, line.first("ordering"), score, spread, **figures)
