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
from prune.groups import find_groups, is_producer
from prune.modes import evaluating
from prune.spec import layer_of, layer_widths

__all__ = [
    "CAUSES",
    "GRID",
    "MEMORY_BOUND",
    "Cause",
    "Explanation",
    "Finding",
    "LayerRow",
    "explain",
    "untouched_reasons",
]

Cause = Literal["misaligned", "memory_bound", "half_cut", "uncut"]
CAUSES: tuple[Cause, ...] = get_args(Cause)

GRID = 8
"""Half precision runs on multiples of so many channels; others are padded with zeros up to the next one.

Source: NVIDIA, Convolutional Layers User's Guide, "Channels In And Out"; cuDNN pads since version 7.6.3.
"""
MULTIPLES = (32, 16, 8)
MEMORY_BOUND = 69
"""MACs per byte below which moving data takes longer than computing.

Source: NVIDIA, GPU Performance Background User's Guide: a V100 does 125e12 operations in half precision and moves 900e9
bytes a second, 139 operations or 69 MACs per byte. An A100 or H100 does more per byte: more layers are bound there.
"""
BYTES_PER_ELEMENT = 2
LAG = 0.75
"""A layer gains too little if its time, or what it moves, falls by less than this share of the fall of its MACs.

Bytes fall as MACs do in a depthwise layer, and where weights outweigh activations. Where activations outweigh weights
they fall half as much if one side was cut, or both by little. The limit lies midway. Nets cut inside their blocks only,
on one side of most layers, gain less at equal MACs: Liu et al., Group Fisher Pruning, ICML 2021, 1.30x against 1.79x.
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
    def widths(self) -> dict[str, tuple[int, int]]:
        """Dense and slim channels of the sides "in" and "out"."""
        return {
            "in": (self.dense_channels_in, self.channels_in),
            "out": (self.dense_channels_out, self.channels_out),
        }

    @property
    def sides_cut(self) -> tuple[str, ...]:
        """Which of "in" and "out" lost channels."""
        return tuple(side for side, (dense, slim) in self.widths.items() if slim < dense)

    @property
    def multiple_of(self) -> int:
        """The largest of 32, 16 and 8 that divides the output channels, else 1."""
        return next((multiple for multiple in MULTIPLES if self.channels_out % multiple == 0), 1)

    @property
    def padding(self) -> float:
        """Share of its work spent on zeros, where pruning took the channels off the grid of 8."""
        return 1 - math.prod(num / _padded(num) for _, num in self.off_grid)

    @property
    def runs_as_before(self) -> bool:
        """Whether it runs with as many channels as the dense layer: it was not cut, or padding undoes the cut."""
        return all(_padded(slim) == dense for dense, slim in self.widths.values() if slim < dense)

    @property
    def off_grid(self) -> tuple[tuple[str, int], ...]:
        """Side and channels where these are no multiple of 8 any more."""
        sides = ("in", "out") if self.groups == 1 else ("out",)  # a grouped one's inputs are counted by its groups
        widths = [(side, *self.widths[side]) for side in sides]
        return tuple((side, slim) for side, dense, slim in widths if slim % GRID and dense % GRID == 0)

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
        derived = ("multiple_of", "padding", "macs_per_byte", "runs_as_before", "slow")
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
    return Explanation(
        dense_macs=before.macs,
        macs=after.macs,
        dense_activations=sum(row.dense_activations for row in rows),
        activations=sum(row.activations for row in rows),
        dense_params=before.params,
        params=after.params,
        layers=tuple(rows),
    )


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
    known = {name for name, module in dense.named_modules() if is_producer(module)}
    for group in find_groups(dense, example_inputs):
        layers = [name for name in group.producers or (group.name,) if name in known]
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
        return f"transposed conv {kernel}" if layer.transposed else f"conv {kernel}"
    return f"depthwise {kernel}" if layer.groups == layer.in_channels else f"conv {kernel} in {layer.groups} groups"


def _bytes_moved(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, int]:
    """Return layer -> bytes it reads and writes in one forward pass."""
    moved: dict[str, int] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        elements = inputs[0].numel() + output.numel() + sum(parameter.numel() for parameter in layer.parameters())
        moved[name] = moved.get(name, 0) + BYTES_PER_ELEMENT * elements

    hooks = [
        module.register_forward_hook(lambda layer, inputs, output, name=name: count(name, layer, inputs, output))
        for name, module in model.named_modules()
        if is_producer(module)
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
        widths = " and ".join(dict.fromkeys(f"{num} channels run as {_padded(num)}" for _, num in row.off_grid))
        undone = ", as before pruning" if row.runs_as_before else ""
        found.append(Finding("misaligned", f"{widths}{undone}: {_percent(row.padding)} of its work is padding"))
    return found


def _lag(row: LayerRow) -> Finding | None:
    """Return the finding for a layer whose time or traffic fell much less than its MACs."""
    macs_cut, bytes_cut = 1 - row.macs / row.dense_macs, 1 - row.bytes / row.dense_bytes
    time_cut = 1 - _time(row.macs, row.bytes) / _time(row.dense_macs, row.dense_bytes)
    fell = f"bytes moved fell by {_percent(bytes_cut)}, MACs by {_percent(macs_cut)}"
    if time_cut < LAG * macs_cut:
        return Finding("memory_bound", f"bound by memory at {row.macs_per_byte:.0f} MACs per byte: {fell}")
    if bytes_cut < LAG * macs_cut and len(row.sides_cut) == 1:
        return Finding("half_cut", f"cut on one side: {fell}")
    return None


def _time(macs: int, num_bytes: int) -> float:
    """Return whichever takes longer, computing or moving data, in bytes that could be moved meanwhile."""
    return max(macs / MEMORY_BOUND, num_bytes)


def _padded(num: int) -> int:
    return -(-num // GRID) * GRID


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
