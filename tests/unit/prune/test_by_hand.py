"""Slim models beside ones worked out by hand: a masked dense model, or a narrower one that holds the kept numbers."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

from prune import find_groups, prune_model


def conv(num_in, num_out, kernel=1, **options):
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2, **options)


def randomised(net):
    generator = torch.Generator().manual_seed(3)
    for tensor in net.parameters():
        tensor.data.copy_(torch.rand(tensor.shape, generator=generator) - 0.4)
    return net.eval()


class Deformed(nn.Module):
    def __init__(self, parts=1, groups=1):
        super().__init__()
        self.first, self.where, self.last = conv(3, 8), conv(3, 18 * parts, 3), conv(8, 2)
        self.read = torchvision.ops.DeformConv2d(8, 8, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.last(self.read(self.first(x), self.where(x)))


def gone_from(spec, layer, side):
    cut = spec.layers[layer]
    kept, num = (cut.kept_in, cut.num_in) if side == "in" else (cut.kept_out, cut.num_out)
    return sorted(set(range(num)) - set(kept))


@pytest.mark.parametrize("parts", [1, 2])
def test_deformable_convolution_does_not_read_what_was_cut(parts, x):
    net = randomised(Deformed(parts))
    pruned = prune_model(net, (x,), 0.5)
    twin = copy.deepcopy(net)
    twin.read.weight.data[:, gone_from(pruned.spec, "first", "out")] = 0
    twin.last.weight.data[:, gone_from(pruned.spec, "read", "out")] = 0
    assert pruned.model.read.weight.shape == (4, 4, 3, 3)
    torch.testing.assert_close(pruned.model(x), twin(x))
    assert gone_from(pruned.spec, "read", "in") == gone_from(pruned.spec, "first", "out")


# eight channels in four groups of two; two parts with places of their own hold two groups each
@pytest.mark.parametrize(("parts", "num_channels"), [(1, 4), (2, 2)])
def test_grouped_deformable_convolution_loses_whole_groups(parts, num_channels, x):
    net = randomised(Deformed(parts, groups=4))
    assert find_groups(net, (x,))[0].num_channels == num_channels
    pruned = prune_model(net, (x,), 0.5)
    twin = copy.deepcopy(net)
    twin.last.weight.data[:, gone_from(pruned.spec, "read", "out")] = 0
    assert (pruned.model.read.groups, pruned.model.read.weight.shape) == (2, (4, 2, 3, 3))
    torch.testing.assert_close(pruned.model(x), twin(x))


class Tokens(nn.Module):
    """Runs a layer of tokens on the pixels of a map."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))


class Itself(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x)[0]


def test_attention_of_torch_does_not_read_the_heads_that_were_cut(x):
    net = randomised(
        nn.Sequential(conv(3, 8), Tokens(Itself(nn.MultiheadAttention(8, 4, batch_first=True))), conv(8, 2))
    )
    pruned = prune_model(net, (x,), 0.5)
    gone = gone_from(pruned.spec, "0", "out")
    assert len(gone) == 4
    assert all(index ^ 1 in gone for index in gone)  # heads of two
    twin = copy.deepcopy(net)
    attention = twin[1].layer.attention
    for weight in (attention.in_proj_weight, attention.out_proj.weight):
        weight.data[:, gone] = 0
    # out_proj writes a width of its own
    twin[2].weight.data[:, gone_from(pruned.spec, "2", "in")] = 0
    torch.testing.assert_close(pruned.model(x), twin(x))
    assert pruned.model[1].layer.attention.num_heads == 2


