import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from classify.backbones import Architecture, stage_shapes
from detect import TrunkBackbone, build_detector
from detect.model import config_of


def running_means(backbone):
    return [m.running_mean.clone() for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def test_mmdet_builds_the_backbone_by_its_name():
    backbone = MODELS.build({"type": "mmdet.TrunkBackbone", "name": "resnet18", "base_channels": 8})
    assert isinstance(backbone, TrunkBackbone)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", [8, 16, 32, 64]), ("resnet50", [32, 64, 128, 256])])
def test_feature_maps_leave_at_strides_4_to_32(name, channels):
    maps = TrunkBackbone(name, base_channels=8)(torch.zeros(1, 3, 64, 96))
    sizes_hw = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(m.shape[1:]) for m in maps] == [(c, *hw) for c, hw in zip(channels, sizes_hw, strict=True)]


def test_a_mobilenet_is_a_backbone_too():
    backbone = MODELS.build({"type": "mmdet.TrunkBackbone", "name": "mobilenet_v2"})
    assert stage_shapes(backbone) == ((24, 4), (32, 8), (96, 16), (1280, 32))


def test_a_network_without_the_strides_is_refused():
    with pytest.raises(ValueError, match="has no feature maps of strides 4 to 32, got 'resnet20_cifar'"):
        TrunkBackbone("resnet20_cifar")


def test_widths_make_the_backbone_slim():
    widths = {"layer4.1.conv1": (64, 5), "layer4.1.bn1": (5, 5), "layer4.1.conv2": (5, 64)}
    backbone = TrunkBackbone("resnet18", 8, widths)
    assert backbone.get_submodule("net.layer4.1.conv1").weight.shape == (5, 64, 3, 3)
    assert stage_shapes(backbone) == ((8, 4), (16, 8), (32, 16), (64, 32))


def test_norm_eval_keeps_batch_norm_still_while_the_rest_trains():
    backbone = TrunkBackbone("resnet18", 8, norm_eval=True).train()
    before = running_means(backbone)
    backbone(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(running_means(backbone), before, rtol=0, atol=0)
    assert backbone.training
    assert backbone.get_submodule("net.layer1").training


def test_batch_norm_follows_the_data_without_norm_eval():
    backbone = TrunkBackbone("resnet18", 8).train()
    before = running_means(backbone)
    backbone(torch.rand(2, 3, 64, 64))
    assert not any(torch.equal(old, new) for old, new in zip(before, running_means(backbone), strict=True))


@pytest.mark.parametrize("mode", [True, False])
def test_switching_mode_returns_the_backbone(mode):
    backbone = TrunkBackbone("resnet18", 8)
    assert backbone.train(mode) is backbone
    assert all(module.training is mode for module in backbone.modules())


def test_init_cfg_is_refused():
    with pytest.raises(ValueError, match=r"backbone\.init_cfg: not used, got .*Pretrained.*; drop it, weights are"):
        TrunkBackbone("resnet18", 8, init_cfg={"type": "Pretrained", "checkpoint": "torchvision://resnet18"})


def test_an_unknown_backbone_is_refused_with_the_known_names(tiny):
    config = config_of(tiny()[1])
    with pytest.raises(ValueError, match=r"backbone: unknown, got 'resnet19'; expected one of .*'resnet18'"):
        build_detector({**config, "backbone": {**config["backbone"], "name": "resnet19"}})


def test_an_architecture_without_its_head_is_all_a_backbone_needs():
    names = TrunkBackbone(Architecture("resnet18", 1).name, 8).state_dict()
    assert not [name for name in names if name.startswith("net.fc")]
