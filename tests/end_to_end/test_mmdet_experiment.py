"""An experiment with a user's own config of mmdet, and mmdet's tools on what comes out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmdet.apis import init_detector

from classify.backbones import Architecture
from classify.checkpoint import load_weights, read_card, read_weights
from classify.synthetic import SHAPES
from detect import prune_detector, save_detector
from detect.evaluate import evaluate_detector
from detect.foreign import new_given_detector, read_mmdet
from detect.given_data import given_set

TRAINED = Path(__file__).parents[1] / "data/small_detector.safetensors"
EXPERIMENT = """
name = "own"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(
    data=dict(type="shapes", num_train=32, num_val=6),
    image_size=32,
    train=dict(epochs=1, batch_size=16, lr=4e-3),
    finetune=dict(epochs=1, batch_size=16, lr=2e-3),
)
detection = dict(mmdet_config="mine.py")
pruning = dict(prune_ratios=(0.5,), round_to=4)
orderings = ("transfer_prune",)
latency = dict(warmup=1, rounds=10)
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def typed(tmp_path):
    """Run `espalier` in the user's folder, in a process of its own; return standard output and standard error."""
    parts = os.pathsep.join(path for path in sys.path if path)

    def run(*arguments):
        command, env = [sys.executable, "-m", "espalier", *map(str, arguments)], {**os.environ, "PYTHONPATH": parts}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    return run


def test_a_detector_of_the_users_own_config_goes_the_whole_way(own_mmdet, typed, tmp_path):
    own_mmdet("train_cfg = dict(max_epochs=1)")
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    rows, said = typed("run", "exp.py", "--out", "run", "--json")
    dense, slim = json.loads(rows)
    assert "mine.py: replaced are backbone ResNet(depth=50" in said
    assert said.index("replaced are") < said.index("[1/")
    assert (slim["ordering"], slim["train_epochs"]["finetune_detector"]) == ("transfer_prune", 1)
    assert slim["macs"] < dense["macs"]
    assert slim["latency_ms"] > 0
    model = tmp_path / "run" / slim["model"]
    card = read_card(model)
    assert (card.is_foreign, tuple(card.backbone.widths["conv1"])) == (True, (3, 4))
    detector = init_detector(str(model.with_suffix(".py")), str(model), device="cpu")
    assert detector.backbone.net.conv1.weight.shape[0] == 4
    assert detector.backbone.frozen_steps[-1] == "layer1"  # as in mmdet's config of Faster R-CNN


def test_mmdet_and_both_configs_score_a_detector_alike(own_mmdet, typed, tmp_path):
    settings, model = read_mmdet(own_mmdet()), tmp_path / "slim.safetensors"
    detector, card = new_given_detector(settings, Architecture("resnet18", 6, 8), SHAPES, seed=0)
    load_weights(detector, read_weights(TRAINED), str(TRAINED))
    slim, card, _ = prune_detector(detector.eval(), card, 0.1)
    save_detector(model, slim, card, settings)
    found = evaluate_detector(slim, card, given_set(settings, "val"), tmp_path / "work")["map"]
    assert found > 0.1
    out, err = typed("mmdet", "test", "slim.py", model)
    (theirs,) = re.findall(r"coco/bbox_mAP: (\S+)", out + err)
    assert float(theirs) == pytest.approx(found, abs=1e-3)  # mmdet rounds to three places
    for config in ("slim.py", "mine.py"):
        scored, _ = typed("detect", "eval", model, "val/instances.json", "val/images", "--mmdet", config, "--json")
        assert json.loads(scored)["map"] == pytest.approx(found, abs=1e-3)
    typed("mmdet", "train", "slim.py", "--work-dir", "again", "--cfg-options", "train_cfg.max_epochs=1")
    assert (tmp_path / "again/epoch_1.pth").is_file()
