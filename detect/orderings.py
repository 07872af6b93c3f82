"""The three orderings, each a short list of steps from an untrained classifier to a trained detector.

Steps are names, run by the experiment; orderings that begin with the same steps share their results.

Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, transfer to detection (Prune-C, Prune-D,
Scratch-E and Scratch-B).
"""

from command.errors import RequestError

__all__ = ["CONTROLS", "ORDERINGS", "steps"]

ORDERINGS: dict[str, tuple[str, ...]] = {
    "dense": ("train_classifier", "transfer", "train_detector"),
    "prune_transfer": ("train_classifier", "prune_classifier", "finetune_classifier", "transfer", "train_detector"),
    "transfer_prune": ("train_classifier", "transfer", "train_detector", "prune_detector", "finetune_detector"),
    "scratch_transfer": ("train_classifier", "prune_classifier", "scratch_classifier", "transfer", "train_detector"),
}
"""Ordering -> its steps. In `scratch_transfer` pruning sets only the architecture; its weights are drawn again."""

CONTROLS: dict[str, tuple[str, ...]] = {"dense_longer": ORDERINGS["dense"]}
"""What orderings are compared with besides `dense` -> its steps. The one training of the detector of `dense_longer` has
as many epochs as both of `transfer_prune`."""


def steps(ordering: str) -> tuple[str, ...]:
    """Return the steps of an ordering or a control.

    Raises:
        RequestError: If there is no such ordering.
    """
    known = ORDERINGS | CONTROLS
    if ordering not in known:
        raise RequestError(f"ordering: unknown, got {ordering!r}; expected one of {sorted(known)}")
    return known[ordering]
