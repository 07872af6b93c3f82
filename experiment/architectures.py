"""The slim architectures of an experiment, from the widths in its results: what every layer keeps of the dense one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiment.report_lines import Line
from experiment.report_tables import MOST_COLUMNS, Cell, Table

__all__ = ["SlimArchitecture", "architectures_of", "width_table"]

Widths = Mapping[str, Mapping[str, int]]
"""Row's name -> layer -> output channels."""


@dataclass(frozen=True)
class SlimArchitecture:
    """A slim network, whose weights several lines may have found in several ways."""

    name: str
    dense: Mapping[str, int]
    """Layer -> output channels, in the order of the network."""
    kept: Mapping[str, float]
    """Of the same layers, mean over seeds; 0 of a layer that is gone."""


def architectures_of(lines: Sequence[Line], widths: Widths) -> list[SlimArchitecture]:
    """Return the slim architectures, each once; none where the widths are not known."""
    found: dict[str, SlimArchitecture] = {}
    for line in (line for line in lines if line.is_slim):
        dense = _dense_of(line, lines, widths)
        seeds = list(line.drawn(widths).values())
        if not (dense and seeds):
            continue
        kept = {layer: sum(one.get(layer, 0) for one in seeds) / len(seeds) for layer in dense}
        name = _name(line, lines)
        known = found.get(name)
        if known and (known.dense, known.kept) != (dense, kept):
            name = line.label
        found[name] = SlimArchitecture(name, dense, kept)
    return list(found.values())


def _dense_of(line: Line, lines: Sequence[Line], widths: Widths) -> Mapping[str, int]:
    """Return the widths of the dense line, of the same backbone where there are several."""
    for other in lines:
        if other.is_dense and other.family == line.family:
            return widths.get(other.first("name"), {})
    return {}


def _name(line: Line, lines: Sequence[Line]) -> str:
    """Return what was cut, of which backbone where there are several; it is the same on every target."""
    several = len({other.first("backbone") for other in lines}) > 1
    return ", ".join(str(part) for part in (line.first("backbone") if several else None, *line.cut) if part is not None)


def width_table(architectures: Sequence[SlimArchitecture]) -> Table | None:
    """Return what every layer keeps, a column for each architecture; None where there is none."""
    if not architectures:
        return None
    layers = {layer: num for one in reversed(architectures) for layer, num in one.dense.items()}
    cells: list[list[Cell]] = [
        [layer, num, *(_whole(one.kept.get(layer)) for one in architectures)] for layer, num in layers.items()
    ]
    headers = ["layer", "dense", *(one.name for one in architectures)]
    return Table("widths", "Channels by layer", headers, cells, most=MOST_COLUMNS)


def _whole(num: float | None) -> Cell:
    """Return channels as a whole number, unless seeds differ."""
    return int(num) if num is not None and num == int(num) else num
