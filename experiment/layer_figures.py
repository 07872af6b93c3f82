"""What the model files of a run have in each layer, as figures for its results: channels, and histograms of weights."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors

from classify.checkpoint import read_card
from experiment.histograms import LayerWeights, histogram_of, widest_of
from experiment.patterns import BACKBONE, spread_over

__all__ = ["histograms_in", "widths_in"]


def widths_in(file: Path) -> dict[str, int]:
    """Return the output channels of every convolution of a model file's backbone, by name, without reading weights."""
    with safetensors.safe_open(file, "pt") as content:
        shapes = {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118  # not a dict
    return {_layer(name): shapes[name][0] for name in _convolutions(shapes)}


def histograms_in(files: Mapping[str, Path]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return by label and layer the fields of `Histogram`, of a few layers that all files of one network have.

    One layer of one file is in memory at a time.
    """
    networks = {label: read_card(file).backbone.name for label, file in files.items()}
    found: dict[str, dict[str, dict[str, Any]]] = {label: {} for label in files}
    for network in dict.fromkeys(networks.values()):
        those = {label: file for label, file in files.items() if networks[label] == network}
        first, *others = map(widths_in, those.values())
        for layer in spread_over([name for name in first if all(name in other for other in others)]):
            widest = max(widest_of(_read(file, layer)) for file in those.values())
            for label, file in those.items():
                found[label][layer] = asdict(histogram_of(_read(file, layer), widest))
    return found


def _read(file: Path, layer: str) -> LayerWeights:
    with safetensors.safe_open(file, "pt") as content:
        prefix = BACKBONE if f"{BACKBONE}{layer}.weight" in content.keys() else ""  # noqa: SIM118  # not a dict
        return LayerWeights.of(layer, content.get_tensor(f"{prefix}{layer}.weight").double().numpy())


def _convolutions(shapes: Mapping[str, list[int]]) -> list[str]:
    """Return the names of their weights, the tenth block of a stage after the ninth."""
    names = [name for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 4]
    in_backbone = [name for name in names if name.startswith(BACKBONE)]
    return sorted(in_backbone or names, key=_by_number)


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _layer(name: str) -> str:
    return name.removesuffix(".weight").removeprefix(BACKBONE)
