"""What someone types who brings a network of their own, from a folder outside the checkout."""

import json
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from torchvision.models import resnet18

STOCK = Path(mmdet.__file__).parent / ".mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
SMALL = """
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=dict(_delete_=True, type="Pretrained", checkpoint="none")),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=3),
    ),
)
"""


@pytest.fixture
def typed(forked: Any, tmp_path: Path) -> Any:
    """Run a command in an empty folder; return its standard output."""

    def run(line: str) -> str:
        done = forked(*line.split(), folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    return run


def test_an_untrained_detector_is_pruned_and_timed_in_three_commands(typed: Any) -> None:
    typed("import resnet18 --detector --classes 3 --size-hw 96 128")
    typed("prune l1_half resnet18-detector.safetensors")
    files = "resnet18-detector.safetensors resnet18-detector-l1-0.5.safetensors"
    dense, slim = json.loads(typed(f"deploy bench {files} --rounds 3 --warmup 1 --json"))["rows"]
    assert [dense["name"], slim["name"]] == files.split()
    assert slim["speedup"] > 0


def test_weights_of_torchvision_are_pruned_and_exported(typed: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": resnet18(num_classes=5).state_dict()}, tmp_path / "mine.pth")
    typed("import resnet18 mine.pth --out mine.safetensors")
    typed("prune l1_half mine.safetensors")
    typed("deploy export mine-l1-0.5.safetensors")
    description = json.loads((tmp_path / "mine-l1-0.5.deploy/deploy.json").read_text())
    assert description["classes"] == [f"class {label}" for label in range(5)]
    assert set(description["meaning"]) == {"image", "scores"}


def test_a_checkpoint_of_mmdet_is_pruned_and_exported(typed: Any, tmp_path: Path) -> None:
    from mmengine.config import Config

    from detect.foreign import build_detector  # with the operators that mmdet needs

    (tmp_path / "config.py").write_text(f'_base_ = "{STOCK}"\n{SMALL}')
    torch.manual_seed(0)
    theirs = build_detector(Config.fromfile(tmp_path / "config.py").model, is_loaded_next=True)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "theirs.pth")
    typed("import theirs.pth --mmdet config.py")
    typed("prune l1_half theirs-detector.safetensors --set round_to=1")
    typed("deploy export theirs-detector-l1-0.5.safetensors --set size_hw=(96,128)")
    description = json.loads((tmp_path / "theirs-detector-l1-0.5.deploy/deploy.json").read_text())
    assert description["inputs"]["image"]["shape"] == [1, 3, 96, 128]
    assert "-1 at unused places" in description["meaning"]["labels"]
