import pytest
import torch
from torch import nn

from prune import Recipe
from prune.learn.early_bird import EarlyBird, mask_distances

TOP = torch.arange(10.0) + 1
"""At half, the scales above 6 stay: the last four."""


@pytest.fixture
def net():
    return nn.Sequential(nn.Conv2d(3, 10, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 2, 1))


def watch(net, method, epochs):
    """Show the method these scales, an epoch each."""
    for epoch, scales in enumerate(epochs):
        net[1].weight.data = scales
        method.after_epoch(net, epoch)
    return method.drawn


def moved(num):
    """Scales whose mask at half differs from that of TOP in 2 * num of ten places."""
    scales = TOP.clone()
    scales[:num] += 20
    return scales


def test_distances_are_of_the_newest_mask_to_each_older_one():
    masks = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 0, 1], [0, 0, 1, 1, 1]], dtype=torch.bool)
    # the last differs from the first in places 0 1 2 3 4, from the second in 0 3 4, from the third in 0 3
    assert mask_distances(masks).tolist() == pytest.approx([1.0, 0.6, 0.4])


def test_ticket_is_drawn_when_five_masks_agree(net, x):
    method = EarlyBird(net, (x,), Recipe(prune_ratio=0.5), ratios=(0.5,))
    assert watch(net, method, [moved(2), *[TOP] * 3, TOP]) == {}  # the fifth still sees the first
    method.after_epoch(net, 5)
    assert method.drawn == {0.5: 5}
    method.after_epoch(net, 6)
    assert method.drawn == {0.5: 5}


def test_four_masks_are_too_few(net, x):
    method = EarlyBird(net, (x,), Recipe(prune_ratio=0.5), ratios=(0.5,))
    assert watch(net, method, [TOP] * 4) == {}


def test_distance_at_the_tolerance_counts_and_above_does_not(net, x):
    for tolerance, drawn in ((0.2, {0.5: 4}), (0.19, {})):
        method = EarlyBird(net, (x,), Recipe(prune_ratio=0.5), ratios=(0.5,), tolerance=tolerance)
        assert watch(net, method, [TOP, TOP, moved(1), TOP, TOP]) == drawn  # two of ten places


def test_ratios_are_watched_at_once(net, x):
    method = EarlyBird(net, (x,), Recipe(prune_ratio=0.5), ratios=(0.3, 0.7))
    swapped = TOP.clone()
    swapped[[2, 4]] = swapped[[4, 2]]  # at 0.3 the scales above 4 stay, at 0.7 those above 8: the least change places
    assert watch(net, method, [TOP, swapped, TOP, swapped, TOP]) == {0.7: 4}


def test_ticket_is_cut_at_its_ratio_and_scales_are_penalised(net, x):
    method = EarlyBird(net, (x,), Recipe(prune_ratio=0.5), penalty=0.5)
    net[1].weight.data = TOP.clone()
    assert method.slim(net, prune_ratio=0.7).spec.layers["0"].kept_out == (7, 8, 9)
    net[1].weight.grad = torch.zeros(10)
    method.after_backward(net)
    assert net[1].weight.grad.tolist() == [0.5] * 10


def test_ratio_out_of_range_is_refused(net, x):
    with pytest.raises(ValueError, match="ratios: would remove all channels or more, got 1"):
        EarlyBird(net, (x,), Recipe(prune_ratio=0.5), ratios=(1.0,))
