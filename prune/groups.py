"""Channels that must be cut together, found once per model by torch-pruning's dependency graph.

Only `find_groups` knows torch-pruning. What leaves this file is plain data: layer names and channel indices.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning
from torch import Tensor, nn

from prune.modes import evaluating

__all__ = ["CUTTABLE", "Group", "Member", "find_groups", "has_channels"]

CUTTABLE = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
"""Layer types that surgery can cut."""

_OUTPUT = "_output"


@dataclass(frozen=True, eq=False)
class Member:
    """One side of one layer that a group cuts.

    `channels[i]` of that side goes when channel `roots[i]` of the group goes. A flattened 7 x 7 feature map
    gives a linear layer 49 inputs per channel of the group, hence two index lists.
    """

    layer: str
    side: Literal["out", "in"]
    channels: Tensor
    roots: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Channels cut together; named after its first convolution or linear layer in the model's own order."""

    name: str
    num_channels: int
    members: tuple[Member, ...]
    obstacle: str | None = None
    """Why this group cannot be pruned, or None."""

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers that write the group's channels, in the model's order (normalisation layers included)."""
        return tuple(member.layer for member in self.members if member.side == "out")


def find_groups(model: nn.Module, example_inputs: tuple[Any, ...]) -> list[Group]:
    """Return every group of coupled channels, in the model's own order.

    Every convolution and linear layer that has outputs appears in a group, prunable or not: a group that cannot be
    pruned says so in `obstacle`, and so does a layer that the forward pass never reached.

    Args:
        model: Any module; traced in eval mode with gradients on for all parameters, both restored afterwards.
        example_inputs: Positional arguments of `model`, batch first.

    Source: Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023.
    """
    wrapper = _MarkedOutputs(model)
    with _traceable(model):
        wrapper.mark(example_inputs)
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(wrapper, example_inputs, verbose=False)
        raw_groups = list(graph.get_all_groups())
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    groups = [_group_from_raw(raw, graph, model, order) for raw in raw_groups if not _is_marker(raw, wrapper)]
    groups += _unreached(model, groups)
    return sorted(groups, key=lambda group: order[group.name])


def has_channels(module: nn.Module) -> bool:
    """Return whether the module is a convolution or linear layer, that is, one a criterion can score."""
    return isinstance(module, nn.Conv2d | nn.Linear)


class _MarkedOutputs(nn.Module):
    """Lets a one-channel layer read each output, so that a group that reaches an output has it as a member."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._output = nn.ModuleList()

    def mark(self, example_inputs: tuple[Any, ...]) -> None:
        for output in _tensors(self.model(*example_inputs)):
            num_channels = output.shape[1]
            marker = nn.Conv2d(num_channels, 1, 1) if output.ndim == 4 else nn.Linear(output.shape[-1], 1)
            self._output.append(marker.to(output.device))

    def forward(self, *inputs: Any) -> list[Tensor]:
        outputs = _tensors(self.model(*inputs))
        return [marker(output) for marker, output in zip(self._output, outputs, strict=True)]


def _tensors(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.ndim >= 2 else []
    values = outputs.values() if isinstance(outputs, dict) else outputs if isinstance(outputs, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients on everywhere: a frozen parameter is invisible to autograd, hence to the graph."""
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-pruning's advice to its own users
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _is_marker(raw: Any, wrapper: _MarkedOutputs) -> bool:
    return any(raw[0].dep.target.module is marker for marker in wrapper._output)


def _group_from_raw(raw: Any, graph: Any, model: nn.Module, order: dict[str, int]) -> Group:
    members: list[Member] = []
    obstacles: list[str] = []
    for item in raw:
        module = item.dep.target.module
        name = graph._module2name.get(module, "").removeprefix("model.")
        if name.startswith(_OUTPUT):
            obstacles.append("its channels are an output of the model")
        elif isinstance(module, nn.Parameter):
            obstacles.append("coupled to a parameter outside any layer")
        elif isinstance(module, torch_pruning.ops._SplitOp):
            obstacles.append("its channels are split at fixed places by the forward pass")
        elif not type(module).__module__.startswith("torch_pruning."):
            side: Literal["out", "in"] = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
            members.append(Member(name, side, torch.tensor(item.idxs), torch.tensor(item.root_idxs)))
            obstacles += _cannot_cut(name, module)
    members.sort(key=lambda member: order[member.layer])
    producers = [member.layer for member in members if member.side == "out"]
    name = next((layer for layer in producers if has_channels(model.get_submodule(layer))), producers[0])
    return Group(name, len(raw[0].idxs), tuple(members), obstacles[0] if obstacles else None)


def _cannot_cut(name: str, module: nn.Module) -> list[str]:
    if not isinstance(module, CUTTABLE):
        return [f"coupled to {name}, a {type(module).__name__}, which surgery cannot cut"]
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return [f"coupled to {name}, a grouped convolution, which surgery cannot cut"]
    return []


def _unreached(model: nn.Module, groups: list[Group]) -> list[Group]:
    reached = {name for group in groups for name in group.producers}
    return [
        Group(name, module.weight.shape[0], (), "not reached by the forward pass on the example input")
        for name, module in model.named_modules()
        if has_channels(module) and name not in reached
    ]
