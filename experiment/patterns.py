"""What pruned networks keep, layer by layer, and how their weights are distributed: the data of pictures."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.checkpoint import read_card, read_weights
from command.errors import RequestError
from experiment.histograms import LayerWeights
from experiment.prune_show import PruningReport, report_of
from prune.layer_rows import LayerRow

__all__ = [
    "BACKBONE",
    "LayerShare",
    "Pattern",
    "drawn_layers",
    "pattern_of",
    "spread_over",
    "weights_of",
]

BACKBONE = "backbone.net."
"""Begins the names of a detector's layers that a classifier has, too."""
_NUM_DRAWN = 6
_FEWEST_ZEROS = 1e-3
"""Share of a model's weights from which they count as cut one by one: a few are zero by chance or by training."""


@dataclass(frozen=True)
class LayerShare:
    """What one layer keeps."""

    name: str
    size: int
    """Elements of its feature map, of one channel: layers of one stage have the same."""
    kept: float


@dataclass(frozen=True)
class Pattern:
    """What a pruned network keeps."""

    name: str
    what: str
    """`channels` or `weights`."""
    layers: tuple[LayerShare, ...]
    kernels: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    """Size of a feature map -> share of weights kept at each place of the 3 x 3 kernels there; of `weights` alone."""


def pattern_of(subject: str, mmdet: Path | None = None) -> Pattern:
    """Return what a pruned network keeps: channels where it is slim, else single weights.

    Args:
        subject: As for `report_of`: a preset, or a model file.
        mmdet: mmdet's config, for a detector of its own parts.

    Raises:
        RequestError: If nothing was cut.
    """
    report = report_of(subject, None, None, None, mmdet)
    rows = [row for row in report.explanation.layers if row.type != "linear"]
    if any(row.sides_cut for row in rows):
        kept = (row.channels_out / row.dense_channels_out for row in rows)
        layers = (LayerShare(_short(row), _size(row), one) for row, one in zip(rows, kept, strict=True))
        return Pattern(report.name, "channels", tuple(layers))
    return _of_weights(report, rows)


def _of_weights(report: PruningReport, rows: Sequence[LayerRow]) -> Pattern:
    weights = read_weights(report.file) if report.file else {}
    masks = {row: (weights[f"{row.name}.weight"] != 0).numpy() for row in rows if f"{row.name}.weight" in weights}
    num = sum(mask.size for mask in masks.values())
    if not num or sum(int(mask.sum()) for mask in masks.values()) > (1 - _FEWEST_ZEROS) * num:
        raise RequestError(
            f"{report.name}: nothing was cut, got neither slim layers nor zeros; expected a pruned model"
        )
    layers = tuple(LayerShare(_short(row), _size(row), float(mask.mean())) for row, mask in masks.items())
    kernels = {}
    for size in dict.fromkeys(map(_size, masks)):
        of_stage = [mask for row, mask in masks.items() if _size(row) == size and mask.shape[2:] == (3, 3)]
        if of_stage:
            kernels[size] = np.mean([mask.mean((0, 1)) for mask in of_stage], axis=0)
    return Pattern(report.name, "weights", layers, kernels)


def weights_of(file: Path) -> dict[str, LayerWeights]:
    """Return the weights of the convolutions of a model file, by name, in the order of the network.

    Raises:
        RequestError: If it is no model file, or has no convolution.
    """
    read_card(file)
    found = {}
    for name, tensor in read_weights(file).items():
        if name.endswith(".weight") and tensor.ndim == 4:
            layer = name.removesuffix(".weight").removeprefix(BACKBONE)
            found[layer] = LayerWeights.of(layer, tensor.double().numpy())
    if not found:
        raise RequestError(f"{file}: has no convolution; expected a model file of a classifier or detector")
    return found


def _size(row: LayerRow) -> int:
    return row.dense_activations // row.dense_channels_out


def _short(row: LayerRow) -> str:
    return row.name.removeprefix(BACKBONE)


def drawn_layers(models: Mapping[str, Mapping[str, LayerWeights]], given: Sequence[str] | None = None) -> list[str]:
    """Return the layers to draw: the given ones, or a few of those that all models have, evenly spread.

    Raises:
        RequestError: If a model has not such a layer with a weight that is not zero, or they have none in common.
    """
    have = {label: [name for name, layer in found.items() if len(layer.values)] for label, found in models.items()}
    first, *others = have.values()
    common = [name for name in first if all(name in other for other in others)]
    for name in given or ():
        if name not in common:
            near = ", ".join(difflib.get_close_matches(name, common, n=3, cutoff=0.4)) or "none"
            raise RequestError(f"--layer {name}: not a convolution of every model; nearest names: {near}")
    if not common:
        raise RequestError(f"{', '.join(models)}: have no convolution in common; expected models of one network")
    return list(given or spread_over(common))


def spread_over(layers: Sequence[str]) -> list[str]:
    """Return a few of these layers, evenly spread; all where there are few."""
    last = len(layers) - 1
    return [layers[i] for i in sorted({i * last // (_NUM_DRAWN - 1) for i in range(_NUM_DRAWN)})] if layers else []
