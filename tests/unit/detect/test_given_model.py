"""A user's model of mmdet on one of our backbones."""

import pytest
import torch
from mmengine.model.weight_init import PretrainedInit
from torch import nn

from classify.backbones import Architecture
from classify.checkpoint import Preprocessing
from command.errors import RequestError
from detect.foreign import new_given_detector, read_mmdet
from detect.given_model import backbone_changes, plain, with_backbone
from detect.openmmlab import MODELS, TOOLS

STOCK = TOOLS.parent / "configs"
FASTER = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco"
CAFFE = "faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco"
CASCADE = "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco"
WIDTHS = {"layer1.0.conv1": (8, 5), "layer1.0.bn1": (5, 5), "layer1.0.conv2": (5, 8)}
OURS, COLOURS = Architecture("resnet18", 80, 8, WIDTHS), Preprocessing((800, 1344))


@pytest.fixture
def config(tmp_path):
    """Return a stock config with changes of its model."""

    def read(stock=FASTER, **model):
        (tmp_path / "mine.py").write_text(f'_base_ = "{STOCK}/{stock}.py"\nmodel = {model}\n')
        return read_mmdet(tmp_path / "mine.py")

    return read


def test_only_the_backbone_and_what_depends_on_it_are_replaced(config):
    before = plain(config().model)
    after = plain(with_backbone(config(), OURS, COLOURS))
    assert {name for name in after if after[name] != before[name]} == {"backbone", "neck", "data_preprocessor"}
    assert after["neck"] == before["neck"] | {"in_channels": [8, 16, 32, 64]}
    assert after["data_preprocessor"] == before["data_preprocessor"] | {"rgb_to_bgr": False}
    assert after["backbone"]["widths"] == {name: list(width) for name, width in WIDTHS.items()}


def test_a_second_replacement_changes_nothing(config):
    once = config()
    once.model = with_backbone(once, OURS, COLOURS)
    assert plain(with_backbone(once, OURS, COLOURS)) == plain(once.model)


@pytest.mark.parametrize(
    ("backbone", "frozen", "still"),
    [
        ({}, ("conv1", "bn1", "layer1"), True),
        ({"frozen_stages": 3, "norm_eval": False}, ("conv1", "bn1", "layer1", "layer2", "layer3"), False),
        ({"frozen_stages": -1, "norm_eval": False}, (), False),
        ({"frozen_stages": 0}, ("conv1", "bn1"), True),
    ],
)
def test_frozen_stages_and_statistics_stay_frozen(config, backbone, frozen, still):
    trunk = MODELS.build(with_backbone(config(backbone=backbone), OURS, COLOURS).backbone).train()
    net = trunk.net
    assert {name.split(".")[0] for name, one in net.named_parameters() if not one.requires_grad} == set(frozen)
    norms = {name: one for name, one in net.named_modules() if isinstance(one, nn.BatchNorm2d)}
    expected = {name: not still and name.split(".")[0] not in frozen for name in norms}
    assert {name: one.training for name, one in norms.items()} == expected
    before = net.conv1.weight.clone()
    sum(maps.sum() for maps in trunk(torch.ones(1, 3, 64, 64))).backward()
    torch.optim.SGD(net.parameters(), 1.0, weight_decay=0.1).step()
    assert torch.equal(net.conv1.weight, before) == ("conv1" in frozen)


def test_frozen_norms_keep_their_scales(config):
    norms = {"frozen_stages": -1, "norm_cfg": {"type": "BN", "requires_grad": False}}
    trunk = MODELS.build(with_backbone(config(backbone=norms), OURS, COLOURS).backbone)
    kinds = {type(one): one.weight.requires_grad for one in trunk.modules() if hasattr(one, "weight")}
    assert kinds == {nn.Conv2d: True, nn.BatchNorm2d: False}


