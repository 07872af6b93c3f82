"""What a training loop calls: the small protocol that every method here follows, and what comes out at the end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from command.errors import RequestError
from prune.private import Call, Inputs
from prune.pruning import Pruned

__all__ = ["Learned", "Method", "call_for"]


class Method:
    """Acts on a model while it trains; a method that does nothing at some point inherits this.

    In every step of the optimizer: backward passes, `after_backward`, the optimizer's step, `after_step`. The model is
    the network itself, not a wrapper for several processes. Where the loss is scaled (fp16), the gradients must be
    scaled back before `after_backward`.
    """

    def after_backward(self, model: nn.Module) -> None:
        """Change the gradients: once for every step of the optimizer, however many backward passes it sums."""

    def after_step(self, model: nn.Module, lr: float) -> None:
        """Change what the optimizer has written.

        Args:
            model: The network.
            lr: Learning rate of that step.
        """

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Look at the network, or change it, after an epoch; the first is 0."""

    @property
    def is_settled(self) -> bool:
        """Whether it is known what will be cut, so that the training can stop here and go on with the slim network."""
        return False

    def baked_model(self, model: nn.Module) -> nn.Module:
        """Return a network that computes without the method what the model computes with it: mostly the model."""
        return model

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs beside the network: tensors, numbers, and dicts of them."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave to a method that was made with the same arguments.

        Raises:
            RequestError: If it is the state of another one.
        """
        if state.keys() != (own := self.state_dict()).keys():
            raise RequestError(
                f"{type(self).__name__}: the state is another method's, got {sorted(state)}; expected {sorted(own)}"
            )


@dataclass(frozen=True)
class Learned(Pruned):
    """A slim model that a method has made, and what was cut."""

    inexact_borders: tuple[str, ...] = ()
    """Layers into which a constant was folded though they pad with zeros: at the border they read fewer of it, so that
    outputs there differ from those of the masked model. See `prune.learn.constants`."""


def call_for(model: nn.Module, example_inputs: Inputs) -> Call:
    """Return the example on the device where the model is now."""
    parameter = next(model.parameters(), None)
    call = Call.of(example_inputs)
    return call if parameter is None else call.map(lambda tensor: tensor.to(parameter.device))
