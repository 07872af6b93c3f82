import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from classify.backbones import (
    BACKBONES,
    HEADS,
    Architecture,
    build_classifier,
    build_trunk,
    initialize,
    stage_shapes,
    weightless,
)
from prune import prune_model
from prune.selection import ChannelSelection

pytestmark = pytest.mark.slow

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet50_select": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "resnext50_32x4d": (256, 512, 1024, 2048),
    "wide_resnet50_2": (256, 512, 1024, 2048),
    "vgg11_bn": (256, 512, 512, 512),
    "vgg16": (256, 512, 512, 512),
    "vgg16_bn": (256, 512, 512, 512),
    "vgg16_gap": (256, 512, 512, 512),
    "mobilenet_v2": (24, 32, 96, 1280),
    "mobilenet_v3_large": (24, 40, 112, 960),
    "efficientnet_b0": (24, 40, 112, 1280),
    "densenet121": (256, 512, 1024, 1024),
    "regnet_x_400mf": (32, 64, 160, 400),
    "regnet_y_400mf": (48, 104, 208, 440),
    "convnext_tiny": (96, 192, 384, 768),
}
RESNETS = list(CHANNELS)[:7]
PARAMS = {
    # as torchvision publishes them, for 1000 classes
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50_select": 25_557_032,
    "resnet101": 44_549_160,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
    "vgg11_bn": 132_868_840,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg16_gap": 14_714_688 + 513 * 1000,  # VGG-16's convolutions and one linear layer
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "densenet121": 7_978_856,
    "regnet_x_400mf": 5_495_976,
    "regnet_y_400mf": 4_344_144,
    "convnext_tiny": 28_589_128,
}


def without_weights(name):
    """Return a device on which the network is quickly built."""
    return torch.device("cpu" if name.startswith("regnet") else "meta")  # RegNet computes its widths with tensors


def random_trunk(name):
    """Return a trunk built in a fraction of a second, also a VGG's."""
    with without_weights(name):
        trunk = build_trunk(Architecture(name, 7))
    torch.manual_seed(0)
    trunk.to_empty(device="cpu")
    for module in trunk.modules():
        if isinstance(module, ChannelSelection):
            module.index = torch.arange(module.num_in)
    initialize(trunk)
    return trunk


def slim_resnet18():
    """Return a slim classifier of 5 classes in eval mode and its architecture."""
    torch.manual_seed(0)
    arch = Architecture("resnet18", 5, base_channels=16)
    pruned = prune_model(build_classifier(arch).eval(), (IMAGE,), 0.5)
    return pruned.model, Architecture("resnet18", 5, 16, pruned.spec.widths())


@pytest.mark.parametrize("name", CHANNELS)
def test_stages_have_strides_4_to_32_and_the_network_s_channels(name):
    with without_weights(name):
        shapes = stage_shapes(build_trunk(Architecture(name, 7)))
    assert shapes == tuple(zip(CHANNELS[name], (4, 8, 16, 32), strict=True))


@pytest.mark.parametrize(("name", "params"), PARAMS.items())
def test_network_has_the_published_number_of_parameters(name, params):
    with without_weights(name):
        net = build_classifier(Architecture(name, 1000))
    assert sum(parameter.numel() for parameter in net.parameters()) == params


def test_all_but_the_networks_for_cifar_are_detector_backbones():
    assert set(CHANNELS) == set(PARAMS) == {name for name in BACKBONES if not name.endswith("_cifar")}


