"""LASSO regression: channels are chosen, and the next layer's weights refitted, to give the original responses.

Source: He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, sec. 3.1 and 3.2.
Shape letters: R rows, C channels of the group, D numbers that one output reads, O output channels.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from prune.refit.least_squares import Fit, Moments, correction
from prune.refit.readers import Reader

__all__ = ["lasso_fit", "lasso_kept"]

_START = 1e-3
"""First penalty, as a share of the one at which no channel is left."""
_MOST_STEPS = 60


def lasso_fit(
    layer: nn.Module,
    reader: Reader,
    num_kept: int,
    rows: Iterator[tuple[Tensor, Tensor]],
    factors_O: Tensor | None = None,
) -> Fit:
    """Choose channels by a LASSO over all rows, and fit the weights and bias by ordinary least squares over all rows.

    Each channel has one coefficient for its contribution to all outputs. The original takes at most 400 rows for the
    LASSO, with one intercept for all outputs: sums over all rows cost no more here, and each output has its own, as in
    the least squares. A layer without bias is fitted without intercept. As in the original code, coefficients only
    choose, and the two steps do not alternate.

    Args:
        layer: What reads the channels, in the network as pruned so far.
        reader: Which of its columns belong to which channel.
        num_kept: How many channels stay.
        rows: Batches of what it reads (R, D) and of the responses it should give (R, O).
        factors_O: What each output is multiplied by before its error counts; all alike if None.
    """
    bias = layer._parameters["bias"]
    moments = Moments.of(rows, centred=bias is not None)
    weight_OD = layer.get_parameter("weight").detach().flatten(1).cpu().double()
    kept = lasso_kept(*_of_channels(moments, weight_OD, reader, factors_O), num_kept)
    columns = reader.kept_columns(kept)
    xx_DD, old_DO = moments.xx[columns][:, columns], weight_OD[:, columns].T
    new_DO = old_DO + correction(xx_DD, moments.xy[columns] - xx_DD @ old_DO)
    new_bias_O = None if bias is None else moments.mean_y - moments.mean_x[columns] @ new_DO
    return Fit(kept, new_DO.T, new_bias_O)


def _of_channels(
    moments: Moments, weight_OD: Tensor, reader: Reader, factors_O: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return Z'Z (C, C) and Z'y (C,) of the channels' contributions Z to all outputs and the target y."""
    columns, shape = reader.columns.flatten(), reader.columns.shape
    weighted_OD = weight_OD if factors_O is None else weight_OD * factors_O[:, None] ** 2
    products_DD = (weight_OD.T @ weighted_OD).mul_(moments.xx)
    zz_CC = products_DD[columns][:, columns].view(*shape, *shape).sum((1, 3))
    return zz_CC, (weighted_OD.T * moments.xy).sum(1)[reader.columns].sum(1)


def lasso_kept(zz_CC: Tensor, zy_C: Tensor, num_kept: int) -> Tensor:
    """Return the channels that a LASSO leaves when its penalty is such that exactly `num_kept` are left, ascending.

    The penalty is doubled until fewer are left and then bisected. The original accepts up to 10 % more channels. Where
    no penalty leaves the number exactly, those that leave a little more decide: the largest |coefficient| times the
    norm of its contribution stay; of channels that no penalty keeps, those of the largest norm. Of channels whose
    contributions are multiples of each other the largest alone takes part, so that the solution is unique.

    Args:
        zz_CC: Z'Z of the channels' contributions, float64.
        zy_C: Z'y with the target.
        num_kept: How many stay.
    """
    if num_kept == len(zz_CC) or not zz_CC.any():
        return torch.arange(num_kept)
    norms_C = zz_CC.diagonal().clamp_min(0).sqrt()
    own_C = ~_copies(zz_CC, norms_C)
    design, target = _with_moments(zz_CC * torch.outer(own_C, own_C), zy_C * own_C)
    path, best = _Path(design, target), np.zeros(len(zz_CC))
    low, high, share = 0.0, None, _START
    for _ in range(_MOST_STEPS):
        found = path.coefficients(share)
        num_found = np.count_nonzero(found)
        if num_found >= num_kept or np.count_nonzero(best) < num_kept:
            best = found
        if num_found == num_kept:
            break
        low, high = (share, high) if num_found > num_kept else (low, share)
        share = 2 * share if high is None else (low + high) / 2
    norms = norms_C.numpy()
    order = np.lexsort((np.arange(len(norms)), -norms, -np.abs(best) * norms))
    return torch.from_numpy(np.sort(order[:num_kept]))


def _copies(zz_CC: Tensor, norms_C: Tensor) -> Tensor:
    """Return which channels are a multiple of a larger one, or of an earlier one of equal size."""
    order = norms_C.argsort(descending=True, stable=True)
    cosines_CC = zz_CC[order][:, order] / torch.outer(norms_C[order], norms_C[order])  # NaN where one is zero
    is_copy_C = torch.zeros(len(order), dtype=torch.bool)
    is_copy_C[order] = (cosines_CC.abs() > 1 - 1e-9).triu(1).any(0)
    return is_copy_C


class _Path:
    """The LASSO's coefficients at one penalty after another."""

    def __init__(self, design: np.ndarray, target: np.ndarray) -> None:
        self._design, self._target = design, target
        self._most = np.abs(design.T @ target).max() / len(design)
        from sklearn.linear_model import Lasso  # takes a second

        self._lasso = Lasso(fit_intercept=False, warm_start=True, max_iter=10_000, random_state=0)

    def coefficients(self, share: float) -> np.ndarray:
        """Return them for a penalty given as a share of the one at which all are zero."""
        from sklearn.exceptions import ConvergenceWarning

        self._lasso.set_params(alpha=max(share * self._most, np.finfo(float).tiny))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # nearly dependent channels: any of them will do
            return self._lasso.fit(self._design, self._target).coef_.copy()


def _with_moments(zz_CC: Tensor, zy_C: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest design and target that have these products: all that a LASSO needs to know of the rows."""
    values, vectors = torch.linalg.eigh(zz_CC)
    strong = values > values[-1] * torch.finfo(torch.float64).eps * len(values)
    roots, vectors = values[strong].sqrt(), vectors[:, strong]
    design = (vectors * roots).T.numpy()
    return np.asfortranarray(design), (vectors.T @ zy_C / roots).numpy()
