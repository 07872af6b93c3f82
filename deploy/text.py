"""Names that others chose (classes, files, devices), shown so that they stay text: no markup of theirs counts."""

import re

__all__ = ["markdown", "printable"]

# Letters that GitHub's Markdown, or the engine that renders a site from it, may take for markup; not those of `a_b`.
_MARKUP = re.compile(r"[\\`*~<>\[\]{}%|&$]|\b_|_\b")


def printable(text: str) -> str:
    """Return text in one line; what could move a cursor, change colours or turn the direction becomes an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def markdown(text: str) -> str:
    """Return text for a line or a table's cell of Markdown, where it reads as it is."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", printable(text))
