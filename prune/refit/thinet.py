"""ThiNet: channels are chosen by what they contribute to the response of the layer that reads them.

Source: Luo, Wu, Lin, ThiNet, ICCV 2017, sec. 3.2 and 3.3; Luo et al., TPAMI 2019, for the forward selection.
Shape letters: R rows, C channels of the group, D numbers that one output reads, K of them per channel.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prune.refit.least_squares import Fit, correction
from prune.refit.readers import Reader
from prune.refit.rows import Batches, Drawn, check_rows, rows_read

__all__ = ["SELECTIONS", "kept_backward", "kept_forward", "scales", "thinet_fit"]


def thinet_fit(
    model: nn.Module, reader: Reader, num_kept: int, batches: Batches, method: str, num_positions: int, seed: int
) -> Fit:
    """Choose the channels that stay, and fit one scale for each, folded into the weights that read it.

    A row is one output channel at one place of one image; its response is that of the given model, without bias, and
    the scales bring the kept channels' sum nearest to it.

    Args:
        model: The network as pruned so far.
        reader: The layer that reads the channels.
        num_kept: How many stay.
        batches: The data.
        method: A key of `SELECTIONS`.
        num_positions: Rows per image.
        seed: Of the rows.
    """
    weight_OD = model.get_submodule(reader.layer).get_parameter("weight").detach().flatten(1).cpu().float()
    num_rows, gram_CC = 0, torch.zeros(len(reader.columns), len(reader.columns), dtype=torch.float64)
    for batch, rows in enumerate(rows_read(model, reader.layer, batches)):
        drawn, num = Drawn(seed, reader.layer, batch), rows.num_images * num_positions
        images_R = torch.arange(rows.num_images).repeat_interleave(num_positions)
        places_R, channels_R = drawn.numbers(rows.num_places, num), drawn.numbers(len(weight_OD), num)
        shares_RD = rows.at(images_R, places_R).cpu() * weight_OD[channels_R]
        shares_RC = shares_RD[:, reader.columns].sum(2).double()
        gram_CC.addmm_(shares_RC.T, shares_RC)
        num_rows += num
    check_rows(reader.layer, reader.group, num_rows, num_kept)
    kept = SELECTIONS[method](gram_CC, num_kept)
    factors_D = torch.ones_like(weight_OD[0])
    factors_D[reader.columns[kept]] = scales(gram_CC, kept)[:, None].float()
    return Fit(kept, (weight_OD * factors_D)[:, reader.kept_columns(kept)])


def kept_backward(gram_CC: Tensor, num_kept: int) -> Tensor:
    """Grow the removed set by the channel that keeps the norm of its summed contributions smallest (ICCV, algorithm 1).

    Args:
        gram_CC: X'X of the contributions, float64.
        num_kept: How many channels stay.
    """
    is_kept = torch.ones(len(gram_CC), dtype=torch.bool)
    with_removed_C = torch.zeros_like(gram_CC[0])  # of each channel with the sum of those removed
    for _ in range(len(gram_CC) - num_kept):
        growth_C = gram_CC.diagonal() + 2 * with_removed_C
        worst = growth_C.masked_fill(~is_kept, torch.inf).argmin()
        is_kept[worst] = False
        with_removed_C += gram_CC[worst]
    return is_kept.nonzero().flatten()


def kept_forward(gram_CC: Tensor, num_kept: int) -> Tensor:
    """Add the channel that explains most of what is left of the response, and refit all chosen ones (TPAMI).

    Each candidate has its own best factor on the residual; after each choice the residual is that of the least squares
    fit of all chosen channels.

    Args:
        gram_CC: X'X of the contributions, float64.
        num_kept: How many channels stay.
    """
    norms_C, is_kept = gram_CC.diagonal(), torch.zeros(len(gram_CC), dtype=torch.bool)
    with_residual_C = gram_CC.sum(1)  # of each channel; the response is the sum of all
    basis_CK = gram_CC.new_zeros(len(gram_CC), num_kept)  # of each channel with orthonormal directions, one per choice
    for place in range(num_kept):
        gain_C = with_residual_C.square() / norms_C.clamp_min(torch.finfo(torch.float64).tiny)
        best = gain_C.masked_fill(is_kept, -1).argmax()
        is_kept[best] = True
        new_C = gram_CC[best] - basis_CK @ basis_CK[best]
        if new_C[best] > _DEPENDENT * norms_C[best]:
            basis_CK[:, place] = new_C / new_C[best].sqrt()
            with_residual_C = with_residual_C - with_residual_C[best] / new_C[best] * new_C
    return is_kept.nonzero().flatten()


_DEPENDENT = 1e-12
"""Share of a channel's square norm outside the span of others, below which it adds nothing."""

SELECTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"thinet": kept_backward, "thinet_forward": kept_forward}
"""Method -> what returns the kept channels, ascending, from X'X of the contributions and their number."""


def scales(gram_CC: Tensor, kept: Tensor) -> Tensor:
    """Return the factor of each kept channel with which their sum is nearest to that of all."""
    lost_C = gram_CC.sum(1) - gram_CC[:, kept].sum(1)
    return 1 + correction(gram_CC[kept][:, kept], lost_C[kept, None])[:, 0]
