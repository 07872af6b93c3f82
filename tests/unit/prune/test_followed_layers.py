"""Layers of many kinds: the groups, worked by hand, and the slim model beside a masked twin."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from prune import cost_of, find_groups, narrowed_model, prune_model

OUTPUT = "its channels are an output of the model"


def conv(num_in, num_out, kernel=1, **options):
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2, **options)


def between(layer, num_written=4, num_read=4):
    return nn.Sequential(conv(3, num_written), layer, conv(num_read, 2))


class Frozen(nn.Module):
    """A batch normalisation that never trains, and knows its width."""

    def __init__(self, num_features):
        super().__init__()
        self.num_features = num_features
        self.scale = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.register_buffer("shift", torch.zeros(num_features))

    def forward(self, x):
        if x.shape[1] != self.num_features:
            raise ValueError("another width")
        return x * self.scale + self.shift[:, None, None]


class Standardised(nn.Conv2d):
    """Its weights have mean 0 and deviation 1 over what a filter reads, as in timm."""

    def forward(self, x):
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return self._conv_forward(x, weight, self.bias)


class StandardisedByHand(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class Deformed(nn.Module):
    def __init__(self):
        super().__init__()
        self.where, self.read = conv(4, 18, 3), torchvision.ops.DeformConv2d(4, 6, 3, padding=1)

    def forward(self, x):
        return self.read(x, self.where(x))


class Blurred(nn.Module):
    """A filter for every channel, in a buffer."""

    def __init__(self, num_channels):
        super().__init__()
        self.num_channels = num_channels
        self.register_buffer("kernel", torch.tensor([1.0, 2.0, 1.0]).repeat(num_channels, 1, 1, 1))

    def forward(self, x):
        return functional.conv2d(x, self.kernel, padding=(0, 1), groups=self.num_channels)


def normed(make):
    layer = conv(4, 4)
    make(layer)
    return layer


# layers between two convolutions of four channels -> the groups of the first and of the layer
LAYERS = {
    "frozen batch norm": (
        lambda: torchvision.ops.FrozenBatchNorm2d(4),
        {"0": (4, "0.out 1.weight.out 1.bias.out 1.running_mean.out 1.running_var.out 2.in", None)},
    ),
    "own frozen batch norm": (lambda: Frozen(4), {"0": (4, "0.out 1.scale.out 1.shift.out 2.in", None)}),
    "instance norm": (
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        {"0": (4, "0.out 1.weight.out 1.bias.out 1.running_mean.out 1.running_var.out 2.in", None)},
    ),
    "group norm": (
        lambda: nn.GroupNorm(2, 4),
        {"0": (2, "0.out 1.weight.out 1.bias.out 2.in 1.num_groups.out", None)},
    ),
    "group norm of single channels": (
        lambda: nn.GroupNorm(4, 4),
        {"0": (4, "0.out 1.weight.out 1.bias.out 2.in 1.num_groups.out", None)},
    ),
    "blur": (lambda: Blurred(4), {"0": (4, "0.out 1.kernel.out 2.in", None)}),
    "grouped transposed convolution": (
        lambda: nn.ConvTranspose2d(4, 4, 2, 2, groups=2),
        {"0": (2, "0.out 1.in 1.out 2.in", None)},
    ),
    "weights standardised over inputs": (
        lambda: Standardised(4, 4, 1),
        {
            "0": (4, "0.out 1.in", "normalised together with other channels by batch_norm, see norm_widths"),
            "1": (4, "1.out 2.in", None),
        },
    ),
    "weights standardised by hand": (
        lambda: StandardisedByHand(4, 4, 1),
        {
            "0": (4, "0.out 1.in", "normalised together with other channels by mean, see norm_widths"),
            "1": (4, "1.out 2.in", None),
        },
    ),
    "weight norm": (
        lambda: normed(parametrizations.weight_norm),
        {
            "0": (
                4,
                "0.out 1.in",
                "normalised together with other channels by _weight_norm_interface, see norm_widths",
            ),
            "1": (4, "1.out 1.parametrizations.weight.original0.out 2.in", None),
        },
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layer_goes_with_its_channels(kind, x, groups_of, slim_equals_twin):
    build, expected = LAYERS[kind]
    net = between(build())
    assert groups_of(net, x) == {**expected, "2": (2, "2.out", OUTPUT)}
    assert slim_equals_twin(net, x).model[2].in_channels == 2


@pytest.mark.parametrize(
    ("layer", "widths"),
    [
        (Frozen(4), {"num_features": 2}),
        (nn.InstanceNorm2d(4, affine=True), {"num_features": 2}),
        (nn.GroupNorm(2, 4), {"num_groups": 1, "num_channels": 2}),
        (nn.GroupNorm(4, 4), {"num_groups": 2, "num_channels": 2}),
        (nn.PReLU(4), {"num_parameters": 2}),
        (nn.ConvTranspose2d(4, 4, 2, 2, groups=2), {"groups": 1, "in_channels": 2, "out_channels": 2}),
    ],
)
def test_attributes_of_a_cut_layer_hold_its_new_width(layer, widths, x):
    net = between(layer)
    pruned = prune_model(net, (x,), 0.5)
    again = narrowed_model(net, pruned.spec.widths())
    again.load_state_dict(pruned.model.state_dict())
    for slim in (pruned.model, again):
        assert {name: getattr(slim[1], name) for name in widths} == widths
    assert torch.equal(again(x), pruned.model(x))


def test_norm_of_a_single_group_stays(x, groups_of):
    reason = "normalised together with other channels by group_norm, see norm_widths"
    assert groups_of(between(nn.GroupNorm(1, 4)), x)["0"][2] == reason


def test_spectral_norm_stays(x, groups_of):
    found = groups_of(between(normed(parametrizations.spectral_norm)), x)
    assert found["0"][2] == found["1"][2] == "combined with other channels by mv"


def test_deformable_convolution_reads_and_writes_channels(x, groups_of, slim_equals_twin):
    net = between(Deformed(), num_read=6)
    assert groups_of(net, x) == {
        "0": (4, "0.out 1.where.in 1.read.in", None),
        "1.where": (18, "1.where.out", "says where deform_conv2d reads"),
        "1.read": (6, "1.read.out 2.in", None),
        "2": (2, "2.out", OUTPUT),
    }
    slim = prune_model(net, (x,), 0.5).model
    assert (slim[1].read.in_channels, slim[1].read.out_channels) == (2, 3)


class Attention(nn.Module):
    """Two heads of three channels; `form` computes them."""

    def __init__(self, form, **numbers):
        super().__init__()
        self.qkv, self.proj, self.form = nn.Linear(4, 18), nn.Linear(6, 4), form
        for name, number in numbers.items():
            setattr(self, name, number)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.proj(self.form(self, tokens)).transpose(1, 2).unflatten(2, (8, 8))


def whole_heads(net, x):
    batch, num_tokens, _ = x.shape
    q, k, v = net.qkv(x).reshape(batch, num_tokens, 3, net.num_heads, net.head_dim).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, num_tokens, -1)


def with_bias(net, x):
    batch, num_tokens, _ = x.shape
    q, k, v = net.qkv(x).view(batch, num_tokens, 3, net.num_heads, net.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.mT * 0.5 + net.bias_table[torch.zeros(num_tokens, num_tokens).long()].permute(2, 0, 1)).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def within_heads(net, x):
    q, k, v = net.qkv(x).unflatten(2, (3, net.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return ((q @ k.mT * 0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def within_heads_scaled(net, x):
    q, k, v = net.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_attention_loses_whole_heads(x, groups_of, slim_equals_twin):
    net = between(Attention(whole_heads, num_heads=2, head_dim=3))
    assert groups_of(net, x)["1.qkv"] == (2, "1.qkv.out 1.proj.in 1.num_heads.out", None)
    slim = slim_equals_twin(net, x).model[1]
    assert (slim.num_heads, slim.head_dim, slim.qkv.out_features, slim.proj.in_features) == (1, 3, 9, 3)


def test_table_of_biases_goes_with_its_heads(x, groups_of, slim_equals_twin):
    table = nn.Parameter(torch.rand(5, 2))
    net = between(Attention(with_bias, num_heads=2, head_dim=3, bias_table=table))
    assert groups_of(net, x)["1.qkv"] == (2, "1.bias_table.in 1.qkv.out 1.proj.in 1.num_heads.out", None)
    slim = slim_equals_twin(net, x).model[1]
    assert (slim.num_heads, slim.bias_table.shape) == (1, (5, 1))


def test_attention_with_its_own_scale_may_lose_channels_of_every_head(x, groups_of, slim_equals_twin):
    net = between(Attention(within_heads, num_heads=2))
    assert groups_of(net, x)["1.qkv"] == (3, "1.qkv.out 1.proj.in", None)
    assert slim_equals_twin(net, x, 0.4, is_zero=True).model[1].qkv.out_features == 6


def test_attention_that_is_scaled_by_the_width_of_a_head_keeps_it(x, groups_of):
    found = groups_of(between(Attention(within_heads_scaled)), x)["1.qkv"]
    assert found == (3, "1.qkv.out 1.proj.in", "attention is scaled by its width")


class NonLocal(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta, self.phi, self.g, self.out = conv(4, 3), conv(4, 3), conv(4, 3), conv(3, 4)
        self.inter_channels = 3

    def forward(self, x):
        theta, phi, g = (layer(x).view(len(x), self.inter_channels, -1) for layer in (self.theta, self.phi, self.g))
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        return x + self.out((weights @ g.transpose(1, 2)).transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


def test_channels_over_which_two_activations_are_multiplied_go_together(x, groups_of, slim_equals_twin):
    net = between(NonLocal())
    members = "1.theta.out 1.phi.out 1.g.out 1.out.in 1.inter_channels.out"
    assert groups_of(net, x)["1.theta"] == (3, members, None)
    assert slim_equals_twin(net, x, 0.4, is_zero=True).model[1].inter_channels == 1


class Tokens(nn.Module):
    """Runs a layer of tokens on the pixels of a map."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8))


