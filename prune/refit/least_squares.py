"""Least squares from sums over rows, which take the same memory whatever the number of rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fit", "Moments", "correction"]

_DAMPING = 1e-10
"""Of the mean square of a column: directions weaker than that are noise of float32."""


@dataclass(frozen=True, eq=False)
class Fit:
    """The channels that stay and the weights of the layer that reads them."""

    kept: Tensor
    """Indices in the group, ascending."""
    weight: Tensor
    """Of the kept channels alone, as a matrix (O, D)."""
    bias: Tensor | None = None
    """Shape (O,); None where it stays as it is."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the rows of inputs X (R, D) and targets Y (R, O), in float64; without their means where centred."""

    mean_x: Tensor
    """Shape (D,); zero where nothing is centred."""
    mean_y: Tensor
    """Shape (O,)."""
    xx: Tensor
    """X'X, (D, D)."""
    xy: Tensor
    """X'Y, (D, O)."""

    @classmethod
    def of(cls, rows: Iterable[tuple[Tensor, Tensor]], centred: bool) -> "Moments":
        """Add up batches of rows; there is at least one."""
        num, sums = 0, list[Tensor]()
        for x, y in rows:
            x_RD, y_RO = x.double(), y.to(x.device).double()
            num += len(x_RD)
            if not sums:
                sums = [t.new_zeros(size) for t, size in _sizes(x_RD, y_RO)]
            for total, new in zip(sums[:2], (x_RD.sum(0), y_RO.sum(0)), strict=True):
                total += new
            sums[2].addmm_(x_RD.T, x_RD)
            sums[3].addmm_(x_RD.T, y_RO)
        sum_x_D, sum_y_O, xx_DD, xy_DO = (total.cpu() for total in sums)
        if not centred:
            return cls(torch.zeros_like(sum_x_D), torch.zeros_like(sum_y_O), xx_DD, xy_DO)
        xx_DD.addr_(sum_x_D, sum_x_D, alpha=-1 / num)
        xy_DO.addr_(sum_x_D, sum_y_O, alpha=-1 / num)
        return cls(sum_x_D / num, sum_y_O / num, xx_DD, xy_DO)


def _sizes(x_RD: Tensor, y_RO: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
    num_x, num_y = x_RD.shape[1], y_RO.shape[1]
    return [(x_RD, (num_x,)), (x_RD, (num_y,)), (x_RD, (num_x, num_x)), (x_RD, (num_x, num_y))]


def correction(xx_DD: Tensor, xr_DO: Tensor) -> Tensor:
    """Return what is added to the weights to fit residuals r by least squares: argmin ||r - X W||, shape (D, O).

    Where many weights fit alike it is the smallest, so that the weights stay nearest to what they were.

    Args:
        xx_DD: X'X, float64.
        xr_DO: X'r.
    """
    damping = _DAMPING * xx_DD.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    factor_DD = torch.linalg.cholesky(xx_DD + damping * torch.eye(len(xx_DD), dtype=xx_DD.dtype))
    return torch.cholesky_solve(xr_DO, factor_DD)
