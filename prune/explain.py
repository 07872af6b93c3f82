"""Each layer of a pruned model before and after, and what its shapes say about its speed on a GPU.

Nothing here is measured. What is said of a GPU is predicted from shapes alone, for one image in half precision, each
layer by itself; it tells where to look when a slim model is slower than its MACs promise. Only a clock tells the time.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prune.cost import Cost, cost_of
from prune.groups import find_groups
from prune.modes import evaluating
from prune.spec import layer_of, layer_widths

__all__ = ["CAUSES", "Cause", "Explanation", "Finding", "LayerRow", "explain", "untouched_reasons"]

Cause = Literal["uncut", "half_cut", "memory_bound", "misaligned"]
CAUSES: tuple[Cause, ...] = get_args(Cause)

GRID = 8
"""Half precision runs on multiples of so many channels; others are padded with zeros up to the next one.

Source: NVIDIA, Convolutional Layers User's Guide: channels divisible by 8 for FP16, 16 for INT8; cuDNN >= 7.6.3 pads.
"""
MULTIPLES = (32, 16, 8)
MEMORY_BOUND = 69
"""MACs per byte below which moving data takes longer than computing.

Source: NVIDIA, GPU Performance Background User's Guide, section 3: a V100 does 125e12 operations in half precision and
moves 900e9 bytes a second, 139 operations or 69 MACs per byte. A100 and H100 do more per byte (more layers are bound).
"""
BYTES_PER_ELEMENT = 2
MEMORY_BOUND_LAG = 0.5
"""A memory-bound layer gains too little if its bytes fall by less than this share of the fall of its MACs.

A cut of both sides by r takes 1 - (1 - r)^2 of the MACs and at least r of the bytes, which is more than half as much;
below half, the side that holds most of the elements stayed whole.
"""
HALF_CUT_LAG = 0.75
"""The same for a layer of which one side only was cut.

With as many channels on both sides the bytes then fall half as much as the MACs where activations outweigh the weights,
and just as much where weights outweigh the activations; the limit lies midway. That nets pruned inside their blocks
only gain less than others at equal MACs: Liu et al., Group Fisher Pruning, ICML 2021 (1.30x against 1.79x, ResNet-50).
"""


@dataclass(frozen=True)
class Finding:
    """Why a layer will gain less than its MACs say, or nothing."""

    cause: Cause
    text: str


@dataclass(frozen=True)
class LayerRow:
    """A convolution or linear layer, dense and slim; costs are for one image."""

    name: str
    type: str
    dense_channels_in: int
    channels_in: int
    dense_channels_out: int
    channels_out: int
    groups: int
    """Of the slim convolution; 1 for a linear layer."""
    dense_macs: int
    macs: int
    dense_activations: int
    activations: int
    """Elements of the output, as in `prune.cost`."""
    dense_params: int
    params: int
    dense_bytes: int
    bytes: int
    """Input, output and weights in half precision, each moved once per call."""
    reason: str | None
    """Why its outputs are untouched, or None."""
    findings: tuple[Finding, ...] = ()

    @property
    def sides_cut(self) -> tuple[str, ...]:
        """Which of "in" and "out" lost channels."""
        cut = {
            "in": self.channels_in < self.dense_channels_in,
            "out": self.channels_out < self.dense_channels_out,
        }
        return tuple(side for side, is_cut in cut.items() if is_cut)

    @property
    def multiple_of(self) -> int:
        """The largest of 32, 16 and 8 that divides the output channels, else 1."""
        return next((multiple for multiple in MULTIPLES if self.channels_out % multiple == 0), 1)

    @property
    def padding(self) -> float:
        """Share of its work spent on zeros, where pruning took the channels off the grid of 8."""
        return 1 - math.prod(num / _padded(num) for _, num in self.off_grid)

    @property
    def off_grid(self) -> tuple[tuple[str, int], ...]:
        """Side and channels where these are no multiple of 8 any more."""
        sides = [("in", self.dense_channels_in, self.channels_in), ("out", self.dense_channels_out, self.channels_out)]
        sides = sides if self.groups == 1 else sides[1:]  # a grouped convolution's inputs are counted by its groups
        return tuple((side, num) for side, dense, num in sides if num % GRID and dense % GRID == 0)

    @property
    def macs_per_byte(self) -> float:
        """How much it computes per byte moved."""
        return self.macs / self.bytes

    @property
    def slow(self) -> str | None:
        """Why it will gain less than its MACs say, or nothing; None if its shapes show no cause."""
        return "; ".join(finding.text for finding in self.findings) or None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        derived = ("multiple_of", "padding", "macs_per_byte", "slow")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class Explanation:
    """Costs of the whole model for one image, and its layers in the order of the forward pass."""

    dense_macs: int
    macs: int
    dense_activations: int
    activations: int
    dense_params: int
    params: int
    layers: tuple[LayerRow, ...]

    @property
    def mac_reduction(self) -> float:
        """Dense MACs / slim MACs."""
        return self.dense_macs / self.macs

    @property
    def padded_macs(self) -> int:
        """Slim MACs together with those that padding adds."""
        return sum(round(row.macs / (1 - row.padding)) for row in self.layers)

    @property
    def slow(self) -> tuple[LayerRow, ...]:
        """The layers that will gain less than their MACs say, or nothing."""
        return tuple(row for row in self.layers if row.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON takes it."""
        derived = {"mac_reduction": self.mac_reduction, "padded_macs": self.padded_macs}
        return {**asdict(replace(self, layers=())), **derived, "layers": [row.to_dict() for row in self.layers]}


