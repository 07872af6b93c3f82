"""How long a slim network trains.

`finetune` starts from kept weights; `scratch_e` from random ones for as many epochs as the dense network; `scratch_b`
for as much computation as the dense network, but at most `SCRATCH_B_CAP` times its epochs.
"""

from command.errors import RequestError

__all__ = ["SCRATCH_B_CAP", "scratch_epochs"]

SCRATCH_B_CAP = 2.0
"""Scratch-B trains at most this many times the dense epochs, as the official ImageNet code does."""


def scratch_epochs(budget: str, dense_epochs: int, mac_reduction: float) -> int:
    """Return the epochs of a slim network trained from scratch.

    Args:
        budget: "scratch_e" or "scratch_b".
        dense_epochs: Epochs of the dense network.
        mac_reduction: MACs of the dense network / MACs of the slim one, >= 1.

    Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, sec. 3; int(epochs x ratio), capped.
    """
    if budget == "scratch_e":
        return dense_epochs
    if budget == "scratch_b":
        return int(dense_epochs * min(mac_reduction, SCRATCH_B_CAP))
    raise RequestError(f"budget: unknown, got {budget!r}; expected 'scratch_e' or 'scratch_b'")
