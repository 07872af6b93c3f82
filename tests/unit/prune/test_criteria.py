import pytest
import torch

from prune import find_groups, prune_model
from prune.criteria import L1Norm


def fill(layer, *filters):
    """Set every weight of the layer's i-th filter to the i-th value."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(filters).view(-1, *[1] * (layer.weight.ndim - 1)).expand_as(layer.weight))


def test_l1_score_is_the_sum_of_absolute_weights(tiny, x):
    net = tiny("plain")
    fill(net[0], 1.0, -2.0, 0.0, 0.5)
    # 3 inputs x 3 x 3 = 27 weights per filter; BatchNorm's weights do not count
    assert L1Norm().scores(net, find_groups(net, (x,))[0]).tolist() == [27.0, 54.0, 0.0, 13.5]


def test_l1_scores_of_coupled_layers_add_up(tiny, x):
    net = tiny("residual")
    fill(net.a, 1.0, -2.0, 0.0, 3.0)
    fill(net.c, 0.5, 0.0, -1.0, 0.0)
    # a has 3 inputs, c has 6: 3 |a| + 6 |c|; b only reads the channels
    assert L1Norm().scores(net, find_groups(net, (x,))[0]).tolist() == [6.0, 6.0, 6.0, 9.0]


def test_l1_scores_of_concatenated_layers_follow_their_channels(tiny, x):
    net = tiny("concat_added")
    fill(net.a, 1.0, 1.0, 1.0, 2.0)
    fill(net.b, 3.0, 3.0, 3.0, 3.0, 3.0, 4.0)
    fill(net.c, *[0.0] * 9, 10.0)
    # 3 inputs each; a writes channels 0..3, b 4..9, c all
    expected = [3.0, 3.0, 3.0, 6.0, 9.0, 9.0, 9.0, 9.0, 9.0, 42.0]
    assert L1Norm().scores(net, find_groups(net, (x,))[0]).tolist() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused(tiny, x, value):
    net = tiny("residual")
    net.c.weight.data[0, 0] = value
    with pytest.raises(ValueError, match="a: a weight is not finite"):
        prune_model(net, (x,), 0.5)
