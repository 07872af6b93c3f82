"""Results become tables, plots and one self-contained HTML page. Nothing is trained or measured here.

`report_tables.py` fills the tables, `verdicts.py` and `finding.py` say what is found, `plots.py` draws the figures,
`report_pictures.py` prepares the detections, `report.html` lays out the page.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jinja2
import rich.table
from markupsafe import Markup
from rich import box
from rich.text import Text

from command.errors import RequestError
from command.files import written_atomically
from deploy.text import latex_table, markdown, printable
from experiment import finding, plots, report_pictures
from experiment.architectures import SlimArchitecture, architectures_of, width_table
from experiment.comparison import Comparison, comparison, score_of
from experiment.histograms import Histogram
from experiment.layer_plots import MOST_DRAWN, weight_plots, width_plot
from experiment.loss_curves import Drawn, loss_curves
from experiment.report_lines import Line, Row, lines_of
from experiment.report_tables import (
    EPOCHS,
    SEEDS,
    TRAIN_MACS,
    Table,
    class_table,
    columns_of,
    difference_table,
    is_voc,
    method_table,
    spread_table,
)
from experiment.results import REPORT, RESULTS, read_results
from experiment.verdicts import Judged, Speed, judged_lines, judged_speeds, speed_counts, verdict_counts

__all__ = [
    "csv_of_rows",
    "csv_text",
    "methods_markdown",
    "read_results",
    "table_as_markdown",
    "table_latex",
    "table_markdown",
    "table_text",
    "write_report",
]

# So that the table fits a terminal of 80 columns; every word has its own line there.
SHORT_HEADERS = {"prune_ratio": "prune ratio", "speedup (x)": "speed up (x)", "MAC reduction (x)": "MACs cut (x)"}
_BY_TRAINING = ("train_epochs", "train_lr")
"""Keys of a row with a figure for each training."""
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Beginnings of a text that spreadsheets would run as a formula."""
_MOST_SENTENCES = 12
"""Verdicts that are said one by one; of more, their number is."""


@dataclass(frozen=True)
class _Content:
    """What the results say, whatever it is written as."""

    results: dict[str, Any]

    @cached_property
    def rows(self) -> list[Row]:
        rows: list[Row] = self.results["rows"]
        return rows

    @cached_property
    def lines(self) -> list[Line]:
        return lines_of(self.rows)

    @cached_property
    def judged(self) -> list[Judged]:
        return judged_lines(self.lines, self.results.get("draws", {}), self.results["dataset"]["num_val"])

    @cached_property
    def speeds(self) -> list[Speed]:
        return judged_speeds(self.lines)

    @cached_property
    def compared(self) -> Comparison | None:
        """The methods side by side, where there are several, or classifiers alone are the result."""
        is_shown = score_of(self.rows) == "top1" or len({row["method"] for row in self.rows if row["method"]}) > 1
        return comparison(self.rows) if is_shown else None

    @cached_property
    def architectures(self) -> list[SlimArchitecture]:
        return architectures_of(self.lines, self.results.get("widths", {}))

    @cached_property
    def summary(self) -> Table:
        """The table of results, as it is shown."""
        columns = columns_of(self.lines)
        cells = [[column.cell(line) for column in columns] for line in self.lines]
        num_texts = [column.is_number for column in columns].index(True)
        return Table("results", "Results", [column.header for column in columns], cells, num_texts)

    @property
    def finding(self) -> str:
        return finding.finding(self.results, self.lines, self.judged, self.speeds)

    @property
    def _is_judged(self) -> bool:
        return any(one.difference.is_known for one in self.judged)

    def verdicts(self) -> list[str]:
        """Return the sentences on accuracy, where any is more than that nothing is known."""
        if not self._is_judged:
            return []
        if len(self.judged) <= _MOST_SENTENCES:
            return [one.sentence() for one in self.judged]
        return verdict_counts(self.judged)

    def times(self) -> list[str]:
        """Return the sentences on latency."""
        if len(self.speeds) <= _MOST_SENTENCES:
            return [speed.sentence() for speed in self.speeds]
        return speed_counts(self.speeds)

    def tables(self) -> dict[str, Table]:
        """Return those besides the results' own, by name."""
        tables = [
            method_table(self.compared) if self.compared else None,
            difference_table(self.judged) if self._is_judged else None,
            class_table(self.lines, self.results.get("per_class", {})),
            width_table(self.architectures),
        ]
        return {table.name: table for table in tables if table}


