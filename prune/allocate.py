"""Scores and a ratio -> kept channels per group. Rounding to a hardware multiple lives here and nowhere else."""

from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["check_ratio", "kept_channels", "num_kept"]


def check_ratio(prune_ratio: float, subject: str = "prune_ratio") -> None:
    """Raise ValueError unless `prune_ratio`, the share of channels removed, lies in [0, 1)."""
    if not 0 <= prune_ratio < 1:
        raise ValueError(f"{subject}: would remove all channels or more, got {prune_ratio}; expected a share in [0, 1)")


def num_kept(num_channels: int, prune_ratio: float, round_to: int = 1) -> int:
    """Return how many channels stay: floor(n (1 - p)), moved to the nearest multiple of `round_to`.

    The decimal text of the ratio is taken exactly: in floats 10 * (1 - 0.9) is just under 1 and floor would lose a
    channel. Halfway between two multiples goes up. The result lies in [1, num_channels]; a layer narrower than
    `round_to` keeps all its channels, since no multiple fits into it.

    Source: floor as in the official code of Liu et al., Rethinking the Value of Network Pruning, ICLR 2019.
    """
    check_ratio(prune_ratio)
    if round_to < 1:
        raise ValueError(f"round_to: not a multiple, got {round_to}; expected 1 or more")
    kept = max(1, int(num_channels * (1 - Fraction(str(prune_ratio)))))
    if round_to == 1:
        return kept
    multiple = max(round_to, (2 * kept + round_to) // (2 * round_to) * round_to)
    return min(multiple, num_channels)


def kept_channels(scores_C: Tensor, num: int) -> Tensor:
    """Return the indices of the `num` highest scores, ascending; of equal scores the lower index stays."""
    ranked = torch.sort(scores_C, descending=True, stable=True).indices
    return ranked[:num].sort().values
