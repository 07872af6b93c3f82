import copy

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet18

from prune import Recipe
from prune.learn.soft_filters import SoftFilterPruning, zero_filters


def net_of(norms, **options):
    """One prunable layer of five filters of these L2 norms: 3 weights each, all but one zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 1, **options), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1))
    net[0].weight.data.zero_()[:, 0, 0, 0] = torch.tensor(norms)
    return net


def test_int_of_the_share_is_zeroed(x):
    net = net_of([3.0, -1.0, 5.0, -4.0, 2.0])
    SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.5)).after_epoch(net, 0)  # int(2.5) = 2: not three of five
    assert net[0].weight.data[:, 0, 0, 0].tolist() == [3, 0, 5, -4, 0]


def test_norm_is_euclidean(x):
    net = net_of([1.0, 1.0, 1.0, 1.0, 0.0])
    net[0].weight.data[4, :, 0, 0] = 0.55  # L1 1.65, L2 0.95
    SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.2)).after_epoch(net, 0)
    assert net[0].weight.data.flatten(1).any(1).tolist() == [True, True, True, True, False]


def test_zeroed_filter_comes_back_and_another_goes(x):
    net = net_of([3.0, 1.0, 5.0, 4.0, 2.0])
    method = SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.2))
    method.after_epoch(net, 0)
    assert not net[0].weight.data[1].any()
    nn.init.constant_(net[1].bias, 0.5)
    nn.init.constant_(net[3].weight, 1)
    net.train()(x)[:, 0].square().sum().backward()
    assert net[0].weight.grad[1].any()  # its BatchNorm lets gradients through
    net[0].weight.data[1] -= 10 * net[0].weight.grad[1] / net[0].weight.grad[1].norm()
    method.after_epoch(net, 1)
    assert net[0].weight.data.flatten(1).any(1).tolist() == [True, True, True, True, False]  # 2.0 is the least now
    assert method.slim(net).spec.layers["0"].kept_out == (0, 1, 2, 3)


def test_dead_filter_is_found(x):
    net = net_of([0.5, 0.2, 0.0, 0.9, 0.4])
    learned = SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.2)).slim(net)
    assert learned.spec.layers["0"].kept_out == (0, 1, 3, 4)


def masked_by_hand(net, spec):
    """The oracle: filters of zeros, whose BatchNorms go on."""
    net = copy.deepcopy(net)
    for name, cut in spec.layers.items():
        layer = net.get_submodule(name)
        if isinstance(layer, nn.Conv2d) and cut.kept_out:
            layer.weight.data[sorted(set(range(cut.num_out)) - {*cut.kept_out})] = 0
    return net.eval()


@pytest.mark.parametrize("bias", [True, False])
def test_slim_has_what_zeroed_filters_still_give(bias, randomize, x):
    torch.manual_seed(0)
    convs = [nn.Conv2d(a, b, 3, bias=bias) for a, b in ((3, 6), (6, 6))]
    net = nn.Sequential(
        *(convs[0], nn.BatchNorm2d(6), nn.ReLU(), convs[1], nn.BatchNorm2d(6), nn.ReLU()), nn.Conv2d(6, 2, 1)
    )
    net = randomize(net)
    learned = SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.5)).slim(net)
    masked = masked_by_hand(net, learned.spec)
    torch.testing.assert_close(learned.model.eval()(x), masked(x), rtol=1e-5, atol=1e-5)
    assert learned.inexact_borders == ()
    dropped = copy.deepcopy(masked)  # what the slim network would be without the constants
    for norm, name in ((dropped[1], "0"), (dropped[4], "3")):
        kept = [*learned.spec.layers[name].kept_out]
        norm.bias.data[[c for c in range(6) if c not in kept]] = -10
    assert (dropped(x) - masked(x)).abs().max() > 0.01


@pytest.mark.parametrize(("make", "side"), [(resnet18, 64), (mobilenet_v2, 64)])
def test_inside_of_a_padded_network_equals_masked(make, side, randomize):
    torch.manual_seed(0)
    net, images = randomize(make(num_classes=3)), torch.randn(2, 3, side, side)
    learned = SoftFilterPruning(net, (images,), Recipe(prune_ratio=0.25)).slim(net)
    masked = masked_by_hand(net, learned.spec)
    for model in (masked, learned.model):  # a border that repeats the image leaves no place where kernels read zeros
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.padding_mode = "replicate"
                layer._reversed_padding_repeated_twice = [p for p in layer.padding[::-1] for _ in range(2)]
    torch.testing.assert_close(learned.model.eval()(images), masked(images), rtol=1e-3, atol=1e-4)
    assert learned.inexact_borders


def test_layers_that_are_cut_together_are_zeroed_together():
    torch.manual_seed(0)
    net, images = resnet18(num_classes=3), torch.randn(2, 3, 32, 32)
    SoftFilterPruning(net, (images,), Recipe(prune_ratio=0.5)).after_epoch(net, 0)
    zero = [
        ~net.get_submodule(name).weight.data.flatten(1).any(1) for name in ("conv1", "layer1.0.conv2", "layer1.1.conv2")
    ]
    assert int(zero[0].sum()) == 32
    assert torch.equal(zero[0], zero[1])
    assert torch.equal(zero[0], zero[2])
    assert not torch.equal(zero[0], ~net.layer1[0].conv1.weight.data.flatten(1).any(1))


def test_transposed_filters_are_zeroed_by_their_outputs(x):
    net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ConvTranspose2d(2, 4, 1), nn.Conv2d(4, 2, 1))
    method = SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.25, skip=("0",)))
    net[1].weight.data = torch.tensor([[5.0, 1.0, 3.0, 2.0], [5.0, 1.0, 3.0, 2.0]])[:, :, None, None]
    method.after_epoch(net, 0)
    assert net[1].weight.data[:, :, 0, 0].tolist() == [[5, 0, 3, 2], [5, 0, 3, 2]]


def test_biases_of_zeroed_filters_stay(x):
    net = net_of([3.0, 1.0, 5.0, 4.0, 2.0])
    before = net[0].bias.detach().clone()
    spec = SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.2)).slim(net).spec
    zero_filters(net, spec)
    assert torch.equal(net[0].bias, before)


def test_own_ratios_and_skipped_layers_are_respected(x):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    recipe = Recipe(prune_ratio=0.25, ratios={"0": 0.75}, skip=("2",))
    method = SoftFilterPruning(net, (x,), recipe)
    method.after_epoch(net, 0)
    assert [int((~net[i].weight.data.flatten(1).any(1)).sum()) for i in (0, 2, 4)] == [3, 0, 0]


def test_limit_is_refused(x):
    with pytest.raises(ValueError, match="recipe: soft filters are cut by a ratio, got max_macs"):
        SoftFilterPruning(net_of([1.0] * 5), (x,), Recipe(max_macs=100))


def test_weights_that_are_computed_are_refused_before_training(x):
    net = net_of([3.0, 1.0, 5.0, 4.0, 2.0])
    net[0] = nn.utils.parametrizations.weight_norm(net[0])
    with pytest.raises(ValueError, match="0: its weight is computed from others; expected a plain one"):
        SoftFilterPruning(net, (x,), Recipe(prune_ratio=0.2))
