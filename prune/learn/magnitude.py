"""Unstructured pruning by magnitude: single weights are zero, and stay so in training; the network stays as large."""

import fnmatch
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from command.errors import RequestError
from prune.choose.recipe import check_ratio
from prune.cost import cost_of
from prune.held_tensors import modules_of
from prune.learn.method import Method
from prune.private import Inputs

__all__ = [
    "HeldMasks",
    "Masks",
    "Scale",
    "check_masks",
    "check_scale",
    "magnitude_masks",
    "maskable_layers",
    "nonzero_masks",
    "redraw",
    "sparse_macs",
    "two_of_four_layers",
    "two_of_four_masks",
    "weights_per_input",
]

Masks = Mapping[str, Tensor]
"""Name of a weight -> bool, True where it stays."""
Scope = Literal["global", "layer"]
Scale = Literal["dense", "sparse"]
"""Of new weights: for all that a filter has, or for those that are left of it."""


def check_scale(scale: str) -> None:
    """Raise RequestError if there is no such scale."""
    if scale not in get_args(Scale):
        raise RequestError(f"scale: unknown, got {scale!r}; expected dense or sparse")


def check_masks(model: nn.Module, masks: Masks, subject: str = "masks") -> None:
    """Raise RequestError unless each mask is of a parameter of the model, bool and of its shape."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise RequestError(f"{subject}: no such parameter, got {name!r}; expected the model's own, as '0.weight'")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise RequestError(
                f"{subject}: {name} does not fit, got {mask.dtype} {(*mask.shape,)}; "
                f"expected torch.bool {(*parameters[name].shape,)}"
            )


def weights_per_input(layer: nn.Module) -> float:
    """Return the weights that read one input: kernel places * outputs / groups, or a linear layer's outputs.

    That is n of He's initialisation by outputs. Of a grouped convolution an input meets the outputs of its own group
    alone; `fan_out` of `torch.nn.init` counts those of all groups.

    Raises:
        RequestError: If it is no convolution or linear layer.
    """
    if not isinstance(layer, _ConvNd | nn.Linear):
        raise RequestError(f"masks: of a {type(layer).__name__}; expected those of convolutions and linear layers")
    return layer.weight.numel() / (layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)


def maskable_layers(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the layers whose weights are masked: all convolutions, or what patterns name of these and linear layers.

    Raises:
        RequestError: If a pattern matches none.
    """
    known = {name: module for name, module in modules_of(model).items() if isinstance(module, _ConvNd | nn.Linear)}
    for pattern in layers or ():
        if not fnmatch.filter(known, pattern):
            raise RequestError(
                f"layers: no convolution or linear layer matches, got {pattern!r}; see the model's names"
            )
    if layers is None:
        return {name: module for name, module in known.items() if isinstance(module, _ConvNd)}
    return {name: known[name] for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in layers)}


def magnitude_masks(
    model: nn.Module,
    prune_ratio: float,
    scope: Scope = "global",
    layers: Sequence[str] | None = None,
    within: Masks | None = None,
) -> dict[str, Tensor]:
    """Return masks without the weights of least absolute value.

    Of n weights that are left exactly floor(n * ratio) go; among equal ones the first. The code of *Rethinking the
    Value of Network Pruning* keeps what is strictly above the sorted value at that place: one more goes, with all that
    equal it.

    Args:
        model: It is only read.
        prune_ratio: Share that goes, [0, 1): of the weights that `within` leaves.
        scope: Of all layers together, where one may lose all it has, or of each by itself.
        layers: See `maskable_layers`.
        within: Masks of earlier rounds; what they remove stays removed.

    Source: Han et al., Learning both Weights and Connections for Efficient Neural Networks, NeurIPS 2015.
    """
    check_ratio(prune_ratio)
    if scope not in ("global", "layer"):
        raise RequestError(f"scope: unknown, got {scope!r}; expected global or layer")
    weights = {
        f"{name}.weight": model.get_parameter(f"{name}.weight").detach() for name in maskable_layers(model, layers)
    }
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    if within is not None:
        check_masks(model, within, "within")
        if missing := [name for name in masks if name not in within]:
            raise RequestError(f"within: has no mask of {missing[0]}; expected one of each layer, or None")
        masks = {name: within[name].to(mask.device) for name, mask in masks.items()}
    parts = [list(weights)] if scope == "global" and weights else [[name] for name in weights]
    for names in parts:
        sizes = torch.cat([weights[name].abs().flatten() for name in names])
        left = _largest(sizes, torch.cat([masks[name].flatten() for name in names]), prune_ratio)
        numbers = left.split([weights[name].numel() for name in names])
        masks |= {name: part.view_as(weights[name]) for name, part in zip(names, numbers, strict=True)}
    return masks


def _largest(sizes: Tensor, is_left: Tensor, prune_ratio: float) -> Tensor:
    places = is_left.nonzero().flatten()
    num_gone = int(len(places) * Fraction(str(prune_ratio)))
    gone = places[sizes[places].argsort(stable=True)[:num_gone]]
    return is_left.index_fill(0, gone, False)


