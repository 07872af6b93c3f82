import json

import pytest
import torch
from torch import nn

from classify.backbones import BACKBONES, Architecture, build_classifier, build_trunk, initialize, stage_shapes
from prune import prune_model

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "vgg16_bn": (256, 512, 512, 512),
}


def slim_resnet18():
    """Return a slim classifier of 5 classes in eval mode and its architecture."""
    torch.manual_seed(0)
    arch = Architecture("resnet18", 5, base_channels=16)
    pruned = prune_model(build_classifier(arch).eval(), (IMAGE,), 0.5)
    return pruned.model, Architecture("resnet18", 5, 16, pruned.spec.widths())


@pytest.mark.parametrize("name", BACKBONES)
def test_stages_have_strides_4_to_32_and_the_network_s_channels(name):
    with torch.device("meta"):
        shapes = stage_shapes(build_trunk(Architecture(name, 7)))
    assert shapes == tuple(zip(CHANNELS[name], (4, 8, 16, 32), strict=True))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_half_the_base_channels_halve_every_stage(name):
    shapes = stage_shapes(build_trunk(Architecture(name, 7, base_channels=32)))
    assert shapes == tuple(zip((c // 2 for c in CHANNELS[name]), (4, 8, 16, 32), strict=True))


@pytest.mark.parametrize("name", BACKBONES)
def test_trunk_keeps_the_classifier_s_parameter_names(name):
    with torch.device("meta"):
        trunk, classifier = build_trunk(Architecture(name, 7)), build_classifier(Architecture(name, 7))
    head = ("fc.", "classifier.")
    assert list(trunk.net.state_dict()) == [n for n in classifier.state_dict() if not n.startswith(head)]


def test_trunk_runs_the_classifier_s_layers():
    arch = Architecture("resnet18", 5, base_channels=8)
    classifier, trunk = build_classifier(arch).eval(), build_trunk(arch).eval()
    trunk.net.load_state_dict(classifier.state_dict(), strict=False)
    assert torch.equal(classifier.fc(trunk(IMAGE)[-1].mean((2, 3))), classifier(IMAGE))


def test_vgg_trunk_leaves_before_its_pools():
    with torch.device("meta"):
        trunk = build_trunk(Architecture("vgg16_bn", 2))
    layers = [trunk.net.get_submodule(name) for name in trunk.stages]
    assert [type(layer) for layer in layers] == [nn.ReLU, nn.ReLU, nn.ReLU, nn.MaxPool2d]


def test_slim_classifier_is_rebuilt_from_its_architecture():
    slim, arch = slim_resnet18()
    rebuilt = build_classifier(arch)
    rebuilt.load_state_dict(slim.state_dict())
    assert torch.equal(rebuilt.eval()(IMAGE), slim(IMAGE))


def test_slim_trunk_is_built_although_the_head_is_in_the_widths():
    slim, arch = slim_resnet18()
    trunk = build_trunk(arch).eval()
    trunk.net.load_state_dict({n: w for n, w in slim.state_dict().items() if not n.startswith("fc.")})
    assert arch.widths["fc"] == (64, 5)  # 16 * 8 channels halved
    assert stage_shapes(trunk) == ((8, 4), (16, 8), (32, 16), (64, 32))
    assert torch.equal(slim.fc(trunk(IMAGE)[-1].mean((2, 3))), slim(IMAGE))


def test_architecture_survives_json():
    slim, arch = slim_resnet18()
    again = Architecture(**json.loads(json.dumps(arch.to_dict())))
    build_classifier(again).load_state_dict(slim.state_dict())
    assert (again.name, again.num_classes, again.base_channels) == ("resnet18", 5, 16)
    assert {name: tuple(width) for name, width in again.widths.items()} == arch.widths


def test_fresh_weights_have_the_scale_of_the_slim_width():
    arch = Architecture("resnet18", 5, widths={"layer1.0.conv1": (64, 16), "layer1.0.bn1": (16, 16)})
    layer = nn.Sequential()
    layer.add_module("conv", nn.Conv2d(64, 16, 3))
    initialize(layer)
    # fan-out of 16 filters of 3 x 3: sqrt(2 / 144) = 0.118; the dense 64 would give sqrt(2 / 576) = 0.059
    assert layer.conv.weight.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.05)
    net = build_classifier(arch)
    initialize(net)
    assert net.layer1[0].conv1.weight.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.05)


def test_fresh_weights_forget_the_old_ones():
    net = build_classifier(Architecture("resnet18", 5, base_channels=8))
    for tensor in net.state_dict().values():
        tensor.fill_(99)
    initialize(net)
    assert not any((tensor == 99).any() for tensor in net.state_dict().values())
    assert net.bn1.weight.tolist() == net.bn1.running_var.tolist() == [1.0] * 8
    assert net.bn1.bias.tolist() == net.bn1.running_mean.tolist() == [0.0] * 8


def test_convolution_s_bias_starts_at_zero():
    layer = nn.Conv2d(3, 4, 3)
    initialize(layer)
    assert layer.bias.tolist() == [0.0] * 4


@pytest.mark.parametrize("build", [build_classifier, build_trunk])
def test_unknown_backbone_is_refused(build):
    with pytest.raises(ValueError, match=r"backbone: unknown, got 'resnet19'; expected one of .*resnet18"):
        build(Architecture("resnet19", 5))


def test_narrow_vgg_is_refused():
    with pytest.raises(ValueError, match="base_channels cannot differ from 64, got 32"):
        build_classifier(Architecture("vgg16_bn", 5, base_channels=32))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"conv1": (3, 65)}, r"conv1: cannot be widened, got \(3, 65\)"),
        ({"conv9": (3, 8)}, "conv9: the spec is for another model"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        build_classifier(Architecture("resnet18", 5, widths=widths))
