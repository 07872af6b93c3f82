from collections import Counter

import pytest
import torch
from torch import nn

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
    with pytest.raises(RuntimeError, match="expected input"):
        find_groups(net, (torch.zeros(1, 7, 8, 8),))
    assert all(layer.training for layer in net.modules())
    assert not any(p.requires_grad for p in net.parameters())


def test_finding_groups_changes_no_weight(tiny, x, same_state):
    net = tiny("plain")
    find_groups(net, (x,))
    assert same_state(net, tiny("plain"))
    assert [name for name, _ in net.named_modules()] == ["", "0", "1", "2", "3"]


def test_gradients_may_be_switched_off_outside(tiny, x):
    with torch.no_grad():
        assert len(find_groups(tiny("fpn"), (x,))) == 5
