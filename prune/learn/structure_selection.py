"""Sparse Structure Selection: factors on residual branches and on groups, driven to zero; what has zero disappears."""

import fnmatch
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from command.errors import RequestError
from prune.choose.recipe import check_ratio
from prune.copies import copied
from prune.cut.difference import NOTHING, difference_of
from prune.cut.spec import PruneSpec, layer_of, layer_widths
from prune.cut.surgery import slim_model
from prune.cut.verify import fault_of
from prune.follow.branches import grouped_norms, residual_branches
from prune.follow.groups import Group, find_groups
from prune.held_tensors import modules_of
from prune.learn.equality import ROUNDING, largest_difference
from prune.learn.method import Learned, Method, call_for
from prune.private import Call, Inputs, PrivateModel
from prune.pruning import Decision

__all__ = ["StructureSelection", "proximal_step"]


def proximal_step(
    factors: Tensor, gradients: Tensor, velocities: Tensor, lr: float, penalty: float, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Return the factors and velocities after one accelerated proximal step; all of one shape.

    With mu the momentum: v <- mu v; z = soft(l - lr g, lr penalty); v <- z - l + v; l <- max(0, z + mu v).

    Source: Huang & Wang, Data-Driven Sparse Structure Selection for Deep Neural Networks, ECCV 2018, sec. 3.4, in the
    order of the authors' code.
    """
    stepped = factors - lr * gradients
    shrunk = stepped - stepped.clamp(-lr * penalty, lr * penalty)
    velocities = shrunk - factors + momentum * velocities
    return (shrunk + momentum * velocities).clamp(min=0), velocities


class StructureSelection(Method):
    """Non-negative factors, 1 at first, multiply what residual branches and groups of channels give.

    A factor belongs to a layer, whose weight and bias it multiplies in every forward pass: the last layer of a branch
    (the published networks end in a convolution, torchvision's in a BatchNorm), or the BatchNorm behind a grouped
    convolution, as in ResNeXt, with a factor for each group. Factors are no parameters of the model, so that no
    optimizer decays them; several processes share the mean of their gradients. From a block whose factor is zero the
    branch is removed, with no change of what the network gives; a shortcut that the next block needs stays.

    What is zero in the end always goes, as in the paper; that is all with the ratio 0. A higher ratio is the least that
    goes: if fewer than floor(ratio * n) of n blocks are zero, those of the smallest factors follow, as if theirs were
    zero, and so do groups in the blocks that are left. That changes what the network gives; the paper has no such
    choice, but sets the penalty.

    Args:
        model: Gets hooks on those layers, until `detach`.
        example_inputs: Positional arguments of the model, batch first, or a `Call`.
        branches: Block -> layers of its branch, named from the block, the last one its end; those found by
            `residual_branches` if None.
        group_norms: BatchNorm -> groups of channels; those found by `grouped_norms` if None.
        penalty: Weight of the sum of the factors in the loss, > 0: gamma in the paper, 0.01 in its code.
        momentum: Of the factors' own step.
        prune_ratio: Least share of the blocks, and of the groups in those that are left, that goes, [0, 1).
        skip: Patterns of layers; blocks and groups with one of them have no factor, and stay.

    Raises:
        RequestError: If there is no such layer, or nothing to select.

    Source: Huang & Wang, Data-Driven Sparse Structure Selection for Deep Neural Networks, ECCV 2018.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        branches: Mapping[str, tuple[str, ...]] | None = None,
        group_norms: Mapping[str, int] | None = None,
        penalty: float = 0.01,
        momentum: float = 0.9,
        prune_ratio: float = 0.0,
        skip: tuple[str, ...] = (),
    ) -> None:
        check_ratio(prune_ratio)
        _check_patterns(model, skip)
        found = residual_branches(model) if branches is None else branches
        self.branches = {block: layers for block, layers in found.items() if not _matches(_inside(block, layers), skip)}
        ends = {_end(block, layers): 1 for block, layers in self.branches.items()}
        norms = grouped_norms(model) if group_norms is None else group_norms
        self.group_norms = {
            name: num for name, num in norms.items() if name not in ends and not _matches((name,), skip)
        }
        self.prune_ratio = prune_ratio
        self.penalty, self.momentum, self._example = penalty, momentum, example_inputs
        self.factors = {name: torch.ones(num, requires_grad=True) for name, num in {**self.group_norms, **ends}.items()}
        """Layer -> its factors: one for a branch, else one for each group."""
        self._velocities = {name: torch.zeros_like(factor) for name, factor in self.factors.items()}
        if not self.factors:
            raise RequestError("model: has no residual branch or group to select; name them in `branches`")
        if "" in self.branches:
            raise RequestError("model: is a residual block itself; expected a model that holds blocks")
        if not penalty >= 0 or not 0 <= momentum < 1:
            raise RequestError(
                f"penalty, momentum: out of range, got {penalty} and {momentum}; expected 0 or more, and in [0, 1)"
            )
        self._handles: list[tuple[str, RemovableHandle, RemovableHandle]] = []
        layers = {name: _scaled_layer(model, name, len(factor)) for name, factor in self.factors.items()}
        if len({id(layer) for layer in layers.values()}) < len(layers):
            raise RequestError(
                f"model: one layer would have two factors, got {', '.join(layers)}; leave blocks that share it out of "
                "`branches`, or groups out of `group_norms`"
            )
        for name, factor in self.factors.items():
            self._handles.append((name, *_attach(layers[name], factor)))

    def after_step(self, model: nn.Module, lr: float) -> None:
        """Move the factors by their gradients, with the optimizer's learning rate, and shrink them."""
        factors = list(self.factors.values())
        gradients = torch.cat([torch.zeros_like(f) if f.grad is None else f.grad for f in factors])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(gradients)
            gradients /= distributed.get_world_size()
        velocities = torch.cat([v.to(gradients.device) for v in self._velocities.values()])
        with torch.no_grad():
            moved, velocities = proximal_step(
                torch.cat(factors), gradients, velocities, lr, self.penalty, self.momentum
            )
        sizes = [len(factor) for factor in factors]
        torch._foreach_copy_([factor.data for factor in factors], moved.split(sizes))
        self._velocities = dict(zip(self.factors, velocities.split(sizes), strict=True))
        for factor in factors:
            factor.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return the factors and their velocities, by layer."""
        factors = {name: factor.detach().clone() for name, factor in self.factors.items()}
        return {"factors": factors, "velocities": {name: v.clone() for name, v in self._velocities.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the factors and their velocities."""
        super().load_state_dict(state)
        if state["factors"].keys() != self.factors.keys():
            raise RequestError(
                "StructureSelection: the state is another network's; expected factors of the same layers"
            )
        for name, factor in self.factors.items():
            factor.data.copy_(state["factors"][name])
            self._velocities[name] = state["velocities"][name].to(factor.device, copy=True)

    def detach(self) -> None:
        """Take the hooks off the model, which computes without factors then."""
        for _, *handles in self._handles:
            for handle in handles:
                handle.remove()

    def baked_model(self, model: nn.Module) -> nn.Module:
        """Return a copy without hooks, whose weights have the factors in them: it gives the same."""
        return self._baked(model, self.factors)

    def _baked(self, model: nn.Module, factors: Mapping[str, Tensor]) -> nn.Module:
        copy = copied(model, {})
        for name, before, after in self._handles:
            layer = copy.get_submodule(name)
            layer._forward_pre_hooks.pop(before.id, None)
            for hooks in (layer._forward_hooks, layer._forward_hooks_always_called):
                hooks.pop(after.id, None)
            for parameter in layer.parameters(recurse=False):
                parameter.data *= _spread(factors[name].detach(), parameter)
        return copy

    def slim(self, model: nn.Module) -> Learned:
        """Return the slim copy of the trained model: without the blocks, and the groups, whose factor is zero.

        With a ratio, and without those of the smallest factors. A layer keeps its best group. Groups whose channels
        cannot be cut stay.

        Raises:
            RequestError: If the slim model does not compute what it should.
        """
        factors = self.selected()
        baked, call = self._baked(model, factors), call_for(model, self._example)
        dead = [block for block, layers in self.branches.items() if not factors[_end(block, layers)].any()]
        gone = {block: self.branches[block] for block in dead if not any(_holds(other, block) for other in dead)}
        without = _without_blocks(baked, blocks := PruneSpec({}, gone), call)
        groups = find_groups(without, call.args, call.kwargs) if self.group_norms else []
        kept = {group.name: kept for group in groups if (kept := self._kept(group, factors)) is not None}
        channels = PruneSpec.from_kept(without, kept, groups)
        slim = slim_model(without, channels)
        if fault := fault_of(without, slim, channels, call):
            raise RequestError(f"model: its slim copy {fault}; give `group_norms` without the layers at fault")
        if kept and (apart := largest_difference(without, slim, call)) > ROUNDING:
            raise RequestError(
                f"model: channels of groups whose factor is zero are read elsewhere, or are not zero after their "
                f"activation: its slim copy differs by {apart:.2g} of the largest output; give `group_norms={{}}`"
            )
        decisions = tuple(self._decision(baked, block, factors) for block in self.branches)
        return Learned(slim, channels.after(blocks), decisions)

    def selected(self) -> dict[str, Tensor]:
        """Return the factors in the end: what goes has zero."""
        factors = {name: factor.detach().cpu().clone() for name, factor in self.factors.items()}
        ends = [_end(block, layers) for block, layers in self.branches.items()]
        for end in sorted(ends, key=lambda end: factors[end].item())[: self._least_of(len(ends))]:
            factors[end].zero_()
        dead = [block for block, layers in self.branches.items() if not factors[_end(block, layers)].any()]
        gone = {layer for block in dead for layer in _inside(block, self.branches[block])}
        groups = [(name, i) for name, num in self.group_norms.items() if name not in gone for i in range(num)]
        best = {(name, int(factors[name].argmax())) for name in self.group_norms}
        others = sorted((group for group in groups if group not in best), key=lambda at: factors[at[0]][at[1]].item())
        for name, i in others[: self._least_of(len(groups))]:
            factors[name][i] = 0
        return factors

    def _least_of(self, num: int) -> int:
        """Return how many of that many go at least."""
        return int(num * Fraction(str(self.prune_ratio)))

    def _kept(self, group: Group, final: Mapping[str, Tensor]) -> Tensor | None:
        """Return the channels of the group whose factors are not zero, or None where all stay."""
        is_kept = torch.ones(group.num_channels, dtype=torch.bool)
        norms = [member for member in group.members if member.layer in self.group_norms and member.side == "out"]
        for member in norms if not group.obstacle else ():
            factors = final[member.layer]
            is_alive = factors > 0
            is_alive[factors.argmax()] = True
            is_kept[member.roots] &= is_alive.repeat_interleave(len(member.channels) // len(factors))[member.channels]
        return None if is_kept.all() else is_kept.nonzero().flatten()

    def _decision(self, model: nn.Module, block: str, factors: Mapping[str, Tensor]) -> Decision:
        layers = _inside(block, self.branches[block])
        factor, width = factors[layers[-1]].item(), layer_widths(layer_of(model, layers[-1]))[1]
        return Decision(block, layers, width, 0 if not factor else width, f"factor {factor:.3g}" if factor else None)


def _without_blocks(model: nn.Module, spec: PruneSpec, call: Call) -> nn.Module:
    """Return the model without blocks whose branches give zero.

    Raises:
        RequestError: If it does not give the same.
    """
    slim = slim_model(model, spec)
    expected, actual = (PrivateModel(one).run(call.noise(), torch.no_grad()) for one in (model, slim))
    if spec.removed_blocks and (fault := difference_of(expected, actual)) not in (None, NOTHING):
        raise RequestError(f"model: without {', '.join(spec.removed_blocks)} it {fault}; leave them out of `branches`")
    return slim


def _holds(other: str, block: str) -> bool:
    """Return whether the other block has this one in it; they go together then."""
    return block.startswith(f"{other}.")


def _inside(block: str, layers: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{block}.{layer}" for layer in layers)


def _end(block: str, layers: tuple[str, ...]) -> str:
    return f"{block}.{layers[-1]}"


def _check_patterns(model: nn.Module, skip: tuple[str, ...]) -> None:
    """Raise RequestError if a pattern matches nothing of the model."""
    for pattern in skip:
        if not _matches(tuple(modules_of(model)), (pattern,)):
            raise RequestError(f"skip[{pattern!r}]: matches no layer; see the model's names")


def _matches(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _scaled_layer(model: nn.Module, name: str, num: int) -> nn.Module:
    """Return the layer that factors scale.

    Raises:
        RequestError: If it has no weight, or its channels are not that many groups.
    """
    layer = layer_of(model, name)
    if not isinstance(layer, nn.Module) or layer._parameters.get("weight") is None:
        raise RequestError(f"{name}: has no weight that a factor could scale; expected a convolution or BatchNorm")
    if num > 1 and (not isinstance(layer, _BatchNorm) or layer.num_features % num):
        raise RequestError(f"{name}: cannot be scaled in {num} groups; expected a BatchNorm of a multiple of channels")
    return layer


def _attach(layer: nn.Module, factor: Tensor) -> tuple[RemovableHandle, RemovableHandle]:
    """Let a layer compute with scaled tensors; its parameters stay what they are.

    To scale the few numbers of a BatchNorm costs nothing beside scaling the feature map that it gives.
    """

    def scale(layer: nn.Module, args: Any) -> None:
        for key, parameter in layer._parameters.items():
            if parameter is not None:
                if factor.device != parameter.device and not parameter.is_meta:  # the network was moved
                    factor.data = factor.data.to(parameter.device)
                vars(layer)[key] = parameter * _spread(factor, parameter)  # found before the parameter of that name

    def restore(layer: nn.Module, args: Any, output: Any) -> None:
        for key in layer._parameters:
            vars(layer).pop(key, None)

    return layer.register_forward_pre_hook(scale), layer.register_forward_hook(restore, always_call=True)


def _spread(factor: Tensor, parameter: Tensor) -> Tensor:
    """Return factors that multiply a parameter: one for all, or one for each run of channels."""
    factor = factor.to(parameter)
    return factor if len(factor) == 1 else factor.repeat_interleave(len(parameter) // len(factor))
