import math

import pytest
import torch
from torch import nn

from prune import Group, Member, find_groups
from prune.choose.criteria import CRITERIA, REDUCTIONS, L1Norm, group_scores, make_criterion
from prune.selection import ChannelSelection


def fill(layer, *filters):
    """Set every weight of the layer's i-th filter to the i-th value."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(filters).view(-1, *[1] * (layer.weight.ndim - 1)).expand_as(layer.weight))


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    layer.weight.data.copy_(torch.tensor(rows))
    return layer


def member(layer, roots, side="out"):
    return Member(layer, side, torch.arange(len(roots)), torch.tensor(roots))


def whole(model, layer="0", side="out"):
    """The group of all channels on one side of one layer."""
    module = model.get_submodule(layer)
    num = module.weight.shape[0] if isinstance(module, nn.BatchNorm2d) else module.get_parameter("weight").shape[0]
    return Group(layer, num, (member(layer, range(num), side),))


def scores(name, model, group, reduction="sum"):
    return group_scores(make_criterion(name, model), model, group, reduction).tolist()


def test_l1_score_is_the_sum_of_absolute_weights(tiny, x):
    net = tiny("plain")
    fill(net[0], 1.0, -2.0, 0.0, 0.5)
    # 3 inputs x 3 x 3 = 27 weights per filter; BatchNorm's weights do not count
    assert scores("l1", net, find_groups(net, (x,))[0]) == [27.0, 54.0, 0.0, 13.5]


def test_norms_of_selected_channels_are_those_of_what_reads_them(x):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), ChannelSelection(2), nn.Conv2d(2, 2, 1))
    net[2].weight.data = torch.tensor([[3.0, 1.0], [-4.0, 1.0]])[:, :, None, None]  # columns are inputs
    selected = next(g for g in find_groups(net, (x,), select_channels=True) if g.name == "1")
    assert scores("l1", net, selected) == [7, 2]
    assert scores("l2", net, selected) == pytest.approx([5, math.sqrt(2)])
    with pytest.raises(ValueError, match="1: GeometricMedian cannot rank this group, got scores for 0 of its 2"):
        scores("fpgm", net, selected)


def test_l1_scores_of_coupled_layers_add_up(tiny, x):
    net = tiny("residual")
    fill(net.a, 1.0, -2.0, 0.0, 3.0)
    fill(net.c, 0.5, 0.0, -1.0, 0.0)
    # a has 3 inputs, c has 6: 3 |a| + 6 |c|; b only reads the channels
    assert scores("l1", net, find_groups(net, (x,))[0]) == [6.0, 6.0, 6.0, 9.0]


def test_l1_scores_of_concatenated_layers_follow_their_channels(tiny, x):
    net = tiny("concat_added")
    fill(net.a, 1.0, 1.0, 1.0, 2.0)
    fill(net.b, 3.0, 3.0, 3.0, 3.0, 3.0, 4.0)
    fill(net.c, *[0.0] * 9, 10.0)
    # 3 inputs each; a writes channels 0..3, b 4..9, c all
    expected = [3.0, 3.0, 3.0, 6.0, 9.0, 9.0, 9.0, 9.0, 9.0, 42.0]
    assert scores("l1", net, find_groups(net, (x,))[0]) == expected


def test_filters_of_a_transposed_convolution_are_those_behind_its_outputs():
    net = nn.Sequential(nn.ConvTranspose2d(4, 4, 1, groups=2, bias=False))
    net[0].weight.data.copy_(torch.tensor([[1.0, 2], [3, 4], [5, 6], [7, 8]]).view(4, 2, 1, 1))
    # inputs 0, 1 feed outputs 0, 1 and inputs 2, 3 feed outputs 2, 3; all weights positive: the answer to ones
    assert scores("l1", net, whole(net)) == [1 + 3, 2 + 4, 5 + 7, 6 + 8]
    assert net(torch.ones(1, 4, 1, 1)).flatten().tolist() == [4.0, 6.0, 12.0, 14.0]


def test_l2_score_is_the_length_of_the_filter():
    net = nn.Sequential(linear([3.0, -4.0], [5.0, 12.0]))
    assert scores("l2", net, whole(net)) == [5.0, 13.0]


def test_bn_scale_is_the_absolute_gamma_and_ignores_convolutions(tiny, x):
    net = tiny("plain")
    net[1].weight.data.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5]))
    assert scores("bn_scale", net, find_groups(net, (x,))[0]) == [1.0, 2.0, 0.0, 0.5]


def test_fpgm_score_is_the_sum_of_distances_to_the_other_filters():
    net = nn.Sequential(linear([0.0, 0.0], [3.0, 4.0], [0.0, 0.0]))
    assert scores("fpgm", net, whole(net)) == [5 + 0, 5 + 5, 0 + 5]


def test_fpgm_agrees_with_a_double_loop_for_filters_that_nearly_coincide():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 40, 3))
    with torch.no_grad():
        net[0].weight.mul_(1e-4).add_(1.0)
    filters = net[0].weight.detach().flatten(1).tolist()
    assert scores("fpgm", net, whole(net)) == pytest.approx(
        [sum(math.dist(one, other) for other in filters) for one in filters], rel=1e-5
    )


def test_random_scores_depend_on_seed_and_layer_alone(tiny, x):
    net = tiny("residual")
    groups = find_groups(net, (x,))

    def drawn(seed, order):
        criterion = make_criterion("random", net, seed=seed)
        return {group.name: group_scores(criterion, net, group, "first").tolist() for group in order}

    first = drawn(1, groups)
    torch.rand(3)
    assert first == drawn(1, groups[::-1])
    assert first["a"] != drawn(2, groups)["a"]
    assert first["a"] != first["b"][:4]
    assert all(0 <= score < 1 for values in first.values() for score in values)


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sum", [1 + 10, 2 + 20, 3 + 30, 4 + 40, 50]),
        ("mean", [5.5, 11.0, 16.5, 22.0, 50.0]),
        ("max", [10.0, 20.0, 30.0, 40.0, 50.0]),
        ("first", [1.0, 2.0, 3.0, 4.0, 50.0]),
    ],
)
def test_reduction_takes_only_layers_that_cover_the_channel(reduction, expected):
    net = nn.Sequential(linear([1.0], [2.0]), linear([3.0], [4.0]), linear([10.0], [20.0], [30.0], [40.0], [50.0]))
    # a concatenation: layer 0 writes channels 0 and 1, layer 1 channels 2 and 3; layer 2 is added to them
    group = Group("0", 5, (member("0", [0, 1]), member("1", [2, 3]), member("2", range(5))))
    assert scores("l1", net, group, reduction) == expected


def test_first_follows_the_order_of_members():
    net = nn.Sequential(linear([1.0], [2.0]), linear([5.0], [0.0]))
    members = member("1", [0, 1]), member("0", [0, 1])
    assert scores("l1", net, Group("0", 2, members), "first") == [5.0, 0.0]


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_channels_of_a_layer_that_go_together_add_up_before_any_reduction(reduction):
    net = nn.Sequential(linear([9.0], [1.0], [2.0], [3.0], [4.0]))
    # a grouped convolution: two of its channels per channel of the group; its first channel belongs elsewhere
    part = Member("0", "out", torch.tensor([1, 2, 4, 3]), torch.tensor([0, 0, 1, 1]))
    assert scores("l1", net, Group("0", 2, (part,)), reduction) == [3.0, 7.0]


def test_free_parameter_in_a_group_is_not_scored(tiny):
    net = tiny("free_parameter")
    group = Group("a", 4, (member("a", range(4)), member("scale", range(4))))
    assert scores("l1", net, group) == pytest.approx(net.a.weight.detach().abs().sum((1, 2, 3)).tolist())


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_scores_a_group_in_float32(tiny, x, name):
    net = tiny("plain").double()
    criterion = make_criterion(name, net, lambda model: iter([model(x.double()).square().mean()]))
    result = group_scores(criterion, net, find_groups(net, (x.double(),))[0])
    assert (result.shape, result.dtype, result.requires_grad) == ((4,), torch.float32, False)
    assert (result >= 0).all()
    assert result.any()


def test_only_taylor_and_bn_scale_compare_across_groups():
    assert [name for name, criterion in CRITERIA.items() if criterion.comparable] == ["bn_scale", "taylor"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weight_that_is_not_finite_is_refused(tiny, x, value):
    net = tiny("residual")
    net.c.weight.data[0, 0] = value
    with pytest.raises(ValueError, match=f"^c: a score is not finite, got {value}; expected finite weights"):
        group_scores(L1Norm(), net, find_groups(net, (x,))[0])


def test_group_without_batch_norm_is_refused_by_bn_scale(tiny, x):
    net = tiny("residual")
    with pytest.raises(
        ValueError,
        match=r"^a: BatchNormScale cannot rank this group, got scores for 0 of its 4 channels; .*: skip the group or",
    ):
        scores("bn_scale", net, find_groups(net, (x,))[0])


def test_batch_norm_without_gamma_is_refused_by_bn_scale():
    net = nn.Sequential(nn.BatchNorm2d(4, affine=False))
    with pytest.raises(ValueError, match="got scores for 0 of its 4 channels"):
        scores("bn_scale", net, Group("0", 4, (member("0", range(4)),)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_channel_that_no_scored_layer_covers_is_refused(reduction):
    net = nn.Sequential(linear([1.0], [2.0]))
    with pytest.raises(ValueError, match=r"^0: L1Norm cannot rank this group, got scores for 2 of its 3 channels"):
        scores("l1", net, Group("0", 3, (member("0", [0, 2]),)), reduction)


def test_unknown_reduction_is_refused():
    net = nn.Sequential(linear([1.0], [2.0]))
    with pytest.raises(ValueError, match=r"^reduction: unknown, got 'median'; expected one of \['sum', "):
        scores("l1", net, whole(net), "median")


def test_unknown_criterion_is_refused():
    with pytest.raises(ValueError, match=r"^criterion: unknown, got 'l7'; expected one of \['average_rank', "):
        make_criterion("l7", nn.Sequential())
