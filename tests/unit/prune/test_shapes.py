"""Forward passes without numbers, and on smaller images: what they cannot show is found all the same."""

from functools import lru_cache

import pytest
import torch
from torch import nn

from prune import prune_model
from prune.shapes import shape_alone

ATEN = torch.ops.aten


class Two(nn.Module):
    """A convolution of 32 channels and one that reads them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 8, 1)
        self.width = 32


class BranchOnTheWidthOfLargeImages(Two):
    def forward(self, x):
        features = self.a(x).relu()
        if features.shape[1] == 16 and x.shape[-1] > 150:
            features = 2 * features
        return self.b(features)


class NumberOfLargeImages(Two):
    def forward(self, x):
        features = self.a(x).relu()
        return self.b(features * (2 if features.shape.numel() > 20 * 160 * 160 else 1))


class AttributeOnLargeImages(Two):
    def forward(self, x):
        out = self.b(self.a(x).view(len(x), self.width, *x.shape[2:]))
        return out * int(self.width) if x.shape[-1] > 150 else out * 32


@pytest.mark.parametrize("net", [BranchOnTheWidthOfLargeImages, NumberOfLargeImages, AttributeOnLargeImages])
def test_what_differs_on_large_images_alone_is_refused(net):
    with pytest.raises(ValueError, match="its slim copy computes something else"):
        prune_model(net(), (torch.randn(1, 3, 160, 160),), 0.5)


class Scaled(Two):
    """Wrong after a cut by a little: a plain number depends on the width."""

    def __init__(self, finish):
        super().__init__()
        self.finish = finish

    def forward(self, x):
        features = self.a(x).relu()
        return self.finish(self.b(features * (int(features.shape[1]) / 32)).mean((2, 3)))


def masked(logits):
    return logits.masked_fill(torch.arange(8) > 5, torch.finfo(logits.dtype).min)


def with_a_bound(logits):
    return torch.cat([logits, torch.full((len(logits), 1), -1e9)], 1)


@pytest.mark.parametrize("finish", [masked, with_a_bound])
def test_a_huge_constant_hides_no_difference(finish, x):
    with pytest.raises(ValueError, match="its slim copy computes something else"):
        prune_model(Scaled(finish), (x,), 0.5)


@pytest.mark.parametrize("finish", [lambda logits: logits > 20, lambda logits: logits.clamp(max=-50), torch.argmax])
def test_outputs_that_are_equal_by_chance_prove_nothing(finish):
    net = Scaled(finish)
    with pytest.raises(ValueError, match=r"its slim copy computes something else"):
        prune_model(net, (255 * torch.rand(2, 3, 8, 8),), 0.5)


@lru_cache
def ramp(width, device=None):
    return torch.linspace(0, 1, width, device=device)


KEPT = {}


def kept_ramp(x):
    width = x.shape[-1]
    if width not in KEPT:
        KEPT[width] = x.new_ones(width).cumsum(0) / width
    return KEPT[width]


@lru_cache
def of_the_batch(num, width):
    return torch.linspace(0, 1, width).expand(num, 1, width, width)


RAMPS = {
    "made on the default device": lambda x: ramp(x.shape[-1]),
    "made on the input's device": lambda x: ramp(x.shape[-1], x.device),
    "made like the input": kept_ramp,
    "made for every batch size": lambda x: of_the_batch(len(x), x.shape[-1]),
}


@pytest.mark.parametrize("side", [16, 128])
@pytest.mark.parametrize("kind", RAMPS)
def test_what_functions_keep_can_be_used_after_pruning(kind, side):
    class Added(Two):
        def forward(self, x):
            return self.b(self.a(x).relu()) + RAMPS[kind](x)

    net, x = Added().eval(), torch.randn(2, 3, side, side)
    slim = prune_model(net, (x,), 0.5).model
    assert slim.a.out_channels == 16
    expected = torch.arange(1, side + 1) / side if kind == "made like the input" else torch.linspace(0, 1, side)
    both = torch.cat([x, x])
    assert torch.allclose((net(both) - net.b(net.a(both).relu()))[0, 0, 0], expected, atol=1e-5)
    assert torch.allclose((slim(both) - slim.b(slim.a(both).relu()))[0, 0, 0], expected, atol=1e-5)


def test_a_table_that_activations_are_written_into_is_followed(x):
    class Canvas(Two):
        def forward(self, x):
            canvas = torch.zeros(len(x), 3, 2 * x.shape[2], x.shape[3])
            canvas[:, :, : x.shape[2]] = x
            return self.b(self.a(canvas).relu())

    assert prune_model(Canvas(), (x,), 0.5).model.a.out_channels == 16


class Renormalised(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("drift", torch.zeros(width))

    def forward(self, x):
        if self.training:
            self.drift.lerp_(x.detach().mean((0, 2, 3)), 0.1)
            x = x - self.drift.view(1, -1, 1, 1)
        return super().forward(x)


class OneOfTwo(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("plain", torch.ones(width, 1, 1))
        self.register_buffer("noisy", torch.rand(width, 1, 1))

    def forward(self, x):
        return x * (self.noisy if self.training else self.plain)


class Softmax(nn.Module):
    def forward(self, x):
        return x.softmax(1 if self.training else 2)


class Parts(nn.Module):
    def forward(self, x):
        fixed = 8 if self.training else x.shape[1] // 4
        return x.view(len(x), 4, fixed, *x.shape[2:]).flip(1).view(x.shape)


def around(part):
    return nn.Sequential(nn.Conv2d(3, 32, 1), part, nn.ReLU(), nn.Conv2d(32, 8, 1))


@pytest.mark.parametrize(("part", "num_kept"), [(Renormalised(32), 16), (OneOfTwo(32), 16), (Softmax(), 32)])
def test_a_part_that_trains_otherwise_is_followed_in_training(part, num_kept, x):
    slim = prune_model(around(part), (x,), 0.5).model
    assert slim[0].out_channels == num_kept
    assert slim.train()(x).shape == (2, 8, 8, 8)


def test_a_part_that_cannot_train_after_a_cut_is_refused(x):
    with pytest.raises(ValueError, match="its slim copy does not run in training mode"):
        prune_model(around(Parts()), (x,), 0.5)


class Attending(nn.Module):
    def __init__(self, is_shown):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 32), nn.Linear(32, 5)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.is_shown = is_shown

    def forward(self, x):
        tokens = self.embed(x)
        found, weights = self.attention(tokens, tokens, tokens)
        return (self.head(found), weights) if self.is_shown else self.head(found)


@pytest.mark.parametrize(("is_shown", "num_kept"), [(True, 32), (False, 16)])
def test_heads_stay_where_their_weights_are_an_output(is_shown, num_kept):
    slim = prune_model(Attending(is_shown), (torch.randn(2, 7, 3),), 0.5).model
    assert slim.embed.out_features == num_kept


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.widths = [16, 16]
        self.a, self.b, self.c, self.d = (nn.Conv2d(*widths, 1) for widths in ((3, 16), (3, 16), (16, 8), (16, 8)))

    def forward(self, x):
        joined = torch.cat([self.a(x), self.b(x)], 1)
        first, second = joined.split_with_sizes(dim=1, split_sizes=self.widths)
        out = self.c(first) + self.d(second)
        return out.flatten(1).view_as(other=out)


def test_sizes_by_name_are_followed_as_those_by_place(x):
    slim = prune_model(ByName(), (x,), 0.5).model
    assert (slim.a.out_channels, slim.b.out_channels, slim.widths) == (8, 8, [8, 8])


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


IMAGES = empty(2, 3, 4, 5)
CALLS = {
    "largest": (ATEN.max.default, (IMAGES,)),
    "smallest along a dimension": (ATEN.min.dim, (IMAGES, 1)),
    "larger of two": (ATEN.max.other, (IMAGES, empty(3, 1, 1))),
    "mean along two": (ATEN.mean.dim, (IMAGES, [-1, 1])),
    "mean along two, kept": (ATEN.mean.dim, (IMAGES, [-1, 1], True)),
    "mean of all": (ATEN.mean.dim, (IMAGES, [])),
    "mean of a number": (ATEN.mean.dim, (empty(), [0])),
    "joined from the last": (ATEN.cat.default, ([IMAGES, empty(2, 3, 4, 1)], -1)),
    "joined types": (ATEN.cat.default, ([empty(2), empty(3, dtype=torch.float64)],)),
    "rolled": (ATEN.roll.default, (IMAGES, [1], [2])),
    "softmax": (ATEN._safe_softmax.default, (IMAGES, -1)),
    "linear": (ATEN.addmm.default, (empty(5), empty(2, 3), empty(3, 5))),
    "layer norm": (ATEN.native_layer_norm.default, (IMAGES, [4, 5], empty(4, 5), None, 1e-5)),
    "group norm": (ATEN.native_group_norm.default, (IMAGES, empty(3), empty(3), 2, 3, 20, 3, 1e-5)),
    "convolution": (ATEN.convolution.default, (IMAGES, empty(6, 3, 3, 3), None, [2, 2], [1], [1], False, [0], 1)),
    "transposed": (ATEN.convolution.default, (IMAGES, empty(3, 6, 2, 2), None, [2], [0], [1], True, [1], 1)),
    "filled": (ATEN.masked_fill.Tensor, (IMAGES, empty(3, 1, 1, dtype=torch.bool), empty())),
    "whole numbers": (ATEN.div.Tensor, (empty(3, dtype=torch.int64), empty(2, 1, dtype=torch.int64))),
}


@pytest.mark.parametrize("kind", CALLS)
def test_shapes_and_types_are_those_of_torch(kind):
    operation, args = CALLS[kind]
    tensors = [t for value in args for t in (value if isinstance(value, list) else [value]) if torch.is_tensor(t)]
    found, expected = shape_alone(operation, args, {}, tensors), operation(*args)
    if isinstance(expected, tuple):
        found, expected = found and found[0], expected[0]
    assert found is None or (found.shape, found.dtype) == (expected.shape, expected.dtype)


WRONG = {
    "linear": (ATEN.addmm.default, (empty(5), empty(2, 4), empty(3, 5))),
    "joined": (ATEN.cat.default, ([empty(2, 3), empty(3, 2)],)),
    "joined numbers": (ATEN.cat.default, ([empty(), empty()],)),
    "batch norm": (ATEN.native_batch_norm.default, (IMAGES, empty(4), empty(4), None, None, True, 0.1, 1e-5)),
    "layer norm": (ATEN.native_layer_norm.default, (IMAGES, [6], empty(6), empty(6), 1e-5)),
    "mean of whole numbers": (ATEN.mean.dim, (empty(3, dtype=torch.int64), [0])),
    "convolution": (ATEN.convolution.default, (IMAGES, empty(6, 4, 3, 3), None, [1], [1], [1], False, [0], 1)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_torch_refuses_is_left_to_torch(kind):
    operation, args = WRONG[kind]
    tensors = [t for value in args for t in (value if isinstance(value, list) else [value]) if torch.is_tensor(t)]
    assert shape_alone(operation, args, {}, tensors) is None
