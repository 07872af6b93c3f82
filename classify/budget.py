"""How long a slim network trains.

`finetune` starts from kept weights; `scratch_e` from random ones for as many epochs as the dense network; `scratch_b`
for as much computation as the dense network.
"""

from fractions import Fraction
from typing import Literal

from command.errors import RequestError

__all__ = ["SCRATCH_B_CAP", "Budget", "scratch_epochs"]

Budget = Literal["scratch_e", "scratch_b"]
"""How long a slim network trains from random weights."""
SCRATCH_B_CAP = 2.0
"""Most times the dense epochs that Scratch-B trains unless told otherwise, as in the official ImageNet code."""


def scratch_epochs(
    budget: str,
    dense_epochs: int,
    mac_reduction: Fraction | float,
    cap: float | None = SCRATCH_B_CAP,
    finetune_epochs: int = 0,
) -> int:
    """Return the epochs of a slim network trained from scratch.

    Args:
        budget: "scratch_e" or "scratch_b".
        dense_epochs: Epochs of the dense network.
        mac_reduction: MACs of the dense network / MACs of the slim one, >= 1; exact where it is a fraction.
        cap: Most times the dense epochs in "scratch_b"; None = no limit, as in the official CIFAR code.
        finetune_epochs: Epochs of the fine-tuning that is compared with, added in the strict budget.

    Source: Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, sec. 3. A part of an epoch is dropped, as in
    the official code: ResNet-34-B, 90 x 1.3168 = 118.5, is trained for 118 epochs, ResNet-56-A, 160 x 1.1161 = 178.6,
    for 178. The strict budget is github.com/MingSun-Tse's.
    """
    if budget == "scratch_e":
        return dense_epochs + finetune_epochs
    if budget == "scratch_b":
        ratio = mac_reduction if cap is None else min(mac_reduction, cap)
        return int(dense_epochs * ratio) + finetune_epochs
    raise RequestError(f"budget: unknown, got {budget!r}; expected 'scratch_e' or 'scratch_b'")
