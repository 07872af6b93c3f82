"""Pruning layer by layer on data: what reads the kept channels is refitted to make up for those that go."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from command.errors import RequestError
from prune.choose.recipe import Recipe, resolved
from prune.cost import Cost
from prune.cut.spec import PruneSpec
from prune.cut.surgery import slim_model
from prune.private import Call, bookkeeping
from prune.pruning import Pruned, Scored
from prune.refit.lasso import lasso_fit
from prune.refit.least_squares import Fit
from prune.refit.readers import Reader, readers_of
from prune.refit.responses import Responses
from prune.refit.rows import Batches, check_rows
from prune.refit.thinet import SELECTIONS, thinet_fit

__all__ = ["METHODS", "refit_model"]

METHODS = (*SELECTIONS, "lasso")
"""`thinet` and `thinet_forward` (Luo et al., ICCV 2017 and TPAMI 2019), `lasso` (He et al., ICCV 2017)."""


def refit_model(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    batches: Batches,
    recipe: Recipe | float | None = None,
    *,
    method: str = "thinet",
    num_positions: int = 10,
    seed: int = 0,
    between: Callable[[nn.Module, str], object] | None = None,
    residual: bool = False,
    example_kwargs: Mapping[str, Any] | None = None,
    dense_cost: Cost | None = None,
    verify: bool = True,
    **fields: Any,
) -> Pruned:
    """Prune a model as `prune_model` does, with channels chosen on data and weights refitted; the model is not changed.

    How many channels a group keeps is what `prune_model` gives for the recipe: floor(n (1 - ratio)), as in ThiNet, or a
    multiple of `round_to`. Which ones, the method decides, in the order of the forward pass, on what the network pruned
    so far gives. The recipe's criterion decides only what a limit or a global ranking gives to each group.

    A group can be refitted if one plain convolution or linear layer alone reads it: the convolutions of a VGG, the
    inner ones of residual blocks. All others stay whole, with the reason.

    Args:
        model: Any module; see `find_groups`.
        example_inputs: Positional arguments of `model`, batch first.
        batches: Inputs to sample on, on the model's device; for `lasso` the same each time it is called.
        recipe: What is cut; a number is the `prune_ratio` of a recipe whose other fields are given by name.
        method: One of `METHODS`.
        num_positions: Places sampled from each image, for `lasso` at most as many as the map has.
        seed: Of the places.
        between: Called with the slim model so far and the group's name after each group, to train it a little. It may
            change the weights, not the layers.
        residual: For `lasso`: where the refitted layer's output goes into a residual sum, the sum is the target, so
            that errors of the shortcut are made up for.
        example_kwargs: Arguments by name, for the example; batches have none.
        dense_cost: See `prune_model`.
        verify: Compare the cut, before anything is refitted, with the dense model; see `prune_model`. This is done with
            the criterion's channels before work starts, and with the chosen ones at the end.
        fields: Those of `Recipe`, where none is given.

    Raises:
        RequestError: As `prune_model`; or if the method is unknown, or the batches are unfit, or too few for a fit.
    """
    if method not in METHODS:
        raise RequestError(f"method: unknown, got {method!r}; expected one of {list(METHODS)}")
    if not isinstance(num_positions, int) or num_positions < 1:
        raise RequestError(
            f"num_positions: no number of places, got {num_positions!r}; expected a whole one, 1 or more"
        )
    if not callable(batches):
        raise RequestError(f"batches: cannot be called, got {type(batches).__name__}; expected `lambda: images`")
    recipe, _ = resolved(recipe, None, fields)
    call = Call.of(example_inputs, example_kwargs)
    scored = Scored.of(model, call, recipe)
    readers, reasons = readers_of(model, scored.free, call)
    scored = scored.without(reasons, recipe)
    plan = scored.pruned(recipe, dense_cost, verify)
    num_kept = {d.group: d.num_kept for d in plan.decisions if d.num_kept < d.num_channels}
    todo = {name: reader for name, reader in readers.items() if name in num_kept}
    slim = slim_model(model, PruneSpec({}))
    fitting = _fitting(slim, todo, num_kept, batches, method, num_positions, seed, residual)
    slim, kept = _refitted(slim, scored, todo, num_kept, fitting, between)
    spec = PruneSpec.from_kept(model, kept, scored.groups)
    if verify and (fault := scored.fault_of(slim_model(model, spec), spec, num_kept)):
        raise RequestError(f"model: its slim copy {fault}; expected what prune_model accepts: skip {', '.join(kept)}")
    return Pruned(slim, spec, plan.decisions)


_Fitting = Callable[[nn.Module, Reader, int], Fit]
"""Chooses channels of the network as pruned so far, by their reader and number."""


def _fitting(
    model: nn.Module,
    readers: Mapping[str, Reader],
    num_kept: Mapping[str, int],
    batches: Batches,
    method: str,
    num_positions: int,
    seed: int,
    residual: bool,
) -> _Fitting:
    if method in SELECTIONS or not readers:
        return lambda slim, reader, num: thinet_fit(slim, reader, num, batches, method, num_positions, seed)
    layers = [reader.layer for reader in readers.values()]
    responses = Responses(model, layers, batches, num_positions, seed, residual)
    for name, reader in readers.items():
        check_rows(reader.layer, name, responses.num_rows(reader.layer), num_kept[name] * reader.columns.shape[1])

    def fitted(slim: nn.Module, reader: Reader, num: int) -> Fit:
        layer, factors_O = slim.get_submodule(reader.layer), responses.factors(reader.layer)
        return lasso_fit(layer, reader, num, responses.rows(slim, reader.layer), factors_O)

    return fitted


def _refitted(
    slim: nn.Module,
    scored: Scored,
    readers: Mapping[str, Reader],
    num_kept: Mapping[str, int],
    fitting: _Fitting,
    between: Callable[[nn.Module, str], object] | None,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy of the model, cut and refitted group by group, and the kept channels of each."""
    groups = {group.name: group for group in scored.groups}
    kept = dict[str, Tensor]()
    for name, reader in readers.items():
        fit = fitting(slim, reader, num_kept[name])
        kept[name] = fit.kept
        with bookkeeping():
            step = PruneSpec.from_kept(slim, {name: fit.kept}, [groups[name]])
            slim = slim_model(slim, step)
        _write(slim.get_submodule(reader.layer), fit)
        if between:
            between(slim, name)
    return slim, kept


@torch.no_grad()
def _write(layer: nn.Module, fit: Fit) -> None:
    weight = layer.get_parameter("weight")
    weight.copy_(fit.weight.view_as(weight))
    if fit.bias is not None:
        layer.get_parameter("bias").copy_(fit.bias)
