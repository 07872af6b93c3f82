"""An experiment with a user's own config of mmdet, and mmdet's tools on what comes out."""

import json
import os
import re
import subprocess
import sys

import pytest

from classify.checkpoint import read_card

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


def test_a_detector_of_the_users_own_config_goes_the_whole_way(own_mmdet, tmp_path):
    own_mmdet("train_cfg = dict(max_epochs=1)")
    (tmp_path / "exp.py").write_text(EXPERIMENT)
    parts = os.pathsep.join(path for path in sys.path if path)

    def typed(*arguments):
        command, env = [sys.executable, "-m", "espalier", *map(str, arguments)], {**os.environ, "PYTHONPATH": parts}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

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
    out, err = typed("mmdet", "test", model.with_suffix(".py"), model)
    (theirs,) = re.findall(r"coco/bbox_mAP: (\S+)", out + err)
    assert float(theirs) == pytest.approx(slim["map_framework"], abs=1e-3)  # mmdet rounds to three places
    scored, _ = typed("detect", "eval", model, "val/instances.json", "val/images", "--mmdet", "mine.py", "--json")
    assert json.loads(scored)["map"] == pytest.approx(slim["map_framework"], abs=1e-3)