def write_report(results: dict[str, Any], folder: Path) -> Path:
    """Write `report.html` and the CSV files of its tables, each whole or not at all, and return the former's path.

    The results are what `results.json` holds; relative paths in them are relative to the folder.

    Raises:
        RequestError: If a picture is there, but is not the image that the results describe, or a curve is damaged.
    """
    content = _Content(results)
    page = _page(content, folder)  # first: it finds what is damaged
    others = {"summary": spread_table(content.lines), **content.tables()}
    tables = {f"{name}.csv": csv_text(table.headers, table.cells) for name, table in others.items()}
    texts = {"results.csv": csv_of_rows(content.rows), **tables, "report.html": page}
    for name in set(REPORT) - texts.keys():  # a table of other results
        (folder / name).unlink(missing_ok=True)
    for name, text in texts.items():
        with written_atomically(folder / name) as partial:
            # a file name of other bytes than UTF-8 may be in the command
            partial.write_text(text, encoding="utf-8", errors="replace", newline="")
    return folder / "report.html"


def table_text(results: dict[str, Any]) -> rich.table.Table:
    """Return the table for a terminal: the device above it, the main finding below."""
    content = _Content(results)
    lines, is_detection = content.lines, content.lines[0].score == "map"
    below = (EPOCHS, TRAIN_MACS) if is_detection else (EPOCHS, TRAIN_MACS, SEEDS)  # 80 columns are full
    columns = [column for column in columns_of(lines) if column.header.partition(" (")[0] not in below]
    caption = content.finding
    if is_detection and len(lines) <= _MOST_SENTENCES:
        epochs = "; ".join(f"{line.label} {line.both_epochs()}" for line in lines)
        caption += f" Epochs of classification and detection: {epochs}."
    title = Text(printable(finding.device(results)))
    table = rich.table.Table(
        title=title, caption=Text(printable(caption)), box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
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
    """Return the tables for a document, in GitHub's Markdown: device, results, verdicts, and the other tables."""
    content = _Content(results)
    parts = [
        markdown(finding.device(results)),
        _piped(content.summary.headers, content.summary.texts(), content.summary.alignment),
        "\n".join(f"- {markdown(sentence)}" for sentence in [*content.verdicts(), *content.times()]),
        markdown(finding.how_judged(content.judged)) if content.judged else "",
        *map(table_as_markdown, content.tables().values()),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def methods_markdown(results: dict[str, Any]) -> str:
    """Return the methods side by side in GitHub's Markdown, and how many verdicts there are of each kind."""
    content = _Content(results)
    table = table_as_markdown(method_table(comparison(content.rows)))
    counts = "\n".join(f"- {markdown(sentence)}" for sentence in verdict_counts(content.judged))
    return "\n\n".join(filter(None, [table, counts, markdown(finding.how_judged(content.judged))])) + "\n"


def table_as_markdown(table: Table) -> str:
    """Return a table in GitHub's Markdown."""
    return _piped(list(map(markdown, table.headers)), table.texts(), table.alignment)


def _piped(headers: Sequence[str], rows: Iterable[Sequence[str]], alignment: str) -> str:
    table = [headers, ["---:" if side == "r" else "---" for side in alignment]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [*table, *(map(markdown, row) for row in rows)])


def table_latex(results: dict[str, Any]) -> str:
    """Return the same tables for LaTeX, with the device and the finding as comments."""
    content = _Content(results)
    table, notes = content.summary, (finding.device(results), content.finding)
    first = latex_table(table.headers, table.alignment, table.texts(), notes)
    others = (
        latex_table(table.headers, table.alignment, table.texts(), [table.title]) for table in content.tables().values()
    )
    return "\n".join([first, *others])


def csv_of_rows(rows: list[Row]) -> str:
    """Return rows of results as CSV, with a column for each training's figures."""
    trainings = [
        {f"{key}.{stage}": num for key in _BY_TRAINING for stage, num in row.get(key, {}).items()} for row in rows
    ]
    stages = sorted({name for row in trainings for name in row})
    columns = [*dict.fromkeys(key for row in rows for key in row if key not in _BY_TRAINING), *stages]
    flat = [{**row, **training} for row, training in zip(rows, trainings, strict=True)]
    return csv_text(columns, [[row.get(column) for column in columns] for row in flat])


def csv_text(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return cells as CSV that no spreadsheet runs."""
    text = io.StringIO()
    csv.writer(text).writerows([_csv_cell(cell) for cell in row] for row in (headers, *rows))
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    """Return a text so that spreadsheets show it instead of running it; a number is none, even a negative one."""
    if isinstance(value, list):
        value = " ".join(value)
    if not isinstance(value, str):
        return value
    text = value.replace("\0", "\ufffd")  # which some readers of CSV refuse
    return f"'{text}" if text.startswith(FORMULA) else text


def _page(content: _Content, folder: Path) -> str:
    results, lines = content.results, content.lines
    names, classes = [row["name"] for line in lines for row in line.rows], results["dataset"]["classes"]
    drawn = [_picture(i, picture, classes, names, folder) for i, picture in enumerate(results["pictures"])]
    points = [_point(line) for line in lines]
    losses = partial(
        loss_curves, lines=[_drawn(line) for line in lines], files=results.get("curves", {}), folder=folder
    )
    source, style, script = (
        Path(__file__).with_suffix(ending).read_text("utf-8") for ending in (".html", ".css", ".js")
    )
    return jinja2.Template(source, autoescape=True, trim_blocks=True, lstrip_blocks=True).render(
        results=results,
        printable=printable,
        style=Markup(style),  # ours
        script=Markup(script),  # ours
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        device_sentence=finding.device(results),
        measured_with=finding.measured_with(results),
        conditions=finding.conditions(results),
        is_gpu=all(one["is_gpu"] for one in finding.conditions(results).values()),
        num_models=len(
            {(line.first("ordering"), line.first("budget"), line.cut, line.first("model")) for line in lines}
        ),
        clocks=finding.clocks(results),
        finding=content.finding,
        verdicts=content.verdicts(),
        speeds=content.times(),
        how_judged=finding.how_judged(content.judged) if content.judged else "",
        summary=content.summary,
        dense_places=[i for i, line in enumerate(lines) if line.is_dense],
        is_one_seed=len({row["seed"] for row in content.rows}) == 1,
        lines=lines,
        score=lines[0].score,
        tables=content.tables(),
        comparison_plot=plots.comparison_plot(content.compared) if content.compared else "",
        is_voc=is_voc(content.rows),
        accuracy_plot=plots.accuracy_plot(points, *_score_name(lines)),
        macs_plot=plots.macs_plot(points, *_score_name(lines)),
        width_plot=width_plot(content.architectures),
        num_hidden=max(0, len(content.architectures) - MOST_DRAWN),
        weight_plots=weight_plots(_weights_of_best(content)),
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


def _architectures(lines: list[Line]) -> list[Line]:
    """Return the first line of each network: classifiers of one method and ratio differ by their weights alone."""
    if lines[0].score == "map":
        return lines
    return list({(line.family, line.cut): line for line in reversed(lines)}.values())[::-1]


def _weights_of_best(content: _Content) -> dict[str, dict[str, Histogram]]:
    """Return the weights of the dense network, and of all ways to those of the architecture with the highest score."""
    known, lines = content.results.get("weights", {}), content.lines
    slim = [line for line in lines if line.is_slim and line.first("name") in known]
    if not slim:
        return {}
    best = max(slim, key=lambda line: line.mean(line.score))
    alike = [line for line in slim if (line.family, line.cut) == (best.family, best.cut)]
    dense = [line for line in lines if line.is_dense and line.family == best.family]
    names = [field.name for field in fields(Histogram)]
    return {
        line.label: {layer: Histogram(*(one[name] for name in names)) for layer, one in known[row["name"]].items()}
        for line in (*dense, *alike)
        for row in line.rows
        if row["name"] in known
    }


def _score_name(lines: list[Line]) -> list[str]:
    """Return the name of the score in the plot, where it is not COCO's mAP."""
    if lines[0].score == "top1":
        return ["top-1 accuracy"]
    return ["mAP (VOC2007: IoU 0.50, 11 recalls)"] if is_voc(lines[0].rows) else []


def _drawn(line: Line) -> Drawn:
    return line.label, line.first("ordering"), [row["name"] for row in line.rows]


def _point(line: Line) -> plots.Point:
    figures = {key: line.mean(key) for key in plots.FIGURES}
    score, spread = line.mean(line.score), line.spread(line.score)
    return plots.Point(line.label, line.first("ordering"), score, spread, **figures)