def explain(
    dense: nn.Module, slim: nn.Module, example_inputs: tuple[Any, ...], reasons: Mapping[str, str]
) -> Explanation:
    """Compare a slim model with its dense one, layer by layer.

    Only shapes count: both models and the inputs may be on the meta device.

    Args:
        dense: The model before pruning; run in eval mode, as `slim` is.
        slim: The same layers, some of them narrower.
        example_inputs: Positional arguments of both models, of batch size 1.
        reasons: Layer -> why its outputs are untouched; see `untouched_reasons`.

    Raises:
        ValueError: If the models do not have the same layers.
    """
    before, after = cost_of(dense, example_inputs), cost_of(slim, example_inputs)
    odd = sorted(before.layers.keys() ^ after.layers.keys())
    if odd:
        raise ValueError(f"{odd[0]}: in one of the two models only; expected a slim model and its own dense one")
    moved = _bytes_moved(dense, example_inputs), _bytes_moved(slim, example_inputs)
    rows = []
    for name in after.layers:
        layers = layer_of(dense, name), layer_of(slim, name)
        row = _row(name, layers, (before, after), (moved[0][name], moved[1][name]))
        rows.append(row if "out" in row.sides_cut else replace(row, reason=reasons.get(name)))
    if any(row.sides_cut for row in rows):
        rows = [replace(row, findings=tuple(_findings(row))) for row in rows]
    sums = [sum(layer.activations for layer in cost.layers.values()) for cost in (before, after)]
    return Explanation(before.macs, after.macs, *sums, before.params, after.params, tuple(rows))


def untouched_reasons(dense: nn.Module, example_inputs: tuple[Any, ...], otherwise: str) -> dict[str, str]:
    """Return, for every layer, why its outputs would be left whole.

    Args:
        dense: The model before pruning.
        example_inputs: Positional arguments of `dense`, batch first.
        otherwise: The reason where nothing stands in the way of pruning.

    Raises:
        ValueError: If the forward pass fails on the example input.
    """
    reasons = {}
    for group in find_groups(dense, example_inputs):
        layers = [name for name in group.producers or (group.name,) if _is_layer(layer_of(dense, name))]
        tied = ", tied to other layers" if len(layers) > 1 else ""
        reasons.update(dict.fromkeys(layers, group.obstacle or otherwise + tied))
    return reasons


def _row(name: str, layers: tuple[Any, Any], costs: tuple[Cost, Cost], moved: tuple[int, int]) -> LayerRow:
    before, after = costs[0].layers[name], costs[1].layers[name]
    (dense_in, dense_out), (num_in, num_out) = (layer_widths(layer) for layer in layers)
    return LayerRow(
        name=name,
        type=_type(layers[1]),
        dense_channels_in=dense_in,
        channels_in=num_in,
        dense_channels_out=dense_out,
        channels_out=num_out,
        groups=getattr(layers[1], "groups", 1),
        dense_macs=before.macs,
        macs=after.macs,
        dense_activations=before.activations,
        activations=after.activations,
        dense_params=before.params,
        params=after.params,
        dense_bytes=moved[0],
        bytes=moved[1],
        reason=None,
    )


def _type(layer: nn.Module) -> str:
    if not isinstance(layer, _ConvNd):
        return "linear"
    kernel = "x".join(map(str, layer.kernel_size))
    if layer.groups == 1:
        return f"conv {kernel}"
    return f"depthwise {kernel}" if layer.groups == layer.in_channels else f"conv {kernel} in {layer.groups} groups"


def _is_layer(layer: nn.Module | nn.Parameter) -> bool:
    return isinstance(layer, _ConvNd | nn.Linear)


def _bytes_moved(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, int]:
    """Return layer -> bytes it reads and writes in one forward pass."""
    moved: dict[str, int] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        elements = inputs[0].numel() + output.numel() + sum(parameter.numel() for parameter in layer.parameters())
        moved[name] = moved.get(name, 0) + BYTES_PER_ELEMENT * elements

    hooks = [
        module.register_forward_hook(lambda layer, inputs, output, name=name: count(name, layer, inputs, output))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(*example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return moved


def _findings(row: LayerRow) -> list[Finding]:
    if not row.sides_cut:
        return [Finding("uncut", f"left whole: {row.reason or 'no reason known'}")]
    found = [lag] if (lag := _lag(row)) else []
    if row.off_grid:
        padded = " and ".join(f"{num} channels {side} run as {_padded(num)}" for side, num in row.off_grid)
        found.append(Finding("misaligned", f"{padded}: {_percent(row.padding)} of its work is padding"))
    return found


def _lag(row: LayerRow) -> Finding | None:
    """Return the finding for a layer whose traffic fell much less than its MACs."""
    macs_cut, bytes_cut = 1 - row.macs / row.dense_macs, 1 - row.bytes / row.dense_bytes
    fell = f"bytes moved fell by {_percent(bytes_cut)}, MACs by {_percent(macs_cut)}"
    if row.macs_per_byte < MEMORY_BOUND and bytes_cut < MEMORY_BOUND_LAG * macs_cut:
        return Finding("memory_bound", f"bound by memory at {row.macs_per_byte:.0f} MACs per byte: {fell}")
    if len(row.sides_cut) == 1 and bytes_cut < HALF_CUT_LAG * macs_cut:
        side = {"in": "inputs", "out": "outputs"}[row.sides_cut[0]]
        return Finding("half_cut", f"only its {side} were cut: {fell}")
    return None


def _padded(num: int) -> int:
    return -(-num // GRID) * GRID


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
