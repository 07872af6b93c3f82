import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from prune import Cost, LayerCost, cost_of, prune_model


def test_cost_of_a_tiny_net_is_the_hand_count():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),  # out 4 x 4 x 4 = 64, each 3 * 9 = 27 macs; 108 weights + 4 biases
        nn.BatchNorm2d(4),  # no macs; 8 parameters
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False),  # 64 outputs of 2 * 9 = 18 macs; 72 weights
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),  # 5 outputs of 4 macs; 20 weights + 5 biases
    )
    layers = {"0": LayerCost(64 * 27, 112, 64), "2": LayerCost(64 * 18, 72, 64), "5": LayerCost(20, 25, 5)}
    # 1728 + 1152 + 20 = 2900; 112 + 8 + 72 + 25 = 217
    assert cost_of(net, (torch.zeros(1, 3, 8, 8),)) == Cost(2900, 217, layers)


def test_layer_used_twice_counts_twice_in_macs_and_once_in_params(tiny):
    cost = cost_of(tiny("shared_layer"), (torch.zeros(1, 3, 8, 8),))
    # 1 x 1 convolution, 4 -> 4 on 64 positions: 64 * 4 * 4 = 1024 macs a run; 16 weights + 4 biases
    assert cost.layers["b"] == LayerCost(macs=2048, params=20, activations=512)
    assert cost.params == (12 + 4) + 20 + (8 + 2)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "vgg16_bn"])
def test_cost_is_torchvision_s_published_figure(name):
    published = models.get_model_weights(name).IMAGENET1K_V1.meta
    with torch.device("meta"):
        cost = cost_of(models.get_model(name), (torch.zeros(1, 3, 224, 224),))
    assert cost.params == published["num_params"]
    assert round(cost.macs / 1e9, 3) == pytest.approx(published["_ops"], abs=0.002)


def test_resnet34_and_resnet50_have_the_published_cost():
    with torch.device("meta"):
        costs = [cost_of(models.get_model(n), (torch.zeros(1, 3, 224, 224),)) for n in ("resnet34", "resnet50")]
    assert [round(cost.params / 1e6, 3) for cost in costs] == [21.798, 25.557]
    assert round(costs[0].macs / 1e9, 3) == 3.664
    assert round(costs[1].macs / 1e9, 2) == 4.09


def test_macs_of_a_slim_net_agree_with_torch_s_own_counter():
    image = torch.zeros(1, 3, 64, 64)
    slim = prune_model(models.resnet18(num_classes=10), (image,), 0.3).model.eval()
    with FlopCounterMode(display=False) as counter:
        slim(image)
    assert cost_of(slim, (image,)).macs * 2 == counter.get_total_flops()  # it counts a multiply-add as two


def test_modes_are_restored_and_no_hook_stays(tiny, x):
    net = tiny("plain").train()
    net[1].eval()
    before = net[1].running_mean.clone()
    cost_of(net, (x[:1],))
    assert [layer.training for layer in net.modules()] == [True, True, False, True, True]
    assert torch.equal(net[1].running_mean, before)
    assert not any(layer._forward_hooks for layer in net.modules())


def test_modes_are_restored_after_a_failure(tiny):
    net = tiny("plain").train()
    with pytest.raises(RuntimeError, match="expected input"):
        cost_of(net, (torch.zeros(1, 7, 8, 8),))
    assert all(layer.training for layer in net.modules())


def test_transposed_convolution_counts_what_each_input_feeds():
    layer = nn.ConvTranspose2d(3, 5, 2, stride=2)
    # 4 x 4 inputs of 3 channels, each feeding 5 x 2 x 2 outputs; the result is 5 x 8 x 8
    cost = cost_of(nn.Sequential(layer), (torch.zeros(1, 3, 4, 4),))
    assert (cost.macs, cost.layers["0"].activations) == (4 * 4 * 3 * 5 * 2 * 2, 5 * 8 * 8)
