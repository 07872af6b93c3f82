import pytest
import torch
from torch import nn

from command.errors import RequestError
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


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"ratios": (1.0,)}, "ratios: would remove all channels or more, got 1"),
        ({"ratios": ()}, r"ratios: none, or one twice, got \(\); expected one or more different ones"),
        ({"ratios": (0.3, 0.3)}, r"ratios: none, or one twice, got \(0.3, 0.3\)"),
        ({"window": 1}, "window: no number of masks to compare, got 1; expected a whole one, 2 or more"),
        ({"window": 2.5}, "window: no number of masks to compare, got 2.5"),
        ({"tolerance": -0.1}, r"tolerance: out of range, got -0.1; expected a share in \[0, 1\]"),
        ({"tolerance": float("nan")}, "tolerance: out of range, got nan"),
    ],
)
def test_options_out_of_range_are_refused(net, x, options, line):
    with pytest.raises(RequestError, match=f"^{line}"):
        EarlyBird(net, (x,), Recipe(prune_ratio=0.5), **options)


def test_state_of_other_ratios_is_refused(net, x):
    one, other = (EarlyBird(net, (x,), Recipe(prune_ratio=0.5), ratios=ratios) for ratios in ((0.3, 0.5), (0.5, 0.7)))
    line = r"EarlyBird: the state has other ratios .*, got \(\[0.3, 0.5\], 10\); expected \(\[0.5, 0.7\], 10\)"
    with pytest.raises(RequestError, match=line):
        other.load_state_dict(one.state_dict())