def encoder_layer():
    return nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)


def test_encoder_layer_is_seen_through_the_operation_that_fuses_it(x, groups_of, slim_equals_twin):
    net = between(Tokens(encoder_layer()))
    found = groups_of(net, x)
    assert found["1.layer.linear1"] == (6, "1.layer.linear1.out 1.layer.linear2.in", None)
    assert found["0"][2] == "normalised together with other channels by layer_norm, see norm_widths"
    assert slim_equals_twin(net, x).model[1].layer.linear1.out_features == 3


def test_heads_of_torch_s_attention_go_with_what_it_reads(x):
    class Itself(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    group = find_groups(between(Tokens(Itself())), (x,))[0]
    assert (group.name, group.num_channels, group.unit, group.obstacle) == ("0", 2, 2, None)
    attention = prune_model(between(Tokens(Itself())), (x,), 0.5).model[1].layer.attention
    assert (attention.embed_dim, attention.num_heads, attention.in_proj_weight.shape) == (2, 1, (6, 2))


NORMS = {
    "layer norm": (lambda: Tokens(nn.LayerNorm(4)), 4, {"layer.normalized_shape": (2,)}),
    "group norm": (lambda: nn.GroupNorm(2, 4), 2, {"num_groups": 2, "num_channels": 2}),
    "standardised weights": (lambda: Standardised(4, 4, 1), 4, {"in_channels": 2, "out_channels": 2}),
    "weight norm": (lambda: normed(parametrizations.weight_norm), 4, {"in_channels": 2, "out_channels": 2}),
    "encoder layer": (
        lambda: Tokens(encoder_layer()),
        2,
        {"layer.self_attn.num_heads": 1, "layer.norm1.normalized_shape": (2,)},
    ),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_get_other_widths_where_the_recipe_accepts_that(kind, x):
    build, num_channels, widths = NORMS[kind]
    net = between(build())
    assert prune_model(net, (x,), 0.5, skip=["1*"]).model[0].out_channels in (2, 4)
    assert find_groups(net, (x,), norm_widths=True)[0].num_channels == num_channels
    slim = prune_model(net, (x,), 0.5, norm_widths=True).model
    assert slim[0].out_channels == 2
    for path, width in widths.items():
        layer, _, name = path.rpartition(".")
        assert getattr(slim[1].get_submodule(layer), name) == width
    slim.train()(x).sum().backward()
    assert all(parameter.grad is not None for parameter in slim.parameters())


def test_positions_go_with_the_channels_they_are_added_to(x, groups_of, slim_equals_twin):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.rand(1, 64, 4))

        def forward(self, x):
            return x + self.positions

    net = between(Tokens(Positions()))
    assert groups_of(net, x)["0"] == (4, "0.out 1.layer.positions.in 2.in", None)
    assert slim_equals_twin(net, x).model[1].layer.positions.shape == (1, 64, 2)


def grouped():
    return nn.Sequential(conv(3, 8), conv(8, 12, 3, groups=2), conv(12, 2))


def test_groups_of_a_convolution_lose_the_same_channels_if_asked(x):
    first, second, _ = find_groups(grouped(), (x,), within_groups=True)
    assert (first.num_channels, first.unit, second.num_channels, second.unit) == (4, 2, 6, 2)
    # two groups of four inputs and six outputs
    assert first.members[1].roots.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert second.members[0].roots.tolist() == [0, 1, 2, 3, 4, 5] * 2


def test_slim_model_equals_the_masked_one_within_groups(x):
    net = grouped().eval()
    pruned = prune_model(net, (x,), 0.5, within_groups=True)
    layer, cut = pruned.model[1], pruned.spec.layers["1"]
    assert (layer.in_channels, layer.out_channels, layer.groups, layer.weight.shape) == (4, 6, 2, (6, 2, 3, 3))
    twin = copy.deepcopy(net)
    for row in range(12):
        for column in range(4):  # of the row's group
            if row // 6 * 4 + column not in cut.kept_in:
                twin[1].weight.data[row, column] = 0
    twin[2].weight.data[:, [i for i in range(12) if i not in cut.kept_out]] = 0
    assert torch.allclose(pruned.model(x), twin(x), atol=1e-6)
    again = narrowed_model(net, pruned.spec.widths())
    again.load_state_dict(pruned.model.state_dict())
    assert torch.equal(again(x), pruned.model(x))


def test_limit_within_groups_is_met(x):
    # dense 8 x 8 pixels: 64 (3 * 8 + 12 * 4 * 9 + 12 * 2) = 30,720 MACs
    net = grouped()
    slim = prune_model(net, (x,), max_macs=15_000, within_groups=True).model
    assert 10_000 < cost_of(slim, (x[:1],)).macs <= 15_000


def test_depthwise_convolution_is_cut_by_channels_all_the_same(x, groups_of):
    net = nn.Sequential(conv(3, 4), conv(4, 4, 3, groups=4), conv(4, 2))
    assert groups_of(net, x, within_groups=True) == groups_of(net, x)
