"""Soft Filter Pruning: the smallest filters are zeroed after every epoch and may come back; the last zeros are cut."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from command.errors import RequestError
from prune.choose.recipe import Recipe
from prune.copies import copied
from prune.cut.spec import PruneSpec, layer_of
from prune.cut.surgery import cut_tensors, removed_of
from prune.follow.groups import Group, find_groups
from prune.follow.layers import is_producer
from prune.learn.method import Learned, Method, call_for
from prune.learn.slimming import check_foldable, folded_model
from prune.private import Inputs
from prune.pruning import Pruned, prune_model

__all__ = ["SoftFilterPruning", "zero_filters"]


class SoftFilterPruning(Method):
    """Zeroes the int(n * ratio) filters of least L2 norm after every epoch; the next epoch trains them again.

    Layers that are cut together are zeroed together, ranked by the sum of their norms, so that what is zero can be cut.
    The official code masks every convolution by itself; in a plain chain of layers both are the same.

    Gradients bring a filter back through its BatchNorm, unless a ReLU passes none: where beta is 0 or less.

    A zeroed filter is no removed one: its BatchNorm gives beta - gamma * mean / std, and the slim network has what
    comes of it in the next layer's bias (`prune.learn.constants`). The official code does so in one place only:
    `get_bn_value` in he-y/soft-filter-pruning, utils/get_small_model.py, looks at layers named bn3. The constants of
    bn1 and bn2, so of every layer of a ResNet-18 or -34, are dropped there.

    Args:
        model: Its groups are found once; nothing of it is kept.
        example_inputs: Positional arguments of the model, batch first, or a `Call`.
        recipe: A `prune_ratio`, `ratios`, and what stays whole; its criterion, reduction and ranking are the method's
            own.

    Raises:
        RequestError: If the recipe has a limit in place of a ratio, a weight is computed, or nothing can take the
            constants.

    Source: He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018, alg. 1.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs, recipe: Recipe) -> None:
        if recipe.limit:
            raise RequestError(f"recipe: soft filters are cut by a ratio, got {recipe.limit[0]}; expected prune_ratio")
        self._example = example_inputs
        self.recipe = replace(recipe, criterion="l2", reduction="sum", ranking="uniform")
        call = call_for(model, example_inputs)
        groups = find_groups(model, call.args, call.kwargs, unused=recipe.unused, **recipe.following)
        for group in groups:
            if not recipe.reason_whole(group) and recipe.own_width(group) is None:
                ratio = recipe.own_ratio(group)
                share = Fraction(str(recipe.prune_ratio if ratio is None else ratio))
                width = (group.num_channels - int(group.num_channels * share)) * group.unit
                self.recipe = replace(self.recipe, widths={**self.recipe.widths, group.name: width})
                _check_plain(model, group)
        check_foldable(model, zero_filters, self.recipe, call)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Zero the smallest filters, in place."""
        zero_filters(model, self._chosen(model).spec)

    def slim(self, model: nn.Module) -> Learned:
        """Return the slim copy of the trained model, without the filters that are smallest now.

        Raises:
            RequestError: As `prune_model`, or nothing can take a constant.
        """
        chosen = self._chosen(model)
        masked = zero_filters(copied(model, {}), chosen.spec)
        slim, inexact = folded_model(masked, chosen.spec, call_for(model, self._example))
        return Learned(slim, chosen.spec, chosen.decisions, inexact)

    def _chosen(self, model: nn.Module) -> Pruned:
        call = call_for(model, self._example)
        return prune_model(model, call.args, self.recipe, example_kwargs=call.kwargs, verify=False)


def _check_plain(model: nn.Module, group: Group) -> None:
    """Raise RequestError if a filter's weights are computed from others: zeros would not last, or become NaN."""
    for name in group.producers:
        layer = layer_of(model, name)
        if isinstance(layer, nn.Module) and is_producer(layer) and "weight" not in layer._parameters:
            raise RequestError(f"{name}: its weight is computed from others; expected a plain one: skip the group")


def zero_filters(model: nn.Module, spec: PruneSpec) -> nn.Module:
    """Set the weights of removed filters to zero, in place; biases stay, as in the official code. Return the model."""
    for name, cut in spec.layers.items():
        layer: Any = layer_of(model, name)
        if is_producer(layer) and cut.kept_out is not None:
            (weight, kept_by_dim), *_ = cut_tensors(layer, None, torch.tensor(cut.kept_out))
            for dim, kept in kept_by_dim.items():
                weight.data.index_fill_(dim, removed_of(weight, dim, kept), 0)
    return model
