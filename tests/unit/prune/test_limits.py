"""Limits in `prune_model`: kept channels are checked by the cost of slim models that are really built."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torchvision import models

from classify.backbones import Architecture, build_classifier
from prune import PruneSpec, cost_of, find_groups, prune_model, slim_model

pytestmark = pytest.mark.slow

LIMITS = {
    "max_macs": lambda cost: cost.macs,
    "max_params": lambda cost: cost.params,
    "max_activations": lambda cost: sum(layer.activations for layer in cost.layers.values()),
}
TINY = ["residual", "grouped", "depthwise_twice", "squeeze_excite", "flatten", "tied_weights", "fpn", "transposed"]


class Mixed(nn.Module):
    """A residual block with a depthwise convolution, then a grouped one that writes half of what it reads."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3)
        self.expand = nn.Conv2d(64, 96, 1)
        self.depthwise = nn.Conv2d(96, 96, 3, padding=1, groups=96)
        self.project = nn.Conv2d(96, 64, 1)
        self.wide = nn.Conv2d(64, 128, 1)
        self.grouped = nn.Conv2d(128, 64, 3, groups=16)
        self.head = nn.Linear(64, 5)

    def forward(self, images):
        stem = torch.relu(self.stem(images))
        block = stem + self.project(torch.relu(self.depthwise(self.expand(stem))))
        return self.head(self.grouped(self.wide(block)).mean((2, 3)))