class Scaled(nn.Module):
    """Four heads of two channels; torch scales by the two, which the forward pass leaves to torch too."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj, self.num_heads = nn.Linear(8, 24), nn.Linear(8, 8), 4

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_heads_go_as_a_whole_where_attention_is_scaled_by_their_width(x):
    net = randomised(nn.Sequential(conv(3, 8), Tokens(Scaled()), conv(8, 2)))
    assert [group.num_channels for group in find_groups(net, (x,))] == [8, 4, 8, 2]
    pruned = prune_model(net, (x,), 0.0, ratios={"1.layer.qkv": 0.5})
    twin = copy.deepcopy(net)
    twin[1].layer.proj.weight.data[:, gone_from(pruned.spec, "1.layer.proj", "in")] = 0
    assert (pruned.model[1].layer.num_heads, pruned.model[1].layer.qkv.out_features) == (2, 12)
    torch.testing.assert_close(pruned.model(x), twin(x))


def test_encoder_layer_does_not_read_the_hidden_channels_that_were_cut(x):
    net = randomised(
        nn.Sequential(conv(3, 4), Tokens(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)), conv(4, 2))
    )
    pruned = prune_model(net, (x,), 0.5)
    twin = copy.deepcopy(net)
    twin[1].layer.linear2.weight.data[:, gone_from(pruned.spec, "1.layer.linear1", "out")] = 0
    assert pruned.model[1].layer.linear2.in_features == 3
    torch.testing.assert_close(pruned.model(x), twin(x))


class Standardised(nn.Conv2d):
    """Its weights have mean 0 over what a filter reads and a gain of its own, as in timm's networks without norms."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x):
        flat, gain = self.weight.reshape(1, self.out_channels, -1), self.gain.view(-1)
        weight = functional.batch_norm(flat, None, None, weight=gain, training=True).reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class LayerNorm2d(nn.Module):
    """Of channels before space, by hand."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        return self.weight[:, None, None] * (x - mean) / ((x - mean).pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


class ResponseNorm(nn.Module):
    """As in ConvNeXt V2."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x):
        norms = x.norm(p=2, dim=(2, 3), keepdim=True)
        return x + self.weight * x * norms / (norms.mean(1, keepdim=True) + 1e-6)


NORMS = {
    "LayerNorm": lambda width: Tokens(nn.LayerNorm(width)),
    "LayerNorm without weights": lambda width: Tokens(nn.LayerNorm(width, elementwise_affine=False)),
    "LayerNorm by hand": LayerNorm2d,
    "RMSNorm": lambda width: Tokens(nn.RMSNorm(width)),
    "RMSNorm without weights": lambda width: Tokens(nn.RMSNorm(width, elementwise_affine=False)),
    "GroupNorm": lambda width: nn.GroupNorm(2, width),
    "GroupNorm without weights": lambda width: nn.GroupNorm(2, width, affine=False),
    "response norm": ResponseNorm,
    "standardised weights": lambda width: Standardised(width, 8, 3, padding=1),
    "encoder layer": lambda width: Tokens(nn.TransformerEncoderLayer(width, width // 2, 6, batch_first=True)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norm_of_fewer_channels_equals_a_narrower_module(kind, x):
    dense, narrow = (
        nn.Sequential(conv(3, n), NORMS[kind](n), conv(8 if kind == "standardised weights" else n, 2)) for n in (8, 4)
    )
    randomised(dense)
    assert find_groups(dense, (x,))[0].obstacle or kind.startswith("GroupNorm")
    pruned = prune_model(dense, (x,), 0.0, ratios={"0": 0.5}, norm_widths=True)
    kept, numbers = torch.tensor(pruned.spec.layers["0"].kept_out), dense.state_dict()
    for name, tensor in narrow.state_dict().items():
        for dim, size in enumerate(tensor.shape):
            if size < (old := numbers[name].shape[dim]):  # three times the width: queries, keys and values
                numbers[name] = numbers[name].index_select(dim, torch.cat([kept + at for at in range(0, old, 8)]))
    narrow.eval().load_state_dict(numbers)
    torch.testing.assert_close(pruned.model(x), narrow(x))


def standardised_in_groups(groups=4):
    return randomised(nn.Sequential(conv(3, 8), Standardised(8, 8, 3, padding=1, groups=groups), conv(8, 2)))


@pytest.mark.parametrize(("groups", "num_channels"), [(4, 4), (8, 8)])
def test_groups_of_standardised_weights_go_as_they_are(groups, num_channels, x):
    net = standardised_in_groups(groups)
    assert find_groups(net, (x,))[0].num_channels == num_channels
    pruned = prune_model(net, (x,), 0.5)
    twin = copy.deepcopy(net)
    twin[2].weight.data[:, gone_from(pruned.spec, "1", "out")] = 0
    assert (pruned.model[1].groups, pruned.model[1].gain.shape) == (groups // 2, (4, 1, 1, 1))
    torch.testing.assert_close(pruned.model(x), twin(x))


def test_standardised_weights_are_not_cut_within_groups(x):
    reason = "normalised together with other channels by what computes a weight, see norm_widths"
    found = {group.name: group.obstacle for group in find_groups(standardised_in_groups(), (x,), within_groups=True)}
    assert (found["0"], found["1"]) == (reason, None)
    accepted = find_groups(standardised_in_groups(), (x,), within_groups=True, norm_widths=True)
    assert accepted[0].obstacle is None
