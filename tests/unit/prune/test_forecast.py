"""The forecast against `cost_of` on the slim model that is really built."""

import random

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from prune import PruneSpec, cost_of, find_groups, slim_model
from prune.choose.allocate import Ranked
from prune.choose.forecast import Forecast


def ranked_of(groups):
    generator = torch.Generator().manual_seed(0)
    sizes = {group.name: group.num_channels for group in groups}
    return {n: Ranked(torch.rand(num, generator=generator), torch.zeros(num) > 0) for n, num in sizes.items()}


@pytest.fixture
def compared():
    """Return what is forecast and what is counted, at any number of kept channels per group."""

    def compare(model, image, choices):
        groups = [group for group in find_groups(model, (image,)) if not group.obstacle]
        ranked = ranked_of(groups)
        forecast = Forecast(model, groups, ranked, cost_of(model, (image,)))
        for choose in choices:
            kept = {group.name: choose(group.num_channels) for group in groups}
            best = {name: ranked[name].kept(num) for name, num in kept.items()}
            slim = slim_model(model, PruneSpec.from_kept(model, best, groups))
            counted = cost_of(slim, (image,))
            activations = sum(layer.activations for layer in counted.layers.values())
            expected = {"macs": counted.macs, "params": counted.params, "activations": activations}
            yield forecast.cost(kept), expected

    return compare


def mixed(seed):
    rng = random.Random(seed)
    return lambda num: rng.randint(1, num)


def test_tiny_nets_cost_what_was_forecast(declared, x, compared):
    choices = [lambda num: num, lambda num: -(-num // 2), lambda num: max(1, num - 1)]
    for forecast, counted in compared(declared[0], x[:1], choices):
        assert forecast == counted


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "mobilenet_v2",
        "resnext50_32x4d",
        "densenet121",
        "efficientnet_b0",
        "regnet_y_400mf",
        "vgg16_bn",
        "convnext_tiny",
        "resnet56_cifar",
    ],
)
def test_backbones_cost_what_was_forecast_at_mixed_widths(name, compared):
    torch.manual_seed(0)
    model = build_classifier(Architecture(name, 10))
    for forecast, counted in compared(model, torch.zeros(1, 3, 32, 32), [mixed(1), mixed(2)]):
        assert forecast == counted


def test_groups_that_are_not_named_stay_whole(tiny, x):
    net = tiny("residual")
    groups = [group for group in find_groups(net, (x,)) if not group.obstacle]
    forecast = Forecast(net, groups, ranked_of(groups), cost_of(net, (x[:1],))).cost({"b": 2})
    # 1 x 1 on 64 places: a 3 -> 4 (it runs twice), b 4 -> 2, c 2 -> 4, d 4 -> 2
    assert forecast["macs"] == 64 * (2 * 12 + 8 + 8 + 8)
    assert forecast["params"] == (12 + 4) + (8 + 2) + (8 + 4) + (8 + 2)
    assert forecast["activations"] == 64 * (2 * 4 + 2 + 4 + 2)


def test_shared_weights_are_counted_once(tiny, x):
    net = tiny("tied_weights")
    groups = [group for group in find_groups(net, (x,)) if not group.obstacle]
    forecast = Forecast(net, groups, ranked_of(groups), cost_of(net, (x[:1],))).cost({"a": 2})
    # a 3 -> 2, b and c 2 -> 2 with one weight and a bias each, d 2 -> 2; all run
    assert forecast["params"] == (6 + 2) + 4 + (2 + 2) + (4 + 2)
    assert forecast["macs"] == 64 * (6 + 4 + 4 + 4)
