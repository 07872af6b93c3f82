"""mmdet's own tools on a slim detector, as its users type them, outside the checkout."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture
from classify.checkpoint import load_weights, read_weights
from classify.synthetic import SHAPES
from detect import DetectorSettings, new_detector, prune_detector, save_detector
from detect.synthetic import write_scenes

TRAINED = Path(__file__).parents[1] / "data/small_detector.safetensors"
DATA = """
resize = dict(type="Resize", scale=(128, 128), keep_ratio=True)
pack = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
pipeline = [dict(type="LoadImageFromFile"), resize, dict(type="LoadAnnotations", with_bbox=True), pack]
data = dict(
    data_root="scenes/",
    ann_file="instances.json",
    data_prefix=dict(img="images/"),
    metainfo=metainfo,
    pipeline=pipeline,
)
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False, dataset=data)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=data)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file="scenes/instances.json")
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=1)
"""
SETTINGS = {"fpn_channels": 16, "head_channels": 32, "num_proposals": 50, "roi_samples": 16, "anchor_scale": 4}
CONFIG = """
_base_ = [
    "slim_base.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]
load_from = "slim.safetensors"
metainfo = {{_base_.metainfo}}
"""
CASCADE = """
_base_ = "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"
head = dict(type="Shared2FCBBoxHead", in_channels=16, fc_out_channels=32, num_classes=6, reg_class_agnostic=True)
model = dict(
    backbone=dict(_delete_=True, type="ResNet", depth=18, base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=[head] * 3),
)
"""
"""Cascade R-CNN as stock configs have it, but small, on the same data."""
SCRIPT = """
from mmdet.apis import inference_detector, init_detector

detector = init_detector("slim.py", "slim.safetensors", device="cpu")
print("found", len(inference_detector(detector, "scenes/images/00000.png").pred_instances))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a slim detector, eight scenes, and a config of mmdet's parts around both."""
    folder = tmp_path_factory.mktemp("place")
    net, card = new_detector(
        Architecture("resnet18", 1, 8), SHAPES, DetectorSettings(image_size_hw=(128, 128), **SETTINGS), seed=0
    )
    load_weights(net, read_weights(TRAINED), str(TRAINED))
    slim, card, _ = prune_detector(net.eval(), card, 0.1, parts=("backbone", "neck", "rpn_head", "roi_head"))
    save_detector(folder / "slim.safetensors", slim, card)
    write_scenes(folder / "scenes", 8, (96, 120), seed=0)
    (folder / "mine.py").write_text(CONFIG + DATA)
    (folder / "script.py").write_text(SCRIPT)
    return folder


@pytest.fixture
def typed(place, forked):
    """Run `espalier` in that folder, in a process of its own; return what it prints."""

    def run(*arguments, expected=0):
        done = forked(*arguments, folder=place)
        assert done.returncode == expected, done.stderr
        return done.stdout if "--json" in arguments else done.stdout + done.stderr

    return run


def test_test_py_scores_as_detect_eval_does_and_its_results_are_drawn(typed, place):
    said = typed("mmdet", "test", "mine.py", "slim.safetensors", "--out", "found.pkl")
    scored = json.loads(typed("detect", "eval", "slim.safetensors", "scenes/instances.json", "scenes/images", "--json"))
    (theirs,) = re.findall(r"coco/bbox_mAP: (\S+)", said)
    assert scored["map"] > 0.1
    assert float(theirs) == pytest.approx(scored["map"], abs=1e-3)  # mmdet rounds to three places
    typed("mmdet", "analyze_results", "mine.py", "found.pkl", "drawn", "--topk", "2")
    assert len([*place.glob("drawn/good/*.png")]) == 2


def test_train_py_starts_from_the_slim_weights(typed, place):
    said = typed("mmdet", "train", "mine.py", "--work-dir", "work")
    assert "Load checkpoint from slim.safetensors" in said
    assert (place / "work/epoch_1.pth").is_file()


def test_get_flops_and_browse_dataset_take_the_config(typed, place):
    said = typed("mmdet", "get_flops", "mine.py", "--num-images", "1")
    (params,) = re.findall(r"Params: (\S+)M", said)
    stored = sum(weight.numel() for weight in read_weights(place / "slim.safetensors").values())
    assert float(params) == pytest.approx(stored / 1e6, rel=0.05)  # with BatchNorm's statistics
    typed("mmdet", "browse_dataset", "mine.py", "--not-show", "--output-dir", "shown")
    assert len([*place.glob("shown/*.png")]) == 8


def test_a_users_own_program_opens_it(place):
    ours, plain = ["-m", "espalier", "mmdet", "script.py"], ["-c", f"import detect.register\n{SCRIPT}"]
    for words in (ours, plain):  # in processes that have imported nothing
        done = subprocess.run([sys.executable, *words], cwd=place, capture_output=True, text=True, timeout=300)
        assert "found " in done.stdout, done.stderr


def test_an_unknown_tool_is_one_line_and_a_failing_one_exits_1(typed):
    assert (
        typed("mmdet", "get_flop", expected=2).strip().startswith("espalier: get_flop: no program of mmdet; expected")
    )
    assert "FileNotFoundError" in typed("mmdet", "train", "none.py", expected=1)
    assert "analysis_tools/get_flops" in typed("mmdet")


def test_a_slim_cascade_of_mmdet_is_tested_and_trained_from_its_weights(typed, place):
    from mmengine.config import Config

    from detect.model import build_detector

    (place / "cascade.py").write_text(f"{CASCADE}metainfo = dict(classes={SHAPES})\n{DATA}")
    dense = build_detector(Config.fromfile(place / "cascade.py").model, seed=0, is_loaded_next=True)
    torch.save({"state_dict": dense.state_dict(), "meta": {"dataset_meta": {"classes": SHAPES}}}, place / "cascade.pth")
    typed("prune", "l1_half", "cascade.pth", "--mmdet", "cascade.py", "--out", "less.safetensors")
    assert "coco/bbox_mAP" in typed("mmdet", "test", "less.py", "less.safetensors")
    assert "coco/bbox_mAP" in typed("mmdet", "test", "cascade.py", "cascade.pth")
    said = typed("mmdet", "train", "less.py", "--work-dir", "cascade")
    assert f"Load checkpoint from {place}/less.safetensors" in said
    assert "Flops" in typed("mmdet", "get_flops", "less.py", "--num-images", "1")
