"""Lottery tickets: what a pruning keeps, with the weights that it had at the start; and the controls.

One-shot is one round. Iterative pruning trains, prunes a share of what is left and rewinds, again and again: single
weights with `magnitude_masks(..., within=masks)`, channels with `prune_model` on the trained ticket and
`PruneSpec.after`. A ticket starts at the scale of the dense network, a control usually at that of the sparse one, and
the scale alone may decide which trains better: every function here takes both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from command.errors import RequestError
from prune.copies import copied
from prune.cut.spec import PruneSpec
from prune.cut.surgery import slim_model
from prune.learn.magnitude import Masks, Scale, check_masks, check_scale, redraw, weights_per_input
from prune.learn.method import Method

__all__ = ["Rewinding", "channel_control", "channel_ticket", "weight_control", "weight_ticket"]


class Rewinding(Method):
    """Keeps the network as it was after some steps of the optimizer or epochs, BatchNorms and buffers included.

    Args:
        model: At its start.
        iteration: A whole number; 0 is before the first step, as Frankle & Carbin rewind; a later one as in Frankle et
            al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, ICML 2020.
        epochs: In its place, after so many epochs.

    Raises:
        RequestError: If it is none, or both are given.

    Source: Frankle & Carbin, The Lottery Ticket Hypothesis, ICLR 2019.
    """

    def __init__(self, model: nn.Module, iteration: int = 0, epochs: int = 0) -> None:
        for name, number, unit in (("iteration", iteration, "steps"), ("epochs", epochs, "epochs")):
            if not isinstance(number, int) or number < 0:
                raise RequestError(f"{name}: no number of {unit}, got {number!r}; expected a whole one, 0 or more")
        if iteration and epochs:
            raise RequestError(
                f"epochs: not used with an iteration, got {epochs} and {iteration}; expected one of them"
            )
        self.iteration, self.epochs, self._num_steps = iteration, epochs, 0
        self._start: dict[str, Tensor] = {} if iteration or epochs else _state_of(model)

    @property
    def start(self) -> dict[str, Tensor]:
        """The state dict to rewind to.

        Raises:
            RequestError: If the training has not come that far.
        """
        if not self._start and self.epochs:
            raise RequestError(f"epochs: not reached, got {self.epochs}; expected at most those trained so far")
        if not self._start:
            raise RequestError(
                f"iteration: not reached, got {self.iteration}; expected at most {self._num_steps}, the steps so far"
            )
        return self._start

    def after_step(self, model: nn.Module, lr: float) -> None:
        """Count the steps, and keep the network after the right one."""
        self._num_steps += 1
        if self._num_steps == self.iteration:
            self._start = _state_of(model)

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Keep the network after the right epoch."""
        if epoch + 1 == self.epochs:
            self._start = _state_of(model)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps, and what is kept."""
        return {"num_steps": self._num_steps, "start": dict(self._start)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the number of steps, and what is kept."""
        super().load_state_dict(state)
        self._num_steps, self._start = state["num_steps"], dict(state["start"])


def weight_ticket(model: nn.Module, start: Mapping[str, Tensor], masks: Masks, scale: Scale = "dense") -> nn.Module:
    """Return a copy that starts again from what the masks leave; hold them while it trains (`HeldMasks`).

    Args:
        model: Of that architecture, with any weights.
        start: See `Rewinding.start`.
        masks: What stays.
        scale: `sparse` makes a layer's weights wider by sqrt(1 / density), as a control's are.
    """
    check_scale(scale)
    check_masks(model, masks)
    ticket = _rewound(model, start)
    for name, mask in masks.items():
        num_left = int(mask.sum())
        wider = (mask.numel() / num_left) ** 0.5 if scale == "sparse" and num_left else 1.0
        weight = ticket.get_parameter(name).data
        weight.mul_(wider).masked_fill_(~mask.to(weight.device), 0)
    return ticket


def weight_control(new: nn.Module, masks: Masks, scale: Scale, seed: int) -> nn.Module:
    """Return a copy of a new network with masked weights drawn at that scale: the ticket's control. See `redraw`."""
    control = copied(new, {})
    redraw(control, masks, scale, seed)
    return control


def channel_ticket(model: nn.Module, start: Mapping[str, Tensor], spec: PruneSpec, scale: Scale = "dense") -> nn.Module:
    """Return the slim network that starts from what the kept channels had.

    The official code trains a masked network of full width instead, whose BatchNorms go on giving constants.

    Args:
        model: The dense one, with any weights.
        start: See `Rewinding.start`.
        spec: What stays.
        scale: `sparse` makes a convolution's weights wider by sqrt(dense n / slim n), n as in `channel_control`.
    """
    check_scale(scale)
    ticket = slim_model(_rewound(model, start), spec)
    for layer, dense in _convolutions(ticket, model) if scale == "sparse" else ():
        layer.weight.data.mul_((weights_per_input(dense) / weights_per_input(layer)) ** 0.5)
    return ticket


def channel_control(new: nn.Module, spec: PruneSpec, scale: Scale, seed: int) -> nn.Module:
    """Return the slim copy of a new network, its convolutions drawn at that scale: the ticket's control.

    Args:
        new: A dense network, for all that is no convolution.
        spec: What stays.
        scale: N(0, sqrt(2 / n)) with n = kernel places * outputs / groups, as in `redraw`: those of the `dense` layer,
            as in the official code, or of the slim one (`sparse`), as a slim network is usually drawn.
        seed: The numbers are the same on every device.
    """
    check_scale(scale)
    control = slim_model(new, spec)
    generator = torch.Generator().manual_seed(seed)
    for layer, dense in _convolutions(control, new):
        num_each = weights_per_input(dense if scale == "dense" else layer)
        drawn = torch.randn(layer.weight.shape, generator=generator)
        layer.weight.data.copy_(drawn * (2 / num_each) ** 0.5)
    return control


def _convolutions(slim: nn.Module, dense: nn.Module) -> list[tuple[Any, nn.Module]]:
    """Return the convolutions of a slim model, each with the one that it was in the dense model."""
    return [(module, dense.get_submodule(name)) for name, module in slim.named_modules() if isinstance(module, _ConvNd)]


def _rewound(model: nn.Module, start: Mapping[str, Tensor]) -> nn.Module:
    rewound = copied(model, {})
    try:
        rewound.load_state_dict(dict(start))
    except RuntimeError as error:
        raise RequestError(
            f"start: of another network, {' '.join(str(error).split())[:200]}; expected its own"
        ) from error
    return rewound


def _state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
