import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from prune import Recipe
from prune.learn.slimming import NetworkSlimming, zero_scales

HALF = Recipe(prune_ratio=0.5)


def chain(kernel=1, padding=0, bias=True, **options):
    """Two prunable layers of 4 channels with their BatchNorms; layers 0, 1 (norm), 3, 4 (norm) and 6."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(a, b, kernel, padding=padding, bias=bias, **options) for a, b in ((3, 4), (4, 4), (4, 2))]
    return nn.Sequential(convs[0], nn.BatchNorm2d(4), nn.ReLU(), convs[1], nn.BatchNorm2d(4), nn.ReLU(), convs[2])


def with_scales(net, first, second):
    net[1].weight.data, net[4].weight.data = torch.tensor(first), torch.tensor(second)
    return net


@pytest.fixture
def trained(randomize):
    """Give a chain random statistics, positive shifts, and scales of which 1 and 3, then 0 and 2, are least."""

    def build(**options):
        net = with_scales(randomize(chain(**options)), [0.9, -0.1, 0.8, 0.2], [0.3, -0.7, 0.05, 0.6])
        for norm in (net[1], net[4]):
            norm.bias.data.abs_().add_(0.1)
        return net

    return build


def twin(net, removed, shift):
    """The oracle: the dense network with zeros where channels go."""
    net = copy.deepcopy(net).eval()
    for place, channels in removed.items():
        net[place].weight.data[channels] = 0
        if shift == "zeroed":
            net[place].bias.data[channels] = 0
    return net


def test_threshold_is_one_for_all_layers(trained, x):
    net = trained()
    # of 0.05 0.1 0.2 0.3 | 0.6 0.7 0.8 0.9 four go
    spec = NetworkSlimming(net, (x,), HALF).slim(net).spec
    assert (spec.layers["0"].kept_out, spec.layers["3"].kept_out) == ((0, 2), (1, 3))


def test_every_layer_keeps_a_channel(x):
    net = with_scales(chain(), [0.01, 0.02, 0.03, 0.04], [0.5, 0.6, 0.7, 0.8])
    spec = NetworkSlimming(net, (x,), HALF).slim(net).spec
    # four go: 0.04 is the last of its layer, so that 0.5 goes in its place
    assert (spec.layers["0"].kept_out, spec.layers["3"].kept_out) == ((3,), (1, 2, 3))


def test_dead_channels_are_found(x):
    net = with_scales(chain(), [0.5, 0.0, 0.4, 0.3], [0.3, 0.4, 0.5, 0.0])
    spec = NetworkSlimming(net, (x,), HALF).slim(net, prune_ratio=0.25).spec
    assert (spec.layers["0"].kept_out, spec.layers["3"].kept_out) == ((0, 2, 3), (0, 1, 2))


def test_penalty_is_the_sign_of_each_scale(x):
    net = with_scales(chain(), [2.0, -3.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0])
    method = NetworkSlimming(net, (x,), HALF, penalty=0.1)
    method.after_backward(net)  # nothing was trained
    net[1].weight.grad = torch.ones(4)  # layer 4 was not trained
    net[0].weight.grad = torch.ones_like(net[0].weight)
    method.after_backward(net)
    torch.testing.assert_close(net[1].weight.grad, torch.tensor([1.1, 0.9, 1.0, 1.1]))
    assert (net[4].weight.grad, net[0].weight.grad.unique().tolist()) == (None, [1.0])


def test_scales_that_are_not_cut_are_not_penalised(x):
    net = nn.Sequential(*chain(), nn.BatchNorm2d(2))
    assert NetworkSlimming(net, (x,), HALF).norms == ("1", "4")  # not that of the output
    assert NetworkSlimming(net, (x,), Recipe(prune_ratio=0.5, skip=("0",))).norms == ("4",)


def test_group_without_a_norm_is_refused(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *chain()[3:])
    with pytest.raises(ValueError, match="0: BatchNormScale cannot rank this group"):
        NetworkSlimming(net, (x,), HALF)
    with pytest.raises(ValueError, match="shift: unknown, got 'kept'; expected one of"):
        NetworkSlimming(chain(), (x,), HALF, shift="kept")


REMOVED = {1: [1, 3], 4: [0, 2]}


@pytest.mark.parametrize("shift", ["zeroed", "folded"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_slim_equals_masked_without_padding(shift, bias, kernel, trained, x):
    net = trained(kernel=kernel, bias=bias)
    if not bias:
        net[6] = nn.Conv2d(4, 2, kernel)  # no norm after it
    learned = NetworkSlimming(net, (x,), HALF, shift=shift).slim(net)
    expected = twin(net, REMOVED, shift)(x)
    torch.testing.assert_close(learned.model.eval()(x), expected, rtol=1e-5, atol=1e-5)
    other = twin(net, REMOVED, "folded" if shift == "zeroed" else "zeroed")(x)
    assert (expected - other).abs().max() > 0.01  # else the choice makes no difference
    assert learned.inexact_borders == ()
    torch.testing.assert_close(zero_scales(net, learned.spec, shift)(x), expected, rtol=0, atol=0)


def test_folded_shift_differs_at_a_zero_padded_border_alone(trained, x):
    net = trained(kernel=3, padding=1)
    learned = NetworkSlimming(net, (x,), Recipe(prune_ratio=0.5, skip=("0",)), shift="folded").slim(net)
    assert learned.spec.layers["3"].kept_out == (1, 3)  # 0.05 and 0.3 of the second norm go
    assert learned.inexact_borders == ("6",)
    difference = (learned.model.eval()(x) - twin(net, {4: [0, 2]}, "folded")(x)).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-5
    # what the kernel's places outside the image would have read: exactly that much
    constants, weights = net[4].bias.data.relu(), net[6].weight.data.clone()
    weights[:, [1, 3]] = 0
    outside = torch.einsum("oi,i->o", weights[:, :, 0].sum(-1), constants).abs()
    torch.testing.assert_close(difference[0, :, 0, 3], outside, rtol=1e-3, atol=1e-5)
    assert outside.min() > 1e-3


@pytest.mark.parametrize("padding_mode", ["circular", "reflect", "replicate"])
def test_folded_shift_is_exact_where_padding_repeats_the_image(padding_mode, trained, x):
    net = trained(kernel=3, padding=1, padding_mode=padding_mode)
    learned = NetworkSlimming(net, (x,), HALF, shift="folded").slim(net)
    assert learned.inexact_borders == ()
    torch.testing.assert_close(learned.model.eval()(x), twin(net, REMOVED, "folded")(x), rtol=1e-5, atol=1e-5)


def test_shift_is_folded_through_pools_and_into_linear_layers(randomize, x):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, 2)),
    )
    net = randomize(net)
    net[1].weight.data, net[6].weight.data = torch.tensor([1, 0.1, 1, 1]), torch.tensor([1, 1, 1, 1, 1, 0.2, 0.3, 1])
    learned = NetworkSlimming(net, (x,), Recipe(prune_ratio=0.25), shift="folded").slim(net)
    expected = twin(net, {1: [1], 6: [5, 6]}, "folded")(x)
    torch.testing.assert_close(learned.model.eval()(x), expected, rtol=1e-5, atol=1e-5)


def test_shifts_of_a_residual_stream_are_folded_together(randomize):
    torch.manual_seed(0)
    net, images = randomize(resnet18(num_classes=3)), torch.randn(2, 3, 64, 64)
    method = NetworkSlimming(net, (images,), Recipe(prune_ratio=0.3), shift="folded")
    learned = method.slim(net)
    masked = zero_scales(copy.deepcopy(net), learned.spec)
    for model in (masked, learned.model):  # a border that repeats the image leaves no place where kernels read zeros
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "replicate"
                layer._reversed_padding_repeated_twice = [p for p in layer.padding[::-1] for _ in range(2)]
    torch.testing.assert_close(learned.model.eval()(images), masked(images), rtol=1e-3, atol=1e-4)
    assert (net(images) - masked(images)).abs().max() > 0.1  # by far more than the tolerance
    assert "layer1.0.conv2" in learned.inexact_borders


def test_shift_with_nowhere_to_go_is_refused(trained, x):
    net = trained(bias=False)
    with pytest.raises(ValueError, match="constants of removed channels are lost on the way"):
        NetworkSlimming(net, (x,), HALF, shift="folded").slim(net)


def test_channel_that_is_not_constant_is_not_folded(randomize, x):
    class TwoPaths(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b, self.c = (
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x):
            return self.c(self.norm(self.a(x)) + self.b(x))

    net = randomize(TwoPaths())
    with pytest.raises(ValueError, match="c: a removed channel that it reads is not constant"):
        NetworkSlimming(net, (torch.zeros_like(x),), HALF, shift="folded").slim(net)


def test_the_given_network_is_not_changed(trained, x, same_state):
    net = trained(kernel=3)
    before = copy.deepcopy(net)
    NetworkSlimming(net, (x,), HALF, shift="folded").slim(net)
    assert same_state(net, before)


class Reading(nn.Module):
    """A convolution and BatchNorm whose removed channels something reads in its own way."""

    def __init__(self, read, **layers):
        super().__init__()
        self.c1, self.b1, self.read = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), read
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.read(self, self.b1(self.c1(x)).relu())


class PadsItself(nn.Conv2d):
    def forward(self, x):
        return nn.functional.conv2d(nn.functional.pad(x, [1, 1, 1, 1]), self.weight, self.bias)


def conv(num_in=8):
    return nn.Conv2d(num_in, 6, 1, bias=False)


READINGS = {
    "relu in place": lambda: Reading(
        lambda net, x: net.b2(net.r(net.c2(x))), c2=conv(), r=nn.ReLU(True), b2=nn.BatchNorm2d(6)
    ),
    "skip": lambda: Reading(lambda net, x: net.b2(net.c2(x)) + net.c2(x), c2=conv(), b2=nn.BatchNorm2d(6)),
    "norm of two": lambda: Reading(
        lambda net, x: net.b2(net.c2(x)) + net.b2(net.c3(x.new_ones(2, 4, 9, 9))),
        c2=conv(),
        c3=conv(4),
        b2=nn.BatchNorm2d(6),
    ),
    "functional": lambda: Reading(
        lambda net, x: nn.functional.conv2d(x, net.w), w=nn.Parameter(torch.randn(6, 8, 1, 1))
    ),
    "weight of a layer": lambda: Reading(
        lambda net, x: nn.functional.linear(x.mean((2, 3)), net.fc.weight, net.fc.bias), fc=nn.Linear(8, 6)
    ),
    "pads itself": lambda: Reading(lambda net, x: net.c2(x), c2=PadsItself(8, 6, 3)),
}


def test_a_bias_takes_what_a_layer_of_another_kind_makes_of_a_constant(trained, x):
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight * 0.3, self.bias)

    net = trained()
    net[6] = Scaled(4, 2, 1)
    learned = NetworkSlimming(net, (x,), HALF, shift="folded").slim(net)
    torch.testing.assert_close(learned.model.eval()(x), twin(net, REMOVED, "folded")(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", READINGS)
def test_a_constant_that_would_be_lost_is_refused_before_training(name):
    torch.manual_seed(1)
    net, x = READINGS[name](), torch.randn(2, 4, 9, 9)
    whole = [layer for layer in ("c2", "c3") if hasattr(net, layer) and hasattr(net, "b2")]
    with pytest.raises(ValueError, match=r"lost on the way|nothing can take the constants"):
        NetworkSlimming(net, (x,), Recipe(prune_ratio=0.5, skip=whole), shift="folded")


def test_a_penalty_of_nothing_is_refused(x):
    with pytest.raises(ValueError, match="penalty: no penalty, got -1"):
        NetworkSlimming(resnet18(num_classes=2), (x,), Recipe(prune_ratio=0.5), penalty=-1)