@pytest.mark.parametrize("name", RESNETS)
def test_half_the_base_channels_halve_every_stage(name):
    shapes = stage_shapes(build_trunk(Architecture(name, 7, base_channels=32)))
    assert shapes == tuple(zip((c // 2 for c in CHANNELS[name]), (4, 8, 16, 32), strict=True))


@pytest.mark.parametrize(("name", "inner"), [("resnet50", 32), ("resnext50_32x4d", 64), ("wide_resnet50_2", 64)])
def test_half_the_base_channels_halve_the_inside_of_a_bottleneck(name, inner):
    net = build_classifier(Architecture(name, 7, base_channels=32))
    assert net.layer1[0].conv2.out_channels == inner
    assert net.layer1[0].conv2.groups == (32 if name.startswith("resnext") else 1)
    assert net(IMAGE).shape == (2, 7)


@pytest.mark.parametrize("name", CHANNELS)
def test_trunk_keeps_the_classifiers_names_except_the_heads(name):
    with without_weights(name):
        trunk, classifier = build_trunk(Architecture(name, 7)), build_classifier(Architecture(name, 7))
    assert list(trunk.net.state_dict()) == [n for n in classifier.state_dict() if not n.startswith(HEADS)]


@pytest.mark.parametrize("name", BACKBONES)
def test_head_holds_the_last_layer_and_no_convolution(name):
    with without_weights(name):
        state = build_classifier(Architecture(name, 7)).state_dict()
    head = [n for n in state if n.startswith(HEADS)]
    assert state[head[-1]].shape == (7,)
    assert [n for n in head if state[n].ndim == 4] == []


@pytest.mark.parametrize("name", CHANNELS)
def test_trunk_s_feature_maps_are_the_classifier_s(name):
    trunk = random_trunk(name).eval()
    with without_weights(name):
        classifier = build_classifier(Architecture(name, 7)).eval()
    setattr(classifier, next(head[:-1] for head in HEADS if hasattr(classifier, head[:-1])), nn.Identity())
    classifier.load_state_dict(trunk.net.state_dict(), assign=True)
    maps = []
    for stage in trunk.stages:
        classifier.get_submodule(stage).register_forward_hook(lambda _, __, out: maps.append(out.clone()))
    with torch.no_grad():
        classifier(IMAGE)
        found = trunk(IMAGE)  # a map that a later layer overwrites would differ
    assert all(own.isfinite().all() and own.std() > 0 for own in maps[:4])
    torch.testing.assert_close(list(found), maps[:4], rtol=0, atol=0)


@pytest.mark.parametrize("name", CHANNELS)
def test_every_weight_of_a_trunk_learns(name):
    trunk = random_trunk(name).train()
    sum(features.square().mean() for features in trunk(IMAGE)).backward()
    assert [n for n, p in trunk.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


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


@pytest.mark.parametrize(
    ("name", "widths", "channels"),
    [
        ("mobilenet_v2", {"features.18.0": (320, 640), "features.18.1": (640, 640), "classifier.1": (640, 7)}, 640),
        ("vgg16_gap", {"features.28": (512, 100), "classifier": (100, 7)}, 100),
    ],
)
def test_slim_network_is_built_although_the_head_is_called_classifier(name, widths, channels):
    arch = Architecture(name, 7, widths=widths)
    assert build_classifier(arch).eval()(IMAGE).shape == (2, 7)
    assert stage_shapes(build_trunk(arch))[-1] == (channels, 32)


def test_architecture_survives_json():
    slim, arch = slim_resnet18()
    again = Architecture(**json.loads(json.dumps(asdict(arch))))
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


@pytest.mark.parametrize("name", BACKBONES)
def test_fresh_weights_forget_the_old_ones(name):
    with without_weights(name):
        net = build_classifier(Architecture(name, 7))
    net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.fill_(99)
    initialize(net)
    weights = {n: tensor for n, tensor in net.state_dict().items() if not n.endswith("select.index")}
    assert [n for n, tensor in weights.items() if (tensor == 99).any() or not tensor.isfinite().all()] == []


def test_fresh_weights_leave_what_each_norm_selects():
    arch = Architecture("densenet40_cifar", 7, widths={"select": (456, 3), "bn": (3, 3), "fc": (3, 7)})
    net = build_classifier(arch)
    net.load_state_dict({"select.index": torch.tensor([2, 100, 455])}, strict=False)
    initialize(net)
    assert net.select.index.tolist() == [2, 100, 455]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(8), nn.BatchNorm2d(8), nn.LayerNorm(8)])
def test_normalisation_starts_at_scale_one_and_shift_zero(layer):
    for tensor in layer.state_dict().values():
        tensor.fill_(99)
    initialize(layer)
    ones = {"weight", "running_var"}
    for name, tensor in layer.state_dict().items():
        assert tensor.tolist() == torch.full_like(tensor, int(name in ones)).tolist(), name


def test_layer_scale_of_convnext_starts_at_a_millionth():
    with torch.device("meta"):
        net = build_classifier(Architecture("convnext_tiny", 7))
    net.to_empty(device="cpu")
    initialize(net)
    assert net.features[1][0].layer_scale.unique().tolist() == pytest.approx([1e-6])


def test_convolution_s_bias_starts_at_zero():
    layer = nn.Conv2d(3, 4, 3)
    initialize(layer)
    assert layer.bias.tolist() == [0.0] * 4


@pytest.mark.parametrize("build", [build_classifier, build_trunk])
def test_unknown_backbone_is_refused(build):
    with pytest.raises(ValueError, match=r"backbone: unknown, got 'resnet19'; expected one of .*resnet18"):
        build(Architecture("resnet19", 5))


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in RESNETS])
def test_other_base_channels_are_refused_but_for_resnets(name):
    message = f"^{name}: base_channels cannot differ from 64, got 32; expected 64$"
    with pytest.raises(ValueError, match=message):
        build_classifier(Architecture(name, 5, base_channels=32))


def test_base_channels_too_few_for_a_resnexts_groups_are_refused():
    message = "base_channels: not divisible into 32 groups, got 24; expected a multiple of 16"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build_classifier(Architecture("resnext50_32x4d", 5, base_channels=24))


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


@pytest.mark.parametrize("name", ["resnet20_cifar", "vgg16_gap", "regnet_y_400mf", "convnext_tiny"])
def test_weightless_network_has_the_shapes_of_a_real_one(name):
    architecture = Architecture(name, 3)
    real = build_classifier(architecture).state_dict()
    with weightless():
        network = build_classifier(architecture)
    assert all(parameter.is_meta for parameter in network.parameters())
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == {
        key: tensor.shape for key, tensor in real.items()
    }