def nonzero_masks(model: nn.Module) -> dict[str, Tensor]:
    """Return masks of what is not zero, of the convolutions and linear layers that have a zero weight."""
    weights = {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in maskable_layers(model, ["*"])}
    return {name: weight.detach() != 0 for name, weight in weights.items() if (weight == 0).any()}


def two_of_four_layers(model: nn.Module, layers: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the layers whose weights can have TensorRT's 2:4 pattern, of all convolutions and linear layers.

    They read a multiple of four channels, in one group; transposed convolutions are left out. Whether a layer gets
    faster by it is for a measurement to say: users of TensorRT report that only wide ones do, of some 256 channels.
    """
    found = maskable_layers(model, ["*"] if layers is None else layers)
    return tuple(name for name, layer in found.items() if _num_read(layer) % 4 == 0)


def _num_read(layer: Any) -> int:
    """Return the inputs in which the 2:4 pattern would lie; 1 where it cannot."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    return 1 if layer.transposed or layer.groups > 1 else layer.in_channels


def two_of_four_masks(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return masks that keep the two largest weights of every four inputs in a row, of layers that qualify.

    For each output channel and each place in the kernel, of the input channels 4i to 4i + 3 two stay; of equal weights
    the first. That is what TensorRT's sparse kernels read.

    Source: TensorRT developer guide, structured sparsity.
    """
    return {
        f"{name}.weight": _two_of_four(model.get_parameter(f"{name}.weight").detach())
        for name in two_of_four_layers(model, layers)
    }


def _two_of_four(weight: Tensor) -> Tensor:
    fours = weight.abs().movedim(1, -1).unflatten(-1, (-1, 4))
    best = fours.argsort(dim=-1, descending=True, stable=True)[..., :2]
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, best, True)
    return mask.flatten(-2).movedim(-1, 1).contiguous()


class HeldMasks(Method):
    """Keeps masked weights at zero, from the first call on: after every step, whatever momentum and decay did.

    Args:
        model: Its masked weights are set to zero.
        masks: What stays.

    Raises:
        RequestError: If a mask does not fit, at the next step for those of a state.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self.masks = dict(masks)
        self._kept: list[Tensor] = []
        self._apply(model)

    def after_step(self, model: nn.Module, lr: float) -> None:
        """Set the masked weights to zero."""
        self._apply(model)

    def _apply(self, model: nn.Module) -> None:
        if len(self._kept) < len(self.masks):
            check_masks(model, self.masks)
        bits = [_bits_of(model.get_parameter(name).data) for name in self.masks]
        if [kept.device for kept in self._kept] != [weight.device for weight in bits]:
            self._kept = [-mask.to(weight) for mask, weight in zip(self.masks.values(), bits, strict=True)]
        for weight, kept in zip(bits, self._kept, strict=True):
            weight.bitwise_and_(kept)  # all bits or none: a product with zero would leave inf and NaN

    def state_dict(self) -> dict[str, Any]:
        """Return the masks."""
        return {"masks": {name: mask.clone() for name, mask in self.masks.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the masks."""
        super().load_state_dict(state)
        self.masks, self._kept = {name: mask.clone() for name, mask in state["masks"].items()}, []


def _bits_of(weight: Tensor) -> Tensor:
    """Return the same memory as integers: they are masked many times as fast as by `masked_fill_`."""
    return weight.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()])


def redraw(model: nn.Module, masks: Masks, scale: Scale = "sparse", seed: int = 0) -> None:
    """Draw new masked weights in place: N(0, sqrt(2 / n)) with n weights for each input, and zeros where masked.

    With `dense` n is that of the whole filter bank (He's initialisation by outputs: kernel places * outputs / groups,
    as in `channel_control`), with `sparse` of the weights that are left: sqrt(1 / density) times wider. A layer with
    nothing left stays zero; the official code divides by zero. Other parameters stay: start from a new network.

    Args:
        model: Modified.
        masks: What is left.
        scale: See above.
        seed: The numbers are the same on every device.

    Raises:
        RequestError: If the scale is unknown, or a mask does not fit.

    Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, cifar/weight-level.
    """
    check_scale(scale)
    check_masks(model, masks)
    generator = torch.Generator().manual_seed(seed)
    for name, mask in masks.items():
        weight, layer = model.get_parameter(name).data, model.get_submodule(name.rpartition(".")[0])
        share = int(mask.sum()) / mask.numel() if scale == "sparse" else 1.0
        std = (2 / (weights_per_input(layer) * share)) ** 0.5 if share else 0.0
        drawn = torch.randn(weight.shape, generator=generator) * std
        weight.copy_(drawn * mask.cpu())


def sparse_macs(model: nn.Module, masks: Masks, example_inputs: Inputs) -> int:
    """Return the multiply-adds of one image that have a weight which is not masked.

    That is no cost on any device: dense kernels multiply by the zeros too. What a mask saves is in `cost_of` only after
    channels were cut. Layers without a mask count whole.
    """
    check_masks(model, masks)
    left = {name.removesuffix(".weight"): mask for name, mask in masks.items()}
    layers = cost_of(model, example_inputs).layers
    kept = {name: (int(mask.sum()), mask.numel()) for name, mask in left.items()}
    shares = ((cost.macs, *kept.get(name, (1, 1))) for name, cost in layers.items())
    return sum(macs * num_left // num for macs, num_left, num in shares)
