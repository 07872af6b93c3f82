"""`espalier report` of several run folders: side by side, or merged into one."""

import json
from collections.abc import Sequence
from pathlib import Path

import rich.table
import typer
from rich import box
from rich.console import Console
from rich.text import Text

from command.errors import RequestError
from command.options import closing
from deploy.text import latex_table, markdown, printable
from experiment.merging import merge_folders
from experiment.report import csv_text, table_as_markdown
from experiment.report_tables import Table
from experiment.side_by_side import side_by_side

__all__ = ["merge", "print_side_by_side"]


def print_side_by_side(folders: Sequence[Path], form: str) -> None:
    """Print several runs against the first, on standard output.

    Args:
        folders: Of the runs.
        form: "json", "markdown", "latex", "csv" or "text".

    Raises:
        RequestError: As `side_by_side`.
    """
    beside = side_by_side(folders)
    table, notes = beside.table(), beside.notes()
    if form == "json":
        typer.echo(json.dumps(beside.figures(), indent=1))
    elif form == "markdown":
        sentences = "\n".join(f"- {markdown(note)}" for note in notes)
        typer.echo(f"{markdown(table.title)}\n\n{table_as_markdown(table)}\n\n{sentences}")
    elif form == "latex":
        typer.echo(latex_table(table.headers, table.alignment, table.texts(), [table.title, *notes]), nl=False)
    elif form == "csv":
        typer.echo(csv_text(table.headers, table.cells), nl=False)
    else:
        Console().print(_for_terminal(table), *(Text(printable(note)) for note in notes), sep="\n")


def merge(folders: Sequence[Path], out: Path | None) -> None:
    """Merge run folders; print what to run next.

    Raises:
        RequestError: As `merge_folders`, or if there are not several folders and a new one.
    """
    if out is None or len(folders) < 2:
        raise RequestError("--merge: merges several run folders into a new one; expected two or more, and --out")
    num = merge_folders(folders, out)
    done = f"wrote {out}, {num} stages; their times are taken anew, on one machine, by the run of their config"
    closing(done, ["espalier", "run", "CONFIG", "--out", out])


def _for_terminal(table: Table) -> rich.table.Table:
    shown = rich.table.Table(title=Text(printable(table.title)), box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header, side in zip(table.headers, table.alignment, strict=True):
        shown.add_column(header.replace(" ", "\n"), justify="right" if side == "r" else "left", overflow="fold")
    for cells in table.texts():
        shown.add_row(*(Text(printable(cell)) for cell in cells))
    return shown
