"""Network Slimming: a penalty on BatchNorm scales drives channels to zero, and one threshold cuts them everywhere."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from command.errors import RequestError
from prune.choose.criteria import BatchNormScale, group_scores
from prune.choose.recipe import Recipe
from prune.copies import copied
from prune.cut.spec import PruneSpec, layer_of
from prune.cut.surgery import removed_of, slim_model
from prune.cut.verify import fault_of
from prune.follow.groups import find_groups
from prune.learn.constants import fold_constants, repeat_borders
from prune.learn.equality import ROUNDING, largest_difference
from prune.learn.method import Learned, Method, call_for
from prune.private import Call, Inputs
from prune.pruning import prune_model

__all__ = ["SHIFTS", "NetworkSlimming", "check_foldable", "folded_model", "zero_scales"]

Shift = Literal["zeroed", "folded"]
SHIFTS: tuple[Shift, ...] = ("zeroed", "folded")
"""What becomes of the shift beta of a cut BatchNorm channel."""


class NetworkSlimming(Method):
    """L1 penalty on the scales of every BatchNorm whose channels may be cut, then a global threshold on them.

    Channels that are cut together count once, with the mean of their scales; every layer keeps a channel. As many
    go as the recipe says, rounded up: the official code, which keeps what is strictly above the value at int(N * ratio)
    of N sorted scales, removes one more where N * ratio is a whole number.

    Args:
        model: Its groups are found once; nothing of it is kept.
        example_inputs: Positional arguments of the model, batch first, or a `Call`.
        recipe: How much is cut, and where; its criterion, reduction and ranking are the method's own.
        penalty: Weight of the sum of |gamma| in the loss, > 0. Published: 1e-4 for VGG, 1e-5 for ResNet and DenseNet.
        shift: What becomes of the shift of a cut channel. `zeroed` drops it, as the official code does: the network
            changes by more than the small scales. `folded` keeps what it gives to the next layer in that layer's bias;
            see `prune.learn.constants` for where that is exact.

    Raises:
        RequestError: If a group that may be cut has no BatchNorm, or a shift could not be folded.

    Source: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, sec. 3.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        recipe: Recipe,
        penalty: float = 1e-4,
        shift: Shift = "zeroed",
    ) -> None:
        if not penalty > 0:
            raise RequestError(f"penalty: no penalty, got {penalty}; expected a number above 0")
        if shift not in SHIFTS:
            raise RequestError(f"shift: unknown, got {shift!r}; expected one of {list(SHIFTS)}")
        self.recipe = replace(recipe, criterion="bn_scale", reduction="mean", ranking="global", select_channels=True)
        self.penalty, self.shift, self._example = penalty, shift, example_inputs
        call = call_for(model, example_inputs)
        self.norms = _norms(model, call, self.recipe)
        """Names of the BatchNorms that are penalised."""
        if shift == "folded":
            check_foldable(model, zero_scales, self.recipe, call)

    def after_backward(self, model: nn.Module) -> None:
        """Add the penalty's subgradient, `penalty * sign(gamma)`."""
        pairs = [(scale.grad, scale) for scale in self.scales(model) if scale.grad is not None]
        if pairs:
            gradients, scales = [gradient for gradient, _ in pairs], [scale.detach() for _, scale in pairs]
            torch._foreach_add_(gradients, torch._foreach_sign(scales), alpha=self.penalty)

    def scales(self, model: nn.Module) -> list[Tensor]:
        """Return the penalised scales."""
        return [model.get_parameter(f"{name}.weight") for name in self.norms]

    def slim(self, model: nn.Module, **fields: Any) -> Learned:
        """Return the slim copy of the trained model.

        Args:
            model: It is not changed.
            fields: Those of the recipe that differ now.

        Raises:
            RequestError: As `prune_model`; or a shift cannot be folded.
        """
        call = call_for(model, self._example)
        pruned = prune_model(model, call.args, replace(self.recipe, **fields), example_kwargs=call.kwargs)
        if self.shift == "zeroed":
            return Learned(pruned.model, pruned.spec, pruned.decisions)
        masked = zero_scales(copied(model, {}), pruned.spec)
        slim, inexact = folded_model(masked, pruned.spec, call)
        return Learned(slim, pruned.spec, pruned.decisions, inexact)


