from collections import Counter

import pytest
import torch
import torch_pruning
from torch import nn
from torchvision import models

from prune import find_groups, prune_model


def sides(group):
    return sorted(f"{member.layer}.{member.side}" for member in group.members)


def test_groups_are_the_declared_ones(declared, x):
    net, expected = declared
    found = {group.name: (group.num_channels, sides(group), group.obstacle) for group in find_groups(net, (x,))}
    assert found == {name: (num, sorted(cut.split()), obstacle) for name, (num, cut, obstacle) in expected.items()}


def test_groups_come_in_the_model_s_own_order(declared, x):
    net, _ = declared
    order = [name for name, _ in net.named_modules()]
    places = [order.index(group.name) for group in find_groups(net, (x,))]
    assert places == sorted(places)


def test_every_layer_appears_in_exactly_one_decision(declared, x):
    net, _ = declared
    counts = Counter(name for d in prune_model(net, (x,), 0.5).decisions for name in {d.group, *d.layers})
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert {name: counts[name] for name in layers} == dict.fromkeys(layers, 1)


def test_flattened_channel_owns_a_run_of_linear_inputs(tiny, x):
    linear = find_groups(tiny("flatten"), (x,))[0].members[1]
    # 2 x 2 positions per channel, channel first: channel r owns inputs 4 r .. 4 r + 3
    assert linear.channels.tolist() == list(range(16))
    assert linear.roots.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_concatenated_channels_follow_each_other(tiny, x):
    first, second, _ = find_groups(tiny("concat"), (x,))
    assert first.members[1].channels.tolist() == [0, 1, 2, 3]
    assert second.members[1].channels.tolist() == [4, 5, 6, 7, 8, 9]
    assert second.members[1].roots.tolist() == [0, 1, 2, 3, 4, 5]


def test_modes_and_gradients_are_restored(tiny, x):
    net = tiny("plain").train()
    net[1].eval()
    net[0].requires_grad_(False)
    find_groups(net, (x,))
    assert [layer.training for layer in net.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True, True, True]


def test_modes_and_gradients_are_restored_after_a_failure(tiny):
    net = tiny("frozen").train()
    with pytest.raises(ValueError, match=r"model: its forward pass fails on the example input, .* expected input"):
        find_groups(net, (torch.zeros(1, 7, 8, 8),))
    assert all(layer.training for layer in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_finding_groups_changes_no_weight(tiny, x, same_state):
    net = tiny("plain")
    find_groups(net, (x,))
    assert same_state(net, tiny("plain"))
    assert [name for name, _ in net.named_modules()] == ["", "0", "1", "2", "3"]


def test_grouped_convolution_is_cut_by_whole_convolution_groups(tiny, x):
    group = find_groups(tiny("grouped"), (x,))[0]
    written, read, grouped, after = group.members
    assert (group.num_channels, group.unit, group.width) == (3, 2, 6)
    # three groups of two inputs and four outputs each
    assert (written.side, read.side, grouped.side, after.side) == ("out", "in", "out", "in")
    assert written.roots.tolist() == read.roots.tolist() == [0, 0, 1, 1, 2, 2]
    assert grouped.roots.tolist() == after.roots.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_depthwise_multiplier_takes_all_outputs_of_a_channel(tiny, x):
    outputs = find_groups(tiny("depthwise_twice"), (x,))[0].members[2]
    assert (outputs.layer, outputs.roots.tolist()) == ("1", [0, 0, 1, 1, 2, 2, 3, 3])


def sides_by_layer(group, is_out):
    """Return which sides a group of torch-pruning cuts, with their channels, layers only."""
    found = set()
    for dep, channels in group:
        module, name = dep.target.module, dep.target.name
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            found.add((name.split(" ")[0], "out" if is_out(dep.handler) else "in", tuple(sorted(channels))))
    return found


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16_bn", "densenet121", "squeezenet1_1", "googlenet"])
def test_groups_are_those_that_torch_pruning_finds(name):
    # without its heads for training, which torch-pruning does not see
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    net = models.get_model(name, num_classes=10, **options).eval()
    image = torch.randn(1, 3, 64, 64)
    graph = torch_pruning.DependencyGraph().build_dependency(net, image, verbose=False)
    theirs = [sides_by_layer(group, graph.is_out_channel_pruning_fn) for group in graph.get_all_groups()]
    ours = [
        {(m.layer, m.side, tuple(m.channels.tolist())) for m in group.members}
        for group in find_groups(net, (image,))
        if group.members
    ]
    assert sorted(map(sorted, ours)) == sorted(map(sorted, theirs))
