"""Least squares from sums over rows, which take the same memory whatever the number of rows."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Fit", "Moments", "correction"]

_DAMPING = 1e-10
"""Of the mean square of each column: directions weaker than that are noise of float32."""
_CONSTANT = 1e-12
"""Share of a column's mean square about its mean, up to which it is a constant with noise of float32."""


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
    """Sums over the rows of inputs X (R, D) and targets Y (R, O), in float64; without their means where centred.

    What is a constant but for noise is exactly zero then.
    """

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
        squares_D = xx_DD.diagonal().clone()
        xx_DD.addr_(sum_x_D, sum_x_D, alpha=-1 / num)
        xy_DO.addr_(sum_x_D, sum_y_O, alpha=-1 / num)
        is_constant_D = xx_DD.diagonal() <= _CONSTANT * squares_D
        xx_DD[is_constant_D] = xx_DD[:, is_constant_D] = xy_DO[is_constant_D] = 0
        return cls(sum_x_D / num, sum_y_O / num, xx_DD, xy_DO)


def _sizes(x_RD: Tensor, y_RO: Tensor) -> list[tuple[Tensor, tuple[int, ...]]]:
    num_x, num_y = x_RD.shape[1], y_RO.shape[1]
    return [(x_RD, (num_x,)), (x_RD, (num_y,)), (x_RD, (num_x, num_x)), (x_RD, (num_x, num_y))]


def correction(xx_DD: Tensor, xr_DO: Tensor) -> Tensor:
    """Return what is added to the weights to fit residuals r by least squares: argmin ||r - X W||, shape (D, O).

    Where many weights fit alike it is the smallest, so that the weights stay nearest to what they were; each weight
    counts by the size of its column, so that the units of a column do not matter.

    Args:
        xx_DD: X'X, float64.
        xr_DO: X'r.
    """
    sizes_D = xx_DD.diagonal().sqrt()
    sizes_D = sizes_D.masked_fill(sizes_D == 0, 1)
    damped_DD = (xx_DD / sizes_D).div_(sizes_D[:, None])
    damped_DD.diagonal().add_(_DAMPING)
    return torch.cholesky_solve(xr_DO / sizes_D[:, None], torch.linalg.cholesky(damped_DD)) / sizes_D[:, None]
