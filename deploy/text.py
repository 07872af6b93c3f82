"""Names that others chose (classes, files, devices), shown so that they stay text: no markup of theirs counts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["drawable", "latex", "latex_from_rich", "latex_table", "markdown", "printable"]

# Letters that GitHub's Markdown, or the engine that renders a site from it, may take for markup; not those of `a_b`.
_MARKUP = re.compile(r"[\\`*~<>\[\]{}%|&$]|\b_|_\b")
_LATEX = {
    **{ord(letter): f"\\{letter}" for letter in "{}$&#_%"},
    **{ord(letter): f"{{{letter}}}" for letter in "[]*"},  # which a row's end takes for its options
    ord("\\"): r"\textbackslash{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
    ord("<"): r"\textless{}",
    ord(">"): r"\textgreater{}",
    ord("|"): r"\textbar{}",
    ord('"'): r"\char34{}",
}
_LIGATURE = re.compile(r"(?<=[-`',!?])(?=[-`',])")  # as -- becomes a dash


def printable(text: str) -> str:
    """Return text in one line; what could move a cursor, change colours or turn the direction becomes an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def drawable(text: str, longest: int = 80) -> str:
    """Return a text for a figure: one line of at most that many letters, all of which the figure's font has."""
    from matplotlib.font_manager import FontProperties, findfont, get_font  # not needed by a deployed model

    font = get_font(findfont(FontProperties()))
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return "".join(letter if font.get_char_index(ord(letter)) else "\ufffd" for letter in short)


def markdown(text: str) -> str:
    """Return text for a line or a table's cell of Markdown, where it reads as it is."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", printable(text))


def latex(text: str) -> str:
    """Return text for LaTeX, where it reads as it is; letters outside of Latin need XeLaTeX or LuaLaTeX."""
    return _LIGATURE.sub("{}", printable(text).translate(_LATEX))


def latex_table(
    headers: Sequence[str], alignment: str, rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
) -> str:
    """Return a table for LaTeX with the package booktabs.

    Args:
        headers: Titles of the columns.
        alignment: A letter per column, as LaTeX has it: "lr" for a name and a number.
        rows: Texts of the cells, one per column.
        notes: Lines of comment above it.
    """
    head, *body = (f"{' & '.join(map(latex, cells))} \\\\" for cells in (headers, *rows))
    comments = [f"% {printable(note)}".rstrip() for note in notes]
    begin = [*comments, f"\\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule"]
    return "\n".join([*begin, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex_from_rich(table: Table) -> str:
    """Return a terminal's table for LaTeX; its title and caption become comments."""
    columns = [(str(column.header), column.justify, [str(cell) for cell in column.cells]) for column in table.columns]
    headers, justified, cells = zip(*columns, strict=True)
    alignment = "".join("r" if side == "right" else "l" for side in justified)
    notes = [line for text in (table.title, table.caption) for line in str(text or "").splitlines()]
    return latex_table(headers, alignment, list(zip(*cells, strict=True)), notes)