def test_what_is_replaced_is_one_line(config):
    line = backbone_changes(config(CAFFE), OURS, COLOURS)
    assert "\n" not in line
    assert "ResNet(depth=50" in line
    assert "by resnet18 (norm_eval=True, frozen_stages=1, frozen_norms=True)" in line
    assert "neck.in_channels [256, 512, 1024, 2048] by [8, 16, 32, 64]" in line
    assert "data_preprocessor.bgr_to_rgb False by True" in line
    assert "std [1.0, 1.0, 1.0] by [58.395, 57.12, 57.375]" in line


@pytest.mark.parametrize(
    ("stock", "model", "fault"),
    [
        ("retinanet/retinanet_r50_fpn_1x_coco", {}, "not a two-stage detector, got RetinaNet"),
        ("faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco", {}, "neck: does not read four maps"),
        ("dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco", {}, "backbone.dcn: cannot be replaced"),
        ("gn/mask-rcnn_r50_fpn_gn-all_2x_coco", {}, "backbone.norm_cfg: cannot be replaced"),
        (FASTER, {"backbone": {"with_cp": True}}, "backbone.with_cp: cannot be replaced, got True"),
        (FASTER, {"backbone": {"type": "Resnet"}}, "backbone.type: unknown, got Resnet"),
        (FASTER, {"backbone": {"_delete_": True, "depth": 50}}, "backbone.type: unknown, got None"),
        (FASTER, {"backbone": {"type": "os.system"}}, "backbone.type: unknown, got os.system"),
        (FASTER, {"backbone": {"frozen_stages": 5}}, "frozen_stages: out of range, got 5"),
        (FASTER, {"backbone": {"norm_cfg": "BN"}}, "backbone.norm_cfg: cannot be replaced, got BN"),
        (FASTER, {"backbone": None}, "not a two-stage detector, got FasterRCNN with backbone=None; expected one like"),
        (FASTER, {"_delete_": True, "type": "FasterRCNN", "roi_head": {}}, "got FasterRCNN with backbone=None"),
        (FASTER, {"neck": {"in_channels": 256}}, "neck: does not read four maps"),
        (FASTER, {"roi_head": {"bbox_roi_extractor": {"featmap_strides": 4}}}, "bbox_roi_extractor: not of strides"),
        (FASTER, {"data_preprocessor": None}, "data_preprocessor: not settings, got None"),
        (FASTER, {"data_preprocessor": {"pad_size_divisor": "x"}}, "pad_size_divisor: not usable, got 'x'"),
        (CASCADE, {"roi_head": {"bbox_head": None}}, "got AssertionError at `assert bbox_head"),
        (FASTER, {"neck": {"num_out": 5}}, "cannot build a detector"),
        (
            FASTER,
            {"roi_head": {"bbox_head": {"num_classes": 3, "fc_out_channels": 8}}},
            "num_classes: not that of the data, got 3",
        ),
    ],
)
def test_what_cannot_have_our_backbone_is_one_line(config, stock, model, fault):
    with pytest.raises(RequestError, match=fault) as error:
        new_given_detector(config(stock, **model), OURS, tuple(map(str, range(80))), seed=0)
    assert "\n" not in str(error.value)


REMOTE = {"type": "Pretrained", "checkpoint": "http://127.0.0.1:9/x.pth"}
MIXED = {"type": "Normal", "layer": "Conv2d", "std": 1, "override": {"name": "rpn_cls", **REMOTE}}


@pytest.mark.parametrize("rule", [REMOTE, [MIXED], REMOTE | {"type": PretrainedInit}])
def test_weights_that_parts_would_load_are_dropped_and_named(config, rule, monkeypatch):
    monkeypatch.setattr("mmengine.runner.checkpoint._load_checkpoint", lambda *args, **more: pytest.fail("read"))
    settings = config()
    settings.model.rpn_head.init_cfg = rule
    assert "model.rpn_head.init_cfg by random weights" in backbone_changes(settings, OURS, COLOURS)
    detector, _ = new_given_detector(settings, OURS, tuple(map(str, range(80))), seed=0)
    assert detector.is_init
