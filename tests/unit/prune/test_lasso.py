import numpy as np
import pytest
import torch
from sklearn.linear_model import lasso_path
from torch import nn

from prune.refit.lasso import lasso_fit, lasso_kept
from prune.refit.readers import Reader

CHANNELS, OUTPUTS, KERNEL, ROWS = 8, 5, 4, 200
READER = Reader("layer", "group", torch.arange(CHANNELS * KERNEL).view(CHANNELS, KERNEL))
"""Of a 2 x 2 convolution."""


def layer_and_rows(bias=True, seed=0):
    """A convolution, correlated rows that are not centred, and responses that it nearly gives."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layer = nn.Conv2d(CHANNELS, OUTPUTS, 2, bias=bias)
    num = CHANNELS * KERNEL
    rows = torch.randn(ROWS, num, generator=generator) @ torch.randn(num, num, generator=generator) + 1
    noise = 0.1 * torch.randn(ROWS, OUTPUTS, generator=generator)
    targets = rows @ layer.weight.detach().flatten(1).T + noise + (layer.bias.detach() if bias else 0)
    return layer, rows.relu(), targets


def fit(layer, rows, targets, num_kept, reader=READER):
    """In two batches of unlike size."""
    batches = iter(((rows[:150], targets[:150]), (rows[150:], targets[150:])))
    return lasso_fit(layer, reader, num_kept, batches)


def supports(layer, rows, targets):
    """What the LASSO leaves at each of many penalties, of the contributions written out for all rows and outputs."""
    weight = layer.weight.detach().double().view(OUTPUTS, CHANNELS, KERNEL)
    shares = torch.einsum("rck,ock->roc", rows.double().view(ROWS, CHANNELS, KERNEL), weight)
    design = (shares - shares.mean(0)).reshape(-1, CHANNELS).numpy()
    target = (targets - targets.mean(0)).double().flatten().numpy()
    penalties = np.abs(design.T @ target).max() / len(design) * np.geomspace(1, 1e-6, 4000)
    _, coefficients, _ = lasso_path(design, target, alphas=penalties, max_iter=100_000)
    return {tuple(np.flatnonzero(one)) for one in coefficients.T}


@pytest.mark.parametrize("num_kept", range(1, CHANNELS + 1))
def test_every_number_is_met_exactly_by_what_some_penalty_leaves(num_kept):
    layer, rows, targets = layer_and_rows()
    kept = tuple(fit(layer, rows, targets, num_kept).kept.tolist())
    assert len(kept) == num_kept
    assert kept in supports(layer, rows, targets)


@pytest.mark.parametrize("bias", [True, False])
def test_weights_and_bias_are_the_least_squares_fit_of_all_rows(bias):
    layer, rows, targets = layer_and_rows(bias)
    found = fit(layer, rows, targets, 3)
    columns = rows[:, READER.columns[found.kept].flatten()].double().numpy()
    if bias:
        columns = np.hstack([columns, np.ones((ROWS, 1))])
    expected = np.linalg.lstsq(columns, targets.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(found.weight.T.numpy(), expected[: 3 * KERNEL], atol=1e-6)
    if bias:
        np.testing.assert_allclose(found.bias.numpy(), expected[-1], atol=1e-6)
    else:
        assert found.bias is None


@pytest.mark.parametrize("num_kept", range(1, CHANNELS))
def test_channel_that_is_always_zero_goes(num_kept):
    layer, rows, targets = layer_and_rows()
    rows[:, READER.columns[3]] = 0
    layer.weight.data[:, 3] *= 100
    assert 3 not in fit(layer, rows, targets, num_kept).kept.tolist()


def test_one_of_two_equal_channels_goes_without_loss():
    layer, rows, _ = layer_and_rows()
    rows[:, READER.columns[5]] = rows[:, READER.columns[2]]
    layer.weight.data[:, 5] = layer.weight.data[:, 2]
    targets = rows @ layer.weight.detach().flatten(1).T + layer.bias.detach()
    found = fit(layer, rows, targets, CHANNELS - 1)
    assert len({2, 5} & set(found.kept.tolist())) == 1
    given = rows[:, READER.kept_columns(found.kept)].double() @ found.weight.T + found.bias
    assert (given - targets).abs().max() < 1e-4 * targets.abs().max()


def test_weights_follow_the_order_of_the_slim_layer_s_columns():
    layer, rows, targets = layer_and_rows()
    mixed = Reader(
        "layer", "group", READER.columns.T.reshape(CHANNELS, KERNEL)
    )  # channel c has the columns c, c + 8, ...
    found = fit(layer, rows, targets, 3, mixed)
    columns = sorted(mixed.columns[found.kept].flatten().tolist())
    expected = np.linalg.lstsq(
        np.hstack([rows[:, columns].double().numpy(), np.ones((ROWS, 1))]), targets.double().numpy(), rcond=None
    )[0]
    np.testing.assert_allclose(found.weight.T.numpy(), expected[:-1], atol=1e-6)


def test_channels_that_leave_together_are_decided_by_their_coefficients():
    gram, response = torch.eye(3, dtype=torch.float64), torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64)
    assert lasso_kept(gram, response, 2).tolist() == [0, 2]  # 0 and 1 leave at the same penalty: the first stays


@pytest.mark.parametrize("response", [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
def test_channels_that_no_penalty_keeps_stay_by_their_norm(response):
    gram = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    kept = lasso_kept(gram, torch.tensor(response, dtype=torch.float64), 2)
    assert kept.tolist() == [1, 2]


def test_layer_that_reads_nothing_but_zeros_keeps_the_number():
    layer, rows, targets = layer_and_rows()
    found = fit(layer, torch.zeros_like(rows), targets, 3)
    assert len(found.kept) == 3
    torch.testing.assert_close(found.bias.float(), targets.mean(0))
    assert torch.equal(found.weight.float(), layer.weight.detach()[:, found.kept].flatten(1))


def test_constant_columns_leave_the_weights_and_go_into_the_bias():
    layer, rows, _ = layer_and_rows()
    rows = torch.full_like(rows, 0.1)
    targets = rows @ layer.weight.detach().flatten(1).T + layer.bias.detach()
    found = fit(layer, rows, targets, 3)
    assert torch.equal(found.weight.float(), layer.weight.detach()[:, found.kept].flatten(1))
    given = rows[:1, READER.kept_columns(found.kept)].double() @ found.weight.T + found.bias
    torch.testing.assert_close(given.float(), targets[:1])


def test_units_of_a_channel_do_not_change_the_fit():
    layer, rows, targets = layer_and_rows()
    factors = torch.ones(CHANNELS * KERNEL)
    factors[READER.columns[2]] = 2.0**17  # exact in floats
    one = fit(layer, rows, targets, CHANNELS)
    layer.weight.data = (layer.weight.flatten(1) / factors).view_as(layer.weight)
    other = fit(layer, rows * factors, targets, CHANNELS)
    torch.testing.assert_close(other.weight * factors, one.weight, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other.bias, one.bias, rtol=1e-9, atol=1e-12)