def zero_scales(model: nn.Module, spec: PruneSpec, shift: Shift = "folded") -> nn.Module:
    """Set the scales of removed channels to zero, in place, and their shifts if they are `zeroed`; return the model.

    This is the masked network that the slim one equals.
    """
    for name, cut in spec.layers.items():
        layer = layer_of(model, name)
        if isinstance(layer, _BatchNorm) and layer.affine and cut.kept_out is not None:
            removed = removed_of(layer.weight, 0, torch.tensor(cut.kept_out))
            layer.weight.data[removed] = 0
            if shift == "zeroed":
                layer.bias.data[removed] = 0
    return model


def folded_model(masked: nn.Module, spec: PruneSpec, example_inputs: Inputs) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the slim copy of a masked model with the constants of its removed channels, and where it is not exact.

    Args:
        masked: It is changed: the constants are in its biases afterwards.
        spec: What is removed.
        example_inputs: Positional arguments of the model, or a `Call`.

    Raises:
        RequestError: As `fold_constants`, or if the slim model does not compute what the masked one did.
    """
    before = copied(masked, {})
    inexact = fold_constants(masked, spec, example_inputs)
    slim = slim_model(masked, spec)
    if fault := fault_of(masked, slim, spec, example_inputs):
        raise RequestError(f"model: its slim copy {fault}; expected one that prune_model can cut")
    before, padded = (_padded_by_copies(one, inexact) for one in (before, slim))
    if (apart := largest_difference(before, padded, example_inputs)) > ROUNDING:
        raise RequestError(
            f"model: constants of removed channels are lost on the way, its slim copy differs by {apart:.2g} of the "
            "largest output; expected plain layers, with a bias or followed by BatchNorms: skip the layers before "
            "others, or let shifts be zeroed"
        )
    return slim, inexact


def _padded_by_copies(model: nn.Module, layers: tuple[str, ...]) -> nn.Module:
    """Return a copy whose layers pad with their border instead of zeros: folding a constant is exact there."""
    model = copied(model, {})
    for name in layers:
        repeat_borders(layer_of(model, name))
    return model


def check_foldable(
    model: nn.Module, masked: Callable[[nn.Module, PruneSpec], nn.Module], recipe: Recipe, call: Call
) -> None:
    """Raise RequestError if the network cannot take constants, before it is trained for that.

    Args:
        model: It is not changed; a copy whose BatchNorms all have shifts is tried.
        masked: Sets the removed channels of a model to what they will be.
        recipe: What will be cut.
        call: The example.
    """
    trial = copied(model, {})
    for module in trial.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            module.bias.data.fill_(1.0)
    spec = prune_model(trial, call.args, recipe, example_kwargs=call.kwargs, verify=False).spec
    folded_model(masked(trial, spec), spec, call)


def _norms(model: nn.Module, example_inputs: Inputs, recipe: Recipe) -> tuple[str, ...]:
    """Return the BatchNorms of groups that may be cut; raises as the criterion does for a group without one."""
    call = call_for(model, example_inputs)
    groups = find_groups(model, call.args, call.kwargs, unused=recipe.unused, **recipe.following)
    recipe.check_patterns(groups)
    free = [group for group in groups if not recipe.reason_whole(group)]
    for group in free:
        group_scores(BatchNormScale(), model, group)
    names = dict.fromkeys(member.layer for group in free for member in group.members if member.side == "out")
    return tuple(name for name in names if isinstance(layer_of(model, name), _BatchNorm))
