"""The figures of a classifier as tables, and as a file of figures with a picture beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from command.files import write_json, written_atomically
from deploy.text import printable

__all__ = ["FIGURES", "PICTURE", "accuracy_tables", "write_accuracy"]

FIGURES, PICTURE = "accuracy.json", "accuracy.png"
_MOST_ROWS = 20


def accuracy_tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return tables of the classes, the worst first, of what was mistaken for what, and of the bins of confidence."""
    known = sorted((percent, name) for name, percent in figures["per_class"].items() if percent is not None)
    return [
        _table(
            f"top-1 by class{_cut(len(known), 'the worst')}",
            ["class", "top1 (%)"],
            [[name, f"{percent:.2f}"] for percent, name in known],
        ),
        _table(
            "most frequent mistakes",
            ["class", "taken for", "images", "of the class"],
            [[c["label"], c["predicted"], f"{c['num']:,}", f"{c['share']:.4f}"] for c in figures["confusions"]],
        ),
        _table(
            f"calibration: expected error {figures['calibration_error']:.4f}",
            ["confidence", "images", "mean", "accuracy"],
            [
                [
                    f"{b['low']:.3f} to {b['high']:.3f}",
                    f"{b['num']:,}",
                    f"{b['confidence']:.4f}",
                    f"{b['accuracy']:.4f}",
                ]
                for b in figures["bins"]
                if b["num"]
            ],
        ),
    ]


def write_accuracy(figures: Mapping[str, Any], folder: Path, title: str) -> Path:
    """Write figures and picture into a folder; return the path of the picture."""
    from classify.accuracy_plot import accuracy_picture  # matplotlib takes a second, and only this needs it

    write_json(folder / FIGURES, figures)
    with written_atomically(folder / PICTURE) as path:
        accuracy_picture(figures, title).savefig(path, format="png")
    return folder / PICTURE


def _cut(num: int, which: str) -> str:
    return f", {which} {_MOST_ROWS} of {num:,}" if num > _MOST_ROWS else ""


def _table(title: str, headers: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title)
    for header in headers:
        is_name = header in ("class", "taken for", "confidence")
        table.add_column(header, justify="left" if is_name else "right", overflow="fold")
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    return table
