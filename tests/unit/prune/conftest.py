"""Tiny nets with tricky couplings; each declares, by hand, the groups that must be found in it."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from prune import find_groups, prune_model

OUTPUT = "its channels are an output of the model"
MAY_FEED_ASIDE = "may feed aside, which no forward pass reached: name it in `unused` if none ever does"
SIDE = 8
"""Side of the square input image; `x` below has this size."""


class Net(nn.Module):
    """Layers by name and a function that runs them."""

    def __init__(self, run, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x):
        return self.run(self, x)


@dataclass(frozen=True)
class TinyNet:
    build: Callable[[], nn.Module]
    groups: dict[str, tuple[int, str, str | None]]
    """Name -> (channels, the layers' sides that are cut together, obstacle)."""


def conv(num_in, num_out, kernel=1, **options):
    return nn.Conv2d(num_in, num_out, kernel, padding=kernel // 2, **options)


def fpn():
    def run(net, x):
        fine = net.stage1(x)
        coarse = net.stage2(torch.relu(fine))
        top = net.lateral2(coarse)
        down = net.lateral1(fine) + interpolate(top, scale_factor=2.0, mode="nearest")
        return net.out1(down), net.out2(top)

    return Net(
        run,
        stage1=conv(3, 4, 3),
        stage2=conv(4, 6, 3, stride=2),
        lateral1=conv(4, 5),
        lateral2=conv(6, 5),
        out1=conv(5, 5, 3),
        out2=conv(5, 5, 3),
    )


def squeeze_excite():
    def run(net, x):
        features = net.a(x)
        gate = torch.sigmoid(net.up(net.down(features.mean((2, 3), keepdim=True))))
        return net.b(features * gate)

    return Net(run, a=conv(3, 4), down=conv(4, 2), up=conv(2, 4), b=conv(4, 2))


def tied_weights():
    net = nn.Sequential(OrderedDict(a=conv(3, 4), b=conv(4, 4), c=conv(4, 4), d=conv(4, 2)))
    net.c.weight = net.b.weight
    return net


def frozen():
    net = NETS["residual"].build()
    return net.requires_grad_(False)


NETS = {
    "plain": TinyNet(
        lambda: nn.Sequential(conv(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 2)),
        {"0": (4, "0.out 1.out 3.in", None), "3": (2, "3.out", OUTPUT)},
    ),
    "residual": TinyNet(
        lambda: Net(
            lambda net, x: net.d(net.a(x) + net.c(torch.relu(net.b(net.a(x))))),
            a=conv(3, 4),
            b=conv(4, 6),
            c=conv(6, 4),
            d=conv(4, 2),
        ),
        {"a": (4, "a.out b.in c.out d.in", None), "b": (6, "b.out c.in", None), "d": (2, "d.out", OUTPUT)},
    ),
    "frozen": TinyNet(
        frozen,
        {"a": (4, "a.out b.in c.out d.in", None), "b": (6, "b.out c.in", None), "d": (2, "d.out", OUTPUT)},
    ),
    "concat": TinyNet(
        lambda: Net(
            lambda net, x: net.c(torch.cat([net.a(x), net.b(x)], 1)), a=conv(3, 4), b=conv(3, 6), c=conv(10, 2)
        ),
        {"a": (4, "a.out c.in", None), "b": (6, "b.out c.in", None), "c": (2, "c.out", OUTPUT)},
    ),
    "concat_added": TinyNet(
        lambda: Net(
            lambda net, x: net.d(torch.cat([net.a(x), net.b(x)], 1) + net.c(x)),
            a=conv(3, 4),
            b=conv(3, 6),
            c=conv(3, 10),
            d=conv(10, 2),
        ),
        {"a": (10, "a.out b.out c.out d.in", None), "d": (2, "d.out", OUTPUT)},
    ),
    "flatten": TinyNet(
        lambda: nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2)),
        {"0": (4, "0.out 3.in", None), "3": (5, "3.out 4.in", None), "4": (2, "4.out", OUTPUT)},
    ),
    "two_outputs": TinyNet(
        lambda: Net(
            lambda net, x: {"map": net.b(net.a(x)), "scores": net.c(net.a(x).mean((2, 3)))},
            a=conv(3, 4),
            b=conv(4, 2),
            c=nn.Linear(4, 3),
        ),
        {"a": (4, "a.out b.in c.in", None), "b": (2, "b.out", OUTPUT), "c": (3, "c.out", OUTPUT)},
    ),
    "inner_output": TinyNet(
        lambda: Net(lambda net, x: (net.a(x), net.b(net.a(x))), a=conv(3, 4), b=conv(4, 2)),
        {"a": (4, "a.out b.in", OUTPUT), "b": (2, "b.out", OUTPUT)},
    ),
    "unreached": TinyNet(
        lambda: Net(lambda net, x: net.b(net.a(x)), a=conv(3, 4), b=conv(4, 2), aside=conv(3, 5)),
        {
            "a": (4, "a.out b.in", MAY_FEED_ASIDE),
            "b": (2, "b.out", OUTPUT),
            "aside": (5, "", "not reached by the forward pass on the example input"),
        },
    ),
    "depthwise": TinyNet(
        lambda: nn.Sequential(conv(3, 4), conv(4, 4, 3, groups=4), conv(4, 2)),
        {
            "0": (4, "0.out 1.in 1.out 2.in", None),
            "2": (2, "2.out", OUTPUT),
        },
    ),
    "depthwise_twice": TinyNet(
        lambda: nn.Sequential(conv(3, 4), conv(4, 8, 3, groups=4), conv(8, 2)),
        {"0": (4, "0.out 1.in 1.out 2.in", None), "2": (2, "2.out", OUTPUT)},
    ),
    "grouped": TinyNet(
        lambda: nn.Sequential(conv(3, 6), conv(6, 12, 3, groups=3), conv(12, 2)),
        {"0": (3, "0.out 1.in 1.out 2.in", None), "2": (2, "2.out", OUTPUT)},
    ),
    "prelu": TinyNet(
        lambda: nn.Sequential(conv(3, 4), nn.PReLU(4), conv(4, 2)),
        {"0": (4, "0.out 1.weight.out 2.in", None), "2": (2, "2.out", OUTPUT)},
    ),
    "channels_last": TinyNet(
        lambda: Net(
            lambda net, x: net.c(net.b(torch.relu(net.a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)),
            a=nn.Linear(3, 6),
            b=nn.Linear(6, 4),
            c=conv(4, 2),
        ),
        {"a": (6, "a.out b.in", None), "b": (4, "b.out c.in", None), "c": (2, "c.out", OUTPUT)},
    ),
    "padded_shortcut": TinyNet(
        lambda: Net(
            lambda net, x: net.c(nn.functional.pad(net.a(x), (0, 0, 0, 0, 1, 1)) + net.b(net.a(x))),
            a=conv(3, 4),
            b=conv(4, 6),
            c=conv(6, 2),
        ),
        {
            "a": (6, "a.out b.in b.out c.in", "padded with channels of zeros by the forward pass"),
            "c": (2, "c.out", OUTPUT),
        },
    ),
    "concat_with_constant": TinyNet(
        lambda: Net(lambda net, x: net.b(torch.cat([x, net.a(x)], 1)), a=conv(3, 4), b=conv(7, 2)),
        {"a": (4, "a.out b.in", None), "b": (2, "b.out", OUTPUT)},
    ),
    "shuffled": TinyNet(
        lambda: Net(
            lambda net, x: net.b(net.a(x).view(len(x), 2, 3, SIDE, SIDE).transpose(1, 2).flatten(1, 2)),
            a=conv(3, 6),
            b=conv(6, 2),
        ),
        {"a": (6, "a.out", "its channels are split at fixed places by the forward pass"), "b": (2, "b.out", OUTPUT)},
    ),
    "softmax": TinyNet(
        lambda: Net(lambda net, x: net.b(net.a(x).softmax(1)), a=conv(3, 4), b=conv(4, 2)),
        {"a": (4, "a.out b.in", "combined with other channels by _softmax"), "b": (2, "b.out", OUTPUT)},
    ),
    "unknown_operation": TinyNet(
        lambda: Net(lambda net, x: net.b(net.a(x).tril()), a=conv(3, 4), b=conv(4, 2)),
        {"a": (4, "a.out", "passes through tril, whose channels cannot be followed"), "b": (2, "b.out", OUTPUT)},
    ),
    "written_in_place": TinyNet(
        lambda: Net(
            lambda net, x: net.b(x.new_zeros(len(x), 4, SIDE, SIDE).add_(net.a(x))), a=conv(3, 4), b=conv(4, 2)
        ),
        {
            "a": (4, "a.out b.in", "written into a tensor of fixed size by add_"),
            "b": (2, "b.out", OUTPUT),
        },
    ),
    "tied_weights": TinyNet(
        tied_weights,
        {"a": (4, "a.out b.in b.out c.in c.out d.in", None), "d": (2, "d.out", OUTPUT)},
    ),
    "group_norm": TinyNet(
        lambda: nn.Sequential(conv(3, 4), nn.GroupNorm(2, 4), conv(4, 2)),
        {
            "0": (2, "0.out 1.weight.out 1.bias.out 1.num_groups.out 2.in", None),
            "2": (2, "2.out", OUTPUT),
        },
    ),
    "transposed": TinyNet(
        lambda: nn.Sequential(conv(3, 4), nn.ConvTranspose2d(4, 6, 2, 2), conv(6, 2)),
        {
            "0": (4, "0.out 1.in", None),
            "1": (6, "1.out 2.in", None),
            "2": (2, "2.out", OUTPUT),
        },
    ),
    "free_parameter": TinyNet(
        lambda: Net(
            lambda net, x: net.b(net.a(x) * net.scale),
            a=conv(3, 4),
            scale=nn.Parameter(torch.ones(1, 4, 1, 1)),
            b=conv(4, 2),
        ),
        {"a": (4, "a.out b.in scale.out", None), "b": (2, "b.out", OUTPUT)},
    ),
    "split": TinyNet(
        lambda: Net(
            lambda net, x: sum(layer(half) for layer, half in zip((net.b, net.c), net.a(x).chunk(2, 1), strict=True)),
            a=conv(3, 8),
            b=conv(4, 2),
            c=conv(4, 2),
        ),
        {
            "a": (4, "a.out b.in c.in", None),
            "b": (2, "b.out c.out", OUTPUT),
        },
    ),
    "shared_layer": TinyNet(
        lambda: Net(lambda net, x: net.c(net.b(net.b(net.a(x)))), a=conv(3, 4), b=conv(4, 4), c=conv(4, 2)),
        {"a": (4, "a.out b.in b.out c.in", None), "c": (2, "c.out", OUTPUT)},
    ),
    "squeeze_excite": TinyNet(
        squeeze_excite,
        {
            "a": (4, "a.out b.in down.in up.out", None),
            "down": (2, "down.out up.in", None),
            "b": (2, "b.out", OUTPUT),
        },
    ),
    "fpn": TinyNet(
        fpn,
        {
            "stage1": (4, "stage1.out stage2.in lateral1.in", None),
            "stage2": (6, "stage2.out lateral2.in", None),
            "lateral1": (5, "lateral1.out lateral2.out out1.in out2.in", None),
            "out1": (5, "out1.out", OUTPUT),
            "out2": (5, "out2.out", OUTPUT),
        },
    ),
}


@pytest.fixture
def x():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tiny():
    """Build a tiny net by name, with the same weights every time."""

    def build(name):
        torch.manual_seed(0)
        return NETS[name].build()

    return build


@pytest.fixture(params=NETS)
def declared(request):
    """Every tiny net in turn, with its declared groups."""
    torch.manual_seed(0)
    return NETS[request.param].build(), NETS[request.param].groups


@pytest.fixture
def randomize():
    """Give every BatchNorm weights and statistics that are not the neutral ones, and return the model in eval mode."""

    def randomized(model):
        generator = torch.Generator().manual_seed(3)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight.data, layer.running_var):
                    tensor.uniform_(0.5, 1.5, generator=generator)
                for tensor in (layer.bias.data, layer.running_mean):
                    tensor.uniform_(-0.5, 0.5, generator=generator)
        return model.eval()

    return randomized


