"""Names that others chose, made fit to be drawn in a figure."""

from matplotlib.font_manager import FontProperties, findfont, get_font

__all__ = ["drawable"]


def drawable(text: str, longest: int = 80) -> str:
    """Return a text for a figure: one line of at most that many letters, all of which the figure's font has."""
    font = get_font(findfont(FontProperties()))
    short = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return "".join(letter if font.get_char_index(ord(letter)) else "\ufffd" for letter in short)
