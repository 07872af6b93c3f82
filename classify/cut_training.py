"""A training with a pruning method that cuts: at its end, or in the middle, where the method is settled."""

from collections.abc import Callable

from torch import nn

from classify.checkpoint import ModelCard
from classify.curve import Curve
from classify.learning import Learning
from classify.pruning import example_of, with_card
from prune.learn.method import Method

__all__ = ["Train", "train_and_cut"]

Train = Callable[[nn.Module, ModelCard, Method | None, int], Curve]
"""Trains a network in place with a method, after so many epochs of the schedule that are over."""


def train_and_cut(
    net: nn.Module, card: ModelCard, settings: Learning, method: Method, epochs: int, train: Train
) -> tuple[nn.Module, ModelCard, Curve]:
    """Return the trained network, slim if the method cuts, with its card and the curve of the whole training.

    Args:
        net: Trained in place, to the end or until the method is settled.
        card: Its card.
        settings: Of the method.
        method: Made on `net`.
        epochs: Of the whole training.
        train: Called once, or twice: the slim network has the epochs that are left.

    Raises:
        RequestError: If the network cannot be cut.
    """
    curve = train(net, card, method, 0)
    if not (learned := settings.slim(method, net)):
        return net, card, curve
    slim, card, _ = with_card(card, learned)
    if (ended := curve.epochs[-1].epoch) < epochs:
        curve = curve.continued_by(train(slim, card, settings.after_cut(slim, example_of(card)), ended))
    return slim, card, curve