class Space:
    """All choices for a model: what each costs once it is built, and what rounding allows."""

    def __init__(self, model, image, limit):
        self.model, self.image, self.limit = model, image, limit
        self.all_groups = find_groups(model, (image,))
        self.groups = {group.name: group for group in self.all_groups if not group.obstacle}

    def cost(self, model):
        return LIMITS[self.limit](cost_of(model, (self.image,)))

    def cost_at(self, kept):
        first = {name: torch.arange(num) for name, num in kept.items()}
        return self.cost(slim_model(self.model, PruneSpec.from_kept(self.model, first, self.all_groups)))

    def allowed(self, name, round_to, min_channels):
        """Return every number of the group's channels that may stay."""
        group = self.groups[name]
        numbers = range(math.ceil(min_channels / group.unit), group.num_channels)
        return [num for num in numbers if num * group.unit % round_to == 0] + [group.num_channels]

    def kept(self, pruned):
        return {d.group: d.num_kept // self.groups[d.group].unit for d in pruned.decisions if d.group in self.groups}


def check_met(space, pruned, limit, round_to=1, min_channels=1):
    """The limit is kept, and one rounding step more of any group would break it."""
    kept = space.kept(pruned)
    assert space.cost(pruned.model) == space.cost_at(kept) <= limit
    for name, num in kept.items():
        allowed = space.allowed(name, round_to, min_channels)
        assert num in allowed
        wider = [more for more in allowed if more > num]
        assert not wider or space.cost_at({**kept, name: wider[0]}) > limit


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    return Mixed(), torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("ranking", ["uniform", "global"])
@pytest.mark.parametrize(("round_to", "min_channels"), [(1, 1), (1, 20), (8, 1), (16, 24), (32, 1)])
def test_limit_is_kept_and_no_group_has_room_for_one_step_more(mixed, limit, ranking, round_to, min_channels):
    space = Space(*mixed, limit)
    least = space.cost_at({name: space.allowed(name, round_to, min_channels)[0] for name in space.groups})
    dense = space.cost_at({})
    options = {"ranking": ranking, "round_to": round_to, "min_channels": min_channels}
    for share in (0.0, 0.15, 0.5, 0.85):
        allowed = least + int(share * (dense - least))
        pruned = prune_model(space.model, (space.image,), **{limit: allowed}, **options)
        check_met(space, pruned, allowed, round_to, min_channels)
    with pytest.raises(ValueError, match=f"{limit}: below .*, got {least - 1}; expected at least {least}$"):
        prune_model(space.model, (space.image,), **{limit: least - 1}, **options)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("ranking", ["uniform", "global"])
@pytest.mark.parametrize("name", TINY)
def test_limits_are_met_in_every_kind_of_net(tiny, x, name, ranking, limit):
    space = Space(tiny(name), x[:1], limit)
    dense = space.cost_at({})
    least = space.cost_at(dict.fromkeys(space.groups, 1))
    for allowed in range(least, dense, max(1, (dense - least) // 5)):
        pruned = prune_model(space.model, (space.image,), **{limit: allowed}, ranking=ranking)
        check_met(space, pruned, allowed)


@pytest.mark.parametrize(
    ("name", "round_to", "ranking"),
    [("resnet20_cifar", 8, "uniform"), ("regnet_y_400mf", 8, "global")],
)
def test_limits_are_met_in_backbones(name, round_to, ranking):
    torch.manual_seed(0)
    space = Space(build_classifier(Architecture(name, 10)), torch.zeros(1, 3, 32, 32), "max_macs")
    allowed = int(0.6 * space.cost_at({}))
    pruned = prune_model(space.model, (space.image,), max_macs=allowed, ranking=ranking, round_to=round_to)
    check_met(space, pruned, allowed, round_to)


@pytest.mark.parametrize("limit", LIMITS)
def test_limit_is_for_one_image_at_any_batch_size(tiny, x, limit):
    assert len(x) > 1
    space = Space(tiny("residual"), x[:1], limit)
    allowed = int(0.6 * space.cost_at({}))
    one, many = (prune_model(space.model, (images,), **{limit: allowed}) for images in (x[:1], x))
    assert one.spec == many.spec


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("ranking", ["uniform", "global"])
def test_limit_of_the_dense_cost_or_above_keeps_all_with_a_reason(tiny, x, same_state, limit, ranking):
    dense = Space(tiny("residual"), x[:1], limit).cost_at({})
    for allowed in (dense, 10 * dense):
        pruned = prune_model(tiny("residual"), (x,), **{limit: allowed}, ranking=ranking)
        assert same_state(pruned.model, tiny("residual"))
        reasons = [f"{limit} {allowed} keeps all {num} channels" for num in (4, 6)]
        assert [d.reason for d in pruned.decisions] == [*reasons, "its channels are an output of the model"]
    assert prune_model(tiny("residual"), (x,), **{limit: dense - 1}, ranking=ranking).spec.layers


def test_limit_where_nothing_may_be_cut_names_the_dense_cost(tiny, x):
    dense = cost_of(tiny("residual"), (x[:1],)).macs
    with pytest.raises(ValueError, match=f"expected at least {dense}"):
        prune_model(tiny("residual"), (x,), max_macs=dense - 1, skip=["*"])


def test_own_ratios_and_widths_hold_under_a_limit_and_the_rest_is_filled(mixed):
    space = Space(*mixed, "max_macs")
    allowed = space.cost_at({}) // 5
    own = {"ratios": {"stem": 0.5}, "widths": {"expand": 37}}
    kept = space.kept(prune_model(space.model, (space.image,), max_macs=allowed, round_to=8, **own))
    assert (kept["stem"], kept["expand"]) == (32, 37)
    assert kept["wide"] < 16  # of its 16 blocks
    assert space.cost_at(kept) <= allowed < space.cost_at({**kept, "wide": kept["wide"] + 2})


@pytest.mark.parametrize("name", ["residual", "squeeze_excite", "fpn"])
@pytest.mark.parametrize("limit", LIMITS)
def test_uniform_limit_is_the_smallest_ratio_that_fits_and_then_is_filled(tiny, x, name, limit):
    space = Space(tiny(name), x[:1], limit)
    sizes = {name: group.num_channels for name, group in space.groups.items()}
    ratios = sorted({Fraction(gone, size) for size in sizes.values() for gone in range(size)})
    floors = [{name: max(1, math.floor(size * (1 - p))) for name, size in sizes.items()} for p in ratios]
    costs = [space.cost_at(kept) for kept in floors]
    for allowed in range(costs[-1], costs[0] + 1, max(1, (costs[0] - costs[-1]) // 7)):
        kept = space.kept(prune_model(space.model, (space.image,), **{limit: allowed}))
        fits = next(i for i, cost in enumerate(costs) if cost <= allowed)
        assert all(kept[name] >= num for name, num in floors[fits].items())
        assert fits == 0 or any(kept[name] < num for name, num in floors[fits - 1].items())


# ratios


@pytest.mark.parametrize("name", ["resnet20_cifar", "mobilenet_v2", "densenet121"])
@pytest.mark.parametrize("prune_ratio", [0.5, 0.3])
def test_global_ratio_removes_that_share_of_all_channels_together(name, prune_ratio):
    torch.manual_seed(0)
    pruned = prune_model(
        build_classifier(Architecture(name, 10)), (torch.zeros(1, 3, 32, 32),), prune_ratio, ranking="global"
    )
    cut = [d for d in pruned.decisions if d.before_rounding is not None]
    total = sum(d.num_channels for d in cut)
    assert sum(d.num_kept for d in cut) == int(total * (1 - Fraction(str(prune_ratio))))
    assert len({Fraction(d.num_kept, d.num_channels) for d in cut}) > 1


def set_scores(layer, scores):
    """Make every weight of the layer's i-th filter so that its L1 norm is the i-th score."""
    with torch.no_grad():
        scale = torch.tensor(scores) / layer.weight[0].numel()
        layer.weight.copy_(scale.view(-1, *[1] * (layer.weight.ndim - 1)).expand_as(layer.weight))


def two_layers():
    """Layer 0 has the scores 1, 4, 3, 2 and layer 3 ten times as much; so have their normalisations' scales."""
    small, large = [1.0, 4.0, 3.0, 2.0], [60.0, 50.0, 40.0, 30.0, 20.0, 10.0]
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
    )
    for index, scores in ((0, small), (3, large)):
        set_scores(net[index], scores)
        net[index + 1].weight.data = torch.tensor(scores)
    return net


@pytest.mark.parametrize(
    ("criterion", "options", "first", "second"),
    [
        # over the means 2.5 and 35: 0.4 1.6 1.2 0.8 and 1.71 1.43 1.14 0.86 0.57 0.29; five of ten go
        ("l1", {}, (1, 2), (0, 1, 2)),
        ("l1", {"min_channels": 3}, (1, 2, 3), (0, 1, 2)),  # 0.8 stays, and 0.86 goes instead
        # as they are: 1 2 3 go, 4 is the last of its layer, then 10 20
        ("bn_scale", {}, (1,), (0, 1, 2, 3)),
        ("bn_scale", {"min_channels": 2}, (1, 2), (0, 1, 2)),
        ("bn_scale", {"min_channels": 5}, (0, 1, 2, 3), (0, 1, 2, 3, 4)),  # the first has four only
    ],
)
def test_global_ranking_removes_the_lowest_scores_of_all(criterion, options, first, second):
    net = two_layers()
    spec = prune_model(net, (torch.zeros(1, 3, 2, 2),), 0.5, ranking="global", criterion=criterion, **options).spec
    kept = [spec.layers[name].kept_out if name in spec.layers else None for name in ("0", "3")]
    assert kept == [first if len(first) < 4 else None, second]


def test_num_rounded_is_what_rounding_added_less_what_it_took():
    pruned = prune_model(models.resnet18(num_classes=2), (torch.zeros(1, 3, 32, 32),), 0.3, round_to=16)
    # 3 groups of 64: 44 -> 48; 3 of 128: 89 -> 96; 3 of 256: 179 -> 176; 3 of 512: 358 -> 352
    change = {64: 4, 128: 7, 256: -3, 512: -6}
    cut = [d for d in pruned.decisions if d.before_rounding is not None]
    assert [d.num_kept - d.before_rounding for d in cut] == [change[d.num_channels] for d in cut]
    assert pruned.num_rounded == 3 * (4 + 7 - 3 - 6) == 6


@pytest.mark.parametrize("ranking", ["uniform", "global"])
@pytest.mark.parametrize("amount", [{"max_macs": 300_000}, {"max_params": 9_000}, {"prune_ratio": 0.45}])
def test_before_rounding_is_what_the_same_call_without_rounding_keeps(mixed, ranking, amount):
    model, image = mixed
    exact, rounded = (prune_model(model, (image,), **amount, ranking=ranking, round_to=r) for r in (1, 16))
    assert [d.before_rounding for d in rounded.decisions] == [d.before_rounding for d in exact.decisions]
    assert exact.num_rounded == 0
    assert all(d.num_kept == d.before_rounding for d in exact.decisions if d.before_rounding is not None)
    assert rounded.num_rounded == sum(
        d.num_kept - e.num_kept for d, e in zip(rounded.decisions, exact.decisions, strict=True)
    )


def widths(model):
    """Return the output channels of every convolution and linear layer."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    return {name: getattr(layer, "out_channels", None) or layer.out_features for name, layer in layers.items()}


@pytest.mark.parametrize("name", ["resnext50_32x4d", "regnet_y_400mf", "mobilenet_v2", "densenet121"])
@pytest.mark.parametrize(("round_to", "ranking"), [(8, "uniform"), (32, "global")])
def test_every_cut_layer_keeps_a_multiple_and_the_minimum(name, round_to, ranking):
    torch.manual_seed(0)
    dense, image = build_classifier(Architecture(name, 10)), torch.zeros(1, 3, 32, 32)
    pruned = prune_model(dense, (image,), 0.8, round_to=round_to, ranking=ranking, min_channels=12)
    before, after = widths(dense), widths(pruned.model)
    cut = [num for name, num in after.items() if num < before[name]]
    assert len(cut) > len(after) / 4
    assert {num % round_to for num in cut} == {0}
    assert min(cut) >= 12


@pytest.mark.parametrize(
    ("options", "exact", "kept"),
    [
        # 32 blocks of 4, 8, 16, 32 channels: 0.7 of 32 are 22 blocks
        ({"prune_ratio": 0.3}, (88, 176, 352, 704), (88, 176, 352, 704)),
        # in steps of 4, 2, 1, 1 blocks; 22 lies halfway between 20 and 24: up
        ({"prune_ratio": 0.3, "round_to": 16}, (88, 176, 352, 704), (96, 176, 352, 704)),
        # in steps of 16, 8, 4, 2 blocks
        ({"prune_ratio": 0.3, "round_to": 64}, (88, 176, 352, 704), (64, 192, 384, 704)),
        # 0.05 of 32 is one block; 30 channels take 8, 4, 2, 1 blocks
        ({"prune_ratio": 0.95, "min_channels": 30}, (32, 32, 32, 32), (32, 32, 32, 32)),
        ({"prune_ratio": 0.95, "min_channels": 30, "round_to": 24}, (32, 32, 32, 32), (48, 48, 48, 96)),
    ],
)
def test_grouped_convolutions_round_in_whole_blocks(options, exact, kept):
    torch.manual_seed(0)
    pruned = prune_model(models.resnext50_32x4d(num_classes=2), (torch.zeros(1, 3, 32, 32),), **options)
    first = [next(d for d in pruned.decisions if d.group == f"layer{i}.0.conv1") for i in (1, 2, 3, 4)]
    assert tuple(d.before_rounding for d in first) == exact
    assert tuple(d.num_kept for d in first) == kept
    blocks = [pruned.model.get_submodule(f"layer{i}.0.conv2") for i in (1, 2, 3, 4)]
    assert tuple(layer.out_channels for layer in blocks) == kept
    assert tuple(layer.out_channels // layer.groups for layer in blocks) == (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ({"prune_ratio": 0.9, "min_channels": 3}, {"a": 3, "b": 3}),
        ({"prune_ratio": 0.9, "min_channels": 3, "ratios": {"b": 0.8}}, {"a": 3, "b": 3}),
        ({"prune_ratio": 0.0, "min_channels": 5, "ratios": {"*": 0.9}}, {"a": 4, "b": 5}),  # a has only 4
        ({"prune_ratio": 0.9, "min_channels": 3, "ranking": "global"}, {"a": 3, "b": 3}),
        ({"prune_ratio": 0.9, "min_channels": 3, "round_to": 2}, {"a": 4, "b": 4}),
    ],
)
def test_minimum_goes_before_the_ratio(tiny, x, amount, expected):
    pruned = prune_model(tiny("residual"), (x,), **amount)
    assert {d.group: d.num_kept for d in pruned.decisions} == {**expected, "d": 2}
    assert pruned.num_rounded == (2 if "round_to" in amount else 0)


def test_group_kept_whole_by_min_channels_gives_it_as_reason(tiny, x):
    pruned = prune_model(tiny("residual"), (x,), 0.9, min_channels=5)
    assert pruned.untouched[0].reason == "min_channels 5 keeps all 4 channels"


@pytest.mark.parametrize("ranking", ["uniform", "global"])
@pytest.mark.parametrize("min_channels", [1, 2])
def test_layer_that_writes_part_of_a_group_keeps_its_minimum_too(tiny, x, ranking, min_channels):
    net = tiny("concat_added")
    for weight in (net.a.weight, net.c.weight[:4]):
        weight.data.mul_(1e-3)  # otherwise layer a would lose all of its 4 channels
    for amount in ({"prune_ratio": 0.5}, {"max_params": 60}):
        slim = prune_model(net, (x,), **amount, ranking=ranking, min_channels=min_channels).model
        assert slim.a.out_channels == min_channels
        assert slim.a.out_channels + slim.b.out_channels == slim.c.out_channels == slim.d.in_channels < 10


@pytest.mark.parametrize("ranking", ["uniform", "global"])
@pytest.mark.parametrize("amount", [{"prune_ratio": 0.45}, {"max_macs": 300_000}])
def test_same_call_gives_the_same_result_and_leaves_the_dense_model(mixed, same_state, ranking, amount):
    model, image = mixed
    dense = Mixed()
    dense.load_state_dict(model.state_dict())
    one, two = (prune_model(model, (image,), **amount, ranking=ranking, round_to=8) for _ in range(2))
    assert one.spec == two.spec
    assert one.decisions == two.decisions
    assert same_state(one.model, two.model)
    assert same_state(model, dense)
    assert widths(model) == widths(dense)
