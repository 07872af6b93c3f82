"""What channels may pass through, kind by kind: the groups, worked by hand, and the slim model beside a masked twin."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from prune import PruneSpec, find_groups, narrowed_model

PLACES = "its channels are split at fixed places by the forward pass"
NUMBER = "a number in the forward pass depends on its width"


class Net(nn.Module):
    """Layers, numbers and a function that runs them."""

    def __init__(self, run, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


def conv(num_in, num_out, kernel=1, **options):
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2, **options)


def between(form, num_written=4, num_read=4):
    """Two convolutions and what happens to the channels between them."""
    return Net(lambda net, x: net.b(form(net.a(x))), a=conv(3, num_written), b=conv(num_read, 2))


def through_blur(x):
    kernel = torch.tensor([[1.0, 2.0, 1.0]]) / 4
    return functional.conv2d(x, kernel.expand(x.shape[1], 1, 1, 3), padding=(0, 1), groups=x.shape[1])


def gridded(x):
    theta = torch.eye(2, 3).expand(len(x), 2, 3)
    return functional.grid_sample(x, functional.affine_grid(theta, [len(x), 1, 4, 4], False), align_corners=False)


def in_three_dimensions(pool):
    return lambda x: pool(x.unsqueeze(2)).squeeze(2)


def in_one_dimension(change):
    return lambda x: change(x.flatten(2)).unsqueeze(3)


# each channel by itself
ALONE = {
    "reflection padding": lambda x: functional.pad(x, (1, 1, 2, 0), mode="reflect"),
    "replication padding": lambda x: functional.pad(x, (1, 1, 2, 0), mode="replicate"),
    "circular padding": lambda x: functional.pad(x, (1, 1, 2, 0), mode="circular"),
    "reflection padding in one dimension": in_one_dimension(lambda x: functional.pad(x, (1, 1), mode="reflect")),
    "flip": lambda x: x.flip(3),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "max pooling in three dimensions": in_three_dimensions(lambda x: functional.max_pool3d(x, (1, 2, 2))),
    "mean pooling in three dimensions": in_three_dimensions(lambda x: functional.avg_pool3d(x, (1, 2, 2))),
    "adaptive pooling in three dimensions": in_three_dimensions(lambda x: functional.adaptive_avg_pool3d(x, (1, 2, 2))),
    "max pooling in one dimension": in_one_dimension(lambda x: functional.max_pool1d(x, 2)),
    "mean pooling in one dimension": in_one_dimension(lambda x: functional.avg_pool1d(x, 2)),
    "adaptive pooling in one dimension": in_one_dimension(lambda x: functional.adaptive_avg_pool1d(x, 2)),
    "linear upsampling": in_one_dimension(lambda x: functional.interpolate(x, scale_factor=2, mode="linear")),
    "nearest upsampling in one dimension": in_one_dimension(lambda x: functional.interpolate(x, scale_factor=2)),
    "trilinear upsampling": in_three_dimensions(lambda x: functional.interpolate(x, (1, 12, 12), mode="trilinear")),
    "nearest upsampling in three dimensions": in_three_dimensions(lambda x: functional.interpolate(x, (1, 12, 12))),
    "antialiased resizing": lambda x: functional.interpolate(x, (5, 5), mode="bilinear", antialias=True),
    "antialiased bicubic resizing": lambda x: functional.interpolate(x, (5, 5), mode="bicubic", antialias=True),
    "grid sampling": gridded,
    "vector norm in space": lambda x: x / x.norm(dim=(2, 3), keepdim=True),
    "normalised in space": lambda x: functional.normalize(x, dim=3),
    "instance norm": functional.instance_norm,
    "fixed blur": through_blur,
    "sorted along the width": lambda x: x.sort(3).values,
    "largest along the width": lambda x: x.topk(3, dim=3).values,
    "taken by index in space": lambda x: x[:, :, torch.tensor([0, 2, 4])],
    "selected by index": lambda x: x.index_select(3, torch.tensor([1, 0])),
    "Fourier transform in space": lambda x: torch.fft.rfft2(x).abs(),
    "batches merged": lambda x: x.reshape(x.shape[0] * x.shape[1], 1, 8, 8).tanh().reshape(x.shape),
    "spread from one place": lambda x: x.mean((2, 3), keepdim=True).repeat(1, 1, 2, 3),
    "joined by zeros of its width": lambda x: x + x.new_zeros(1, x.shape[1], 1, 8),
    "ones of its width": lambda x: x * torch.ones_like(x).cumsum(3),
}


@pytest.mark.parametrize("form", ALONE)
def test_each_channel_goes_by_itself_through(form, x, groups_of, slim_equals_twin):
    net = between(ALONE[form])
    assert groups_of(net, x)["a"] == (4, "a.out b.in", None)
    assert slim_equals_twin(net, x).model.a.out_channels == 2


def half_times_half(x):
    half = x.shape[1] // 2
    return x[:, :half] * x[:, half:].sigmoid()


def shuffled(x):
    batch, width, *size = x.shape
    return x.view(batch, 2, width // 2, *size).transpose(1, 2).flatten(1, 2)


def selected_path(x):
    batch, width, *size = x.shape
    paths = x.view(batch, 2, width // 2, *size)
    return (paths * paths.mean((3, 4), keepdim=True).softmax(1)).sum(1)


# eight channels in tied parts: form -> (channels that can go alone, channels read)
TIED = {
    "halves by chunk": (lambda x: torch.mul(*x.chunk(2, 1)), 4, 4),
    "quarters by chunk": (lambda x: sum(x.chunk(4, 1)), 2, 2),
    "halves by slicing": (half_times_half, 4, 4),
    "halves by split": (lambda x: sum(x.split(x.shape[1] // 2, 1)), 4, 4),
    "every other one": (lambda x: x[:, ::2] + x[:, 1::2], 4, 4),
    "gated linear unit": (lambda x: functional.glu(x, 1), 4, 4),
    "groups by view": (shuffled, 4, 8),
    "groups by unflatten": (lambda x: x.unflatten(1, (2, x.shape[1] // 2)).sum(1), 4, 4),
    "neighbours by view": (lambda x: x.view(len(x), -1, 2, 8, 8).amax(2), 4, 4),
    "paths that are weighed": (selected_path, 4, 4),
    "channel shuffle": (lambda x: functional.channel_shuffle(x, 2), 4, 8),
    "pixel shuffle": (lambda x: functional.pixel_shuffle(x, 2), 2, 2),
    "pixel unshuffle": (lambda x: functional.pixel_unshuffle(x, 2), 8, 32),
    "unfolded": (lambda x: functional.unfold(x, 2, stride=2).unflatten(2, (4, 4)), 8, 32),
    "folded": (lambda x: functional.fold(x.flatten(2), (16, 16), 2, stride=2), 2, 2),
    "flipped halves": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 4, 8),
    "flipped channels": (lambda x: x.flip(1), 8, 8),
    "repeated channels": (lambda x: x.repeat(1, 2, 1, 1), 8, 16),
}


@pytest.mark.parametrize("form", TIED)
def test_parts_keep_the_same_channels_in(form, x, groups_of, slim_equals_twin):
    change, num_channels, num_read = TIED[form]
    net = between(change, 8, num_read)
    assert groups_of(net, x)["a"] == (num_channels, "a.out b.in", None)
    assert slim_equals_twin(net, x).model.a.out_channels == 4


def test_halves_of_a_chunk_lose_the_same_places(x):
    group = find_groups(between(lambda x: sum(x.chunk(2, 1)), 8, 4), (x,))[0]
    assert group.members[0].roots.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert group.unit == 2


# what holds a width, and which channels may go with it
ATTRIBUTES = {
    "split by one size": (lambda net, x: net.b(sum(net.a(x).split(net.width, 1))), "a.out b.in width.out"),
    "split by two sizes": (
        lambda net, x: net.b(torch.mul(*net.a(x).split((net.width, net.width), 1))),
        "a.out b.in width.out",
    ),
    "viewed": (
        lambda net, x: net.b(net.a(x).view(len(x), 2, net.width, 8, 8).sum(1)),
        "a.out b.in width.out",
    ),
    "checked": (lambda net, x: net.b(_checked(sum(net.a(x).chunk(2, 1)), net.width)), "a.out b.in width.out"),
}


def _checked(x, width):
    if x.shape[1] != width:
        raise ValueError("another width")
    return x


@pytest.mark.parametrize("use", ATTRIBUTES)
def test_attribute_that_is_used_as_a_size_follows(use, x, groups_of, slim_equals_twin):
    run, members = ATTRIBUTES[use]
    net = Net(run, a=conv(3, 8), b=conv(4, 2), width=4, other=4)
    assert groups_of(net, x)["a"] == (4, members, None)
    pruned = slim_equals_twin(net, x)
    assert (pruned.model.width, pruned.model.other, net.width) == (2, 4, 4)
    assert pruned.unchanged_widths == {"other": 4}
    assert pruned.spec.widths()["width"] == (4, 2)
    assert PruneSpec.from_json(pruned.spec.to_json()) == pruned.spec


def test_first_channels_by_an_attribute_need_no_equal_halves(x, groups_of, slim_equals_twin):
    net = Net(lambda net, x: net.b(net.a(x)[:, : net.first]), a=conv(3, 8), b=conv(5, 2), first=5)
    assert groups_of(net, x)["a"] == (8, "a.out b.in first.out", None)
    pruned = slim_equals_twin(net, x)
    assert pruned.model.first == pruned.model.b.in_channels


WHOLE = {
    "split at a fixed size": (lambda net, x: net.b(sum(net.a(x).split(4, 1))), PLACES),
    "viewed with fixed sizes": (lambda net, x: net.b(net.a(x).view(len(x), 2, 4, 8, 8).sum(1)), PLACES),
    "first half by a number": (lambda net, x: net.b(net.a(x)[:, :4]), PLACES),
    "flattened to a fixed size": (
        lambda net, x: net.b(net.a(x).view(-1, 8 * 64).view(len(x), 8, 8, 8).chunk(2, 1)[0]),
        PLACES,
    ),
    "scaled by its width": (lambda net, x: net.b(net.a(x).chunk(2, 1)[0] / math.sqrt(net.a(x).shape[1])), NUMBER),
    "divided by its width": (lambda net, x: net.b(sum(net.a(x).chunk(2, 1)) / net.a(x).shape[1]), NUMBER),
    "compared with a number": (
        lambda net, x: net.b(net.a(x).chunk(2, 1)[0]) if net.a(x).shape[1] == 8 else None,
        NUMBER,
    ),
    "a number used twice": (
        lambda net, x: net.b(functional.max_pool2d(sum(net.a(x).split(net.width, 1)), net.width)),
        NUMBER,
    ),
    "channels rolled": (
        lambda net, x: net.b(sum(net.a(x).roll(1, 1).chunk(2, 1))),
        "rolled by a fixed number of channels",
    ),
    "channels padded by reflection": (
        lambda net, x: net.b(functional.pad(net.a(x), (0, 0, 0, 0, 1, 1), mode="reflect")[:, 3:7]),
        None,
    ),
    "batches merged by fixed numbers": (
        lambda net, x: net.b(net.a(x).reshape(2 * 8, 1, 8, 8).tanh().reshape(2, 8, 8, 8).chunk(2, 1)[0]),
        PLACES,
    ),
}


@pytest.mark.parametrize("form", WHOLE)
def test_channels_stay_with_their_reason_where_they_are(form, x, groups_of):
    run, reason = WHOLE[form]
    found = groups_of(Net(run, a=conv(3, 8), b=conv(4, 2), width=4), x)["a"]
    assert found[2] == reason if reason else found[2]


def test_number_that_is_kept_from_another_run_is_a_fixed_one(x, groups_of):
    kept = {}

    def halves(x):
        return x.view(len(x), 2, kept.setdefault("half", x.shape[1] // 2), 8, 8).sum(1)

    net = between(halves, 8, 4)
    assert [groups_of(net, x)["a"][2] for _ in range(2)] == [None, PLACES]


@pytest.mark.parametrize("kind", [list, tuple])
def test_numbers_in_a_list_follow_each_by_itself(kind, x, groups_of, slim_equals_twin):
    def run(net, x):
        first, second, third = net.a(x).split(net.sizes, 1)
        return net.b(torch.cat([first, second], 1) * third)

    net = Net(run, a=conv(3, 8), b=conv(4, 2), sizes=kind([1, 3, 4]), others=kind([4, 4]))
    assert groups_of(net, x)["a"] == (4, "a.out b.in sizes.1.out sizes.2.out", PLACES)  # the first is a 1 for good
    net.sizes = kind([2, 2, 4])
    assert groups_of(net, x)["a"] == (4, "a.out b.in sizes.0.out sizes.1.out sizes.2.out", None)
    pruned = slim_equals_twin(net, x)
    assert sum(pruned.model.sizes[:2]) == pruned.model.sizes[2] == 2
    assert (type(pruned.model.sizes), pruned.model.others, net.sizes) == (kind, kind([4, 4]), kind([2, 2, 4]))
    again = narrowed_model(net, PruneSpec.from_json(pruned.spec.to_json()).widths())
    assert again.sizes == pruned.model.sizes


def test_list_that_two_modules_hold_is_cut_once(x, slim_equals_twin):
    sizes = [4, 4]
    inner = Net(lambda net, x: sum(x.split(net.sizes, 1)), sizes=sizes)
    net = Net(
        lambda net, x: net.b(net.inner(net.a(x)).view(-1, net.sizes[0], 8, 8)), a=conv(3, 8), b=conv(4, 2), inner=inner
    )
    net.sizes = sizes
    slim = slim_equals_twin(net, x).model
    assert slim.sizes is slim.inner.sizes
    assert slim.sizes == [2, 2]
