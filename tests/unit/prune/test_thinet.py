from itertools import combinations

import numpy as np
import pytest
import torch

from prune.refit.thinet import SELECTIONS, kept_backward, kept_forward, scales

CHANNELS = 6


def contributions(seed=0, rows=40):
    """Correlated, and not of one size."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(CHANNELS) + 0.4 * torch.randn(CHANNELS, CHANNELS, generator=generator)
    sizes = torch.tensor([3.0, 0.5, 1.0, 2.0, 0.8, 1.5])
    return (torch.randn(rows, CHANNELS, generator=generator) @ mixing * sizes).double()


def orthogonal(seed=0, rows=40):
    generator = torch.Generator().manual_seed(seed)
    columns = torch.linalg.qr(torch.randn(rows, CHANNELS, generator=generator, dtype=torch.float64))[0]
    return columns * torch.tensor([3.0, 0.5, 1.0, 2.0, 0.8, 1.5])


def removed_norm(shares, kept):
    return float(shares[:, [c for c in range(CHANNELS) if c not in kept]].sum(1).norm())


def fit_error(shares, kept):
    """Of the least squares fit of the whole response by the kept columns."""
    x, y = shares[:, list(kept)].numpy(), shares.sum(1).numpy()
    return float(np.linalg.norm(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]))


def all_kept(num_kept):
    return combinations(range(CHANNELS), num_kept)


@pytest.mark.parametrize("num_kept", range(1, CHANNELS + 1))
def test_backward_is_the_exhaustive_optimum_on_orthogonal_channels(num_kept):
    shares = orthogonal()
    best = min(all_kept(num_kept), key=lambda kept: removed_norm(shares, kept))
    assert kept_backward(shares.T @ shares, num_kept).tolist() == list(best)


@pytest.mark.parametrize("seed", range(5))
def test_backward_removes_the_best_single_channel_of_any_data(seed):
    shares = contributions(seed)
    best = min(all_kept(CHANNELS - 1), key=lambda kept: removed_norm(shares, kept))
    assert kept_backward(shares.T @ shares, CHANNELS - 1).tolist() == list(best)


def grown(shares, num_removed):
    """Algorithm 1 of the paper on the rows themselves."""
    removed = []
    for _ in range(num_removed):
        left = [c for c in range(CHANNELS) if c not in removed]
        removed.append(min(left, key=lambda c: float(shares[:, [*removed, c]].sum(1).norm())))
    return sorted(set(range(CHANNELS)) - set(removed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_kept", range(1, CHANNELS))
def test_backward_is_the_paper_s_growth_and_never_below_the_optimum(seed, num_kept):
    shares = contributions(seed)
    kept = kept_backward(shares.T @ shares, num_kept).tolist()
    assert kept == grown(shares, CHANNELS - num_kept)
    least = min(removed_norm(shares, other) for other in all_kept(num_kept))
    assert removed_norm(shares, kept) >= least * (1 - 1e-9)


@pytest.mark.parametrize("num_kept", range(1, CHANNELS + 1))
def test_forward_is_the_exhaustive_optimum_on_orthogonal_channels(num_kept):
    shares = orthogonal()
    best = min(all_kept(num_kept), key=lambda kept: fit_error(shares, kept))
    if num_kept < CHANNELS:
        assert kept_forward(shares.T @ shares, num_kept).tolist() == list(best)
    else:
        assert kept_forward(shares.T @ shares, num_kept).tolist() == list(range(CHANNELS))


def pursued(shares, num_kept):
    """Matching pursuit with a full refit after each choice, on the rows themselves."""
    rows, response, kept = shares.numpy(), shares.sum(1).numpy(), []
    for _ in range(num_kept):
        residual = response
        if kept:
            residual = response - rows[:, kept] @ np.linalg.lstsq(rows[:, kept], response, rcond=None)[0]
        gains = (rows.T @ residual) ** 2 / (rows**2).sum(0)
        kept.append(max(set(range(CHANNELS)) - set(kept), key=lambda c: gains[c]))
    return sorted(kept)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_kept", range(1, CHANNELS))
def test_forward_refits_all_chosen_channels_after_each_choice(seed, num_kept):
    shares = contributions(seed)
    assert kept_forward(shares.T @ shares, num_kept).tolist() == pursued(shares, num_kept)


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_channel_that_never_contributes_goes_first(select):
    shares = contributions()
    shares[:, 3] = 0
    assert select(shares.T @ shares, CHANNELS - 1).tolist() == [0, 1, 2, 4, 5]


def test_channel_that_repeats_another_goes_first_in_forward_selection():
    shares = contributions()
    shares[:, 3] = 2 * shares[:, 0]
    kept = kept_forward(shares.T @ shares, CHANNELS - 1).tolist()
    assert len({0, 3} & set(kept)) == 1
    assert fit_error(shares, kept) < 1e-9


def test_scales_are_the_least_squares_fit_of_the_whole_response():
    shares, kept = contributions(), torch.tensor([0, 2, 5])
    expected = np.linalg.lstsq(shares[:, kept].numpy(), shares.sum(1).numpy(), rcond=None)[0]
    np.testing.assert_allclose(scales(shares.T @ shares, kept).numpy(), expected, rtol=1e-6)


def test_scales_of_equal_channels_stay_alike():
    shares = contributions()
    shares[:, 1] = shares[:, 2] = shares[:, 0]
    kept = torch.tensor([0, 1, 3, 4, 5])
    # three equal channels, two of which stay: half of the lost one to each
    np.testing.assert_allclose(scales(shares.T @ shares, kept).numpy(), [1.5, 1.5, 1, 1, 1], atol=1e-6)


def test_scales_of_channels_that_never_contribute_are_one():
    assert scales(torch.zeros(3, 3, dtype=torch.float64), torch.tensor([0, 1])).tolist() == [1, 1]
