from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.apis import inference_detector, init_detector

from classify.checkpoint import read_card
from detect.detector_file import load_detector
from detect.imported import detector_from_mmdet

STOCK = Path(mmdet.__file__).parent / ".mim/configs"
SMALL = """
model = dict(
    backbone=dict(depth={depth}, base_channels=8, init_cfg=dict(_delete_=True, type="Pretrained", checkpoint="none")),
    neck=dict(in_channels={channels}, out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64, num_classes=3),
    ),
    test_cfg=dict(rpn=dict(max_per_img=1000), rcnn=dict(max_per_img=150)),
)
"""
CHANNELS = {18: [8, 16, 32, 64], 50: [32, 64, 128, 256]}

pytestmark = pytest.mark.filterwarnings("ignore:checkpoint is None")


@pytest.fixture
def write(tmp_path):
    """Write a small config after a stock one, and a checkpoint with weights that find something."""

    def both(stock="faster-rcnn_r50_fpn_1x_coco", depth=18, more=""):
        config, checkpoint = tmp_path / "config.py", tmp_path / "net.pth"
        text = SMALL.format(depth=depth, channels=CHANNELS[depth])
        config.write_text(f'_base_ = "{STOCK}/faster_rcnn/{stock}.py"\n{text}{more}')
        torch.manual_seed(0)
        detector = init_detector(str(config), None, device="cpu", cfg_options={"model.backbone.init_cfg": None})
        for name, parameter in detector.named_parameters():
            if name.endswith(("rpn_cls.weight", "fc_cls.weight")):
                torch.nn.init.normal_(parameter, std=0.5)
            if "bn" in name and name.endswith("weight"):
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        meta = {"dataset_meta": {"classes": ("cat", "dog", "cow")}}
        torch.save({"state_dict": detector.state_dict(), "meta": meta}, checkpoint)
        return config, checkpoint

    return both


@pytest.fixture
def found_in_noise(tmp_path):
    """Return what a detector finds by mmdet's own inference, all scores counted."""

    def found(config, checkpoint):
        image = torch.randint(0, 256, (97, 120, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
        options = {"model.test_cfg.rcnn.score_thr": 0.0}
        detector = init_detector(str(config), str(checkpoint), device="cpu", cfg_options=options)
        instances = inference_detector(detector, image.numpy()).pred_instances
        assert len(instances) > 100
        return instances

    return found


@pytest.mark.parametrize(("stock", "depth"), [("faster-rcnn_r50_fpn_1x_coco", 18), ("faster-rcnn_r50_fpn_1x_coco", 50)])
def test_mmdets_detector_becomes_ours_and_finds_the_same(invoke, write, found_in_noise, tmp_path, stock, depth):
    config, checkpoint = write(stock, depth)
    out = tmp_path / "ours.safetensors"
    assert "next: espalier prune" in invoke("import", checkpoint, "--mmdet", config, "--out", out).stderr
    card = read_card(out)
    assert (card.backbone.name, card.backbone.base_channels) == (f"resnet{depth}", 8)
    assert card.classes == ("cat", "dog", "cow")
    assert (card.settings["anchor_scale"], card.settings["max_per_img"], card.settings["sampling_ratio"]) == (4, 150, 0)
    expected, found = found_in_noise(config, checkpoint), found_in_noise(out.with_suffix(".py"), out)
    for key in ("bboxes", "scores", "labels"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_a_detector_that_reads_blue_first_finds_the_same(write, tmp_path):
    blue = (
        "\nmodel['data_preprocessor'] = dict(bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0])\n"
    )
    config, checkpoint = write(more=blue)
    detector, card, _ = detector_from_mmdet(config, checkpoint)
    assert card.preprocessing.mean_rgb == pytest.approx((123.675, 116.28, 103.53))
    assert card.preprocessing.std_rgb == (1, 1, 1)
    conv1 = torch.load(checkpoint, weights_only=True)["state_dict"]["backbone.conv1.weight"]
    assert torch.equal(detector.backbone.net.conv1.weight, conv1.flip(1))


def test_an_imported_detector_is_pruned(invoke, write, tmp_path):
    out, slim = tmp_path / "ours.safetensors", tmp_path / "slim.safetensors"
    config, checkpoint = write()
    invoke("import", checkpoint, "--mmdet", config, "--out", out)
    invoke("prune", "l1_half", out, "--set", "round_to=1", "--out", slim)
    assert load_detector(slim)[1].is_slim


@pytest.mark.parametrize(
    "more",
    [
        "model['backbone']['style'] = 'caffe'",
        "model['rpn_head']['anchor_generator']['ratios'] = [1.0, 2.0, 3.0]",
        "model['test_cfg']['rcnn']['nms'] = dict(type='nms', iou_threshold=0.9)",
    ],
)
def test_a_detector_that_computes_otherwise_stays_mmdets_own(invoke, write, found_in_noise, tmp_path, more):
    config, checkpoint = write(depth=50, more=f"\n{more}\n")
    out = tmp_path / "kept.safetensors"
    assert "note: kept as mmdet's own parts" in invoke("import", checkpoint, "--mmdet", config, "--out", out).stderr
    assert read_card(out).is_foreign
    expected, found = found_in_noise(config, checkpoint), found_in_noise(out.with_suffix(".py"), out)
    for key in ("bboxes", "scores", "labels"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


def test_options_that_the_config_decides_are_refused(invoke, write):
    config, checkpoint = write()
    with pytest.raises(ValueError, match=r"--mmdet: the config says all, got further weights, classes or a size"):
        invoke("import", checkpoint, "--mmdet", config, "--classes", 3)
