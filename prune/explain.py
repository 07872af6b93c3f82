"""Each layer of a pruned model before and after, and what its shapes predict about its speed on a GPU.

Nothing here is measured. GPU speed is predicted from shapes alone, for one image in half precision and each layer by
itself. The prediction shows where to look when a slim model is slower than its MACs suggest; real times need a
measurement.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.cost import Cost, cost_of
from prune.cut.spec import PruneSpec, layer_of, layer_widths
from prune.follow.groups import find_groups
from prune.follow.layers import is_producer
from prune.layer_rows import LAG, MEMORY_BOUND, Finding, LayerRow, padded
from prune.private import Call, PrivateModel

__all__ = ["Explanation", "explain", "untouched_reasons"]

BYTES_PER_ELEMENT = 2


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
        """Slim MACs including those that padding adds."""
        return sum(round(row.macs / (1 - row.padding)) for row in self.layers)

    @property
    def slow(self) -> tuple[LayerRow, ...]:
        """The layers that will gain less than their MACs suggest, or nothing."""
        return tuple(row for row in self.layers if row.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON types."""
        derived = {"mac_reduction": self.mac_reduction, "padded_macs": self.padded_macs}
        return {**asdict(replace(self, layers=())), **derived, "layers": [row.to_dict() for row in self.layers]}


def explain(
    dense: nn.Module,
    slim: nn.Module,
    example_inputs: tuple[Any, ...],
    reasons: Mapping[str, str],
    spec: PruneSpec | None = None,
) -> Explanation:
    """Compare a slim model with its dense one, layer by layer; layers of removed blocks count in the dense sums alone.

    Only shapes count: both models and the inputs may be on the meta device.

    Args:
        dense: The model before pruning; run in eval mode, as `slim` is.
        slim: The same layers, some of them narrower.
        example_inputs: Positional arguments of both models, of batch size 1.
        reasons: Layer -> why its outputs are untouched; see `untouched_reasons`.
        spec: What was cut, where it removes blocks.

    Raises:
        RequestError: If the models do not have the same layers.
    """
    before, after = cost_of(dense, example_inputs), cost_of(slim, example_inputs)
    odd = sorted(name for name in before.layers.keys() ^ after.layers.keys() if not (spec and spec.is_removed(name)))
    if odd:
        raise RequestError(f"{odd[0]}: in one of the two models only; expected a slim model and its own dense one")
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
        dense_activations=sum(layer.activations for layer in before.layers.values()),
        activations=sum(row.activations for row in rows),
        dense_params=before.params,
        params=after.params,
        layers=tuple(rows),
    )


def untouched_reasons(dense: nn.Module, example_inputs: tuple[Any, ...], otherwise: str) -> dict[str, str]:
    """Return, for every layer, why its outputs would not be cut.

    Args:
        dense: The model before pruning.
        example_inputs: Positional arguments of `dense`, batch first.
        otherwise: The reason given for layers that could be pruned.

    Raises:
        RequestError: If the forward pass fails on the example input.
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


def _type(layer: Any) -> str:
    if isinstance(layer, nn.Linear):
        return "linear"
    kernel = "x".join(map(str, layer.kernel_size))
    if layer.groups == 1:
        return f"transposed conv {kernel}" if getattr(layer, "transposed", False) else f"conv {kernel}"
    return f"depthwise {kernel}" if layer.groups == layer.in_channels else f"conv {kernel} in {layer.groups} groups"


def _bytes_moved(model: nn.Module, example_inputs: tuple[Any, ...]) -> dict[str, int]:
    """Return layer -> bytes it reads and writes in one forward pass."""
    moved: dict[str, int] = {}

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        elements = inputs[0].numel() + output.numel() + sum(parameter.numel() for parameter in layer.parameters())
        moved[name] = moved.get(name, 0) + BYTES_PER_ELEMENT * elements

    private = PrivateModel(model)
    for name, module in private.model.named_modules():
        if is_producer(module):
            module.register_forward_hook(partial(count, name))
    private.run(Call.of(example_inputs), torch.no_grad())
    return moved


def _findings(row: LayerRow) -> list[Finding]:
    if not row.sides_cut:
        return [Finding("uncut", f"left whole: {row.reason or 'no reason known'}")]
    found = [lag] if (lag := _lag(row)) else []
    if row.off_grid:
        widths = " and ".join(dict.fromkeys(f"{num} channels run as {padded(num)}" for _, num in row.off_grid))
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
    """Return the longer of computing time and transfer time, as the bytes that could be moved in it."""
    return max(macs / MEMORY_BOUND, num_bytes)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