@pytest.fixture
def same_state():
    """Compare the state dicts of two models bit by bit."""

    def same(one, other):
        one, other = one.state_dict(), other.state_dict()
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    return same


@pytest.fixture
def groups_of():
    """Find groups: name -> (channels, members, obstacle)."""

    def found(net, x, **options):
        groups = find_groups(net, (x,), **options)
        return {
            g.name: (g.num_channels, " ".join(f"{m.layer}.{m.side}" for m in g.members), g.obstacle) for g in groups
        }

    return found


@pytest.fixture
def slim_equals_twin():
    """Prune a net whose vectors have random numbers, compare it with its twin, and return what was pruned.

    The twin does not read removed channels; where no weight reads them (`is_zero`), they are zero themselves.
    """

    def check(net, x, prune_ratio=0.5, is_zero=False):
        generator = torch.Generator().manual_seed(3)
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.ndim == 1:
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        pruned = prune_model(net.eval(), (x,), prune_ratio)
        whole, expected = net(x), _twin(net, pruned.spec, is_zero)(x)
        assert torch.allclose(pruned.model(x), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(whole, expected, rtol=1e-3, atol=1e-4)  # else the comparison proves nothing
        return pruned

    return check


def _twin(net, spec, is_zero):
    twin = copy.deepcopy(net)
    for name, cut in spec.layers.items():
        layer = dict(twin.named_modules()).get(name)
        if not isinstance(layer, nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            continue
        gone_in = sorted(set(range(cut.num_in)) - set(cut.kept_in or range(cut.num_in)))
        gone_out = sorted(set(range(cut.num_out)) - set(cut.kept_out or range(cut.num_out)))
        by_input = layer.weight.data if isinstance(layer, nn.ConvTranspose2d) else layer.weight.data.transpose(0, 1)
        if len(by_input) == cut.num_in:  # a grouped layer that loses inputs loses the outputs that read them
            by_input[gone_in] = 0
        if is_zero:
            layer.weight.data[gone_out], layer.bias.data[gone_out] = 0, 0
    return twin
