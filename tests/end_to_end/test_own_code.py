"""The example of the guide: a network of timm and a criterion of one's own, in all three orderings."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from classify import own_backbone
from classify.checkpoint import read_card
from command.files import sha256_of

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "docs/own"
STAND_IN = """
import torch
from torch import nn

def block(inputs, outputs):
    layers = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    return nn.Sequential(*layers)

class Net(nn.Module):
    default_cfg = {"classifier": "fc", "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.fc = block(3, 16), nn.Linear(16, num_classes)
        self.layers = nn.ModuleList(block(16, 16) for _ in range(4))
        names = [("conv1", 2), *((f"layers.{i}", 4 * 2**i) for i in range(4))]
        self.feature_info = [{"module": name, "reduction": reduction} for name, reduction in names]

    def forward(self, x):
        x = self.conv1(x)
        for layer in self.layers:
            x = layer(x)
        return self.fc(x.mean((2, 3)))

def create_model(name, num_classes):
    assert name == "resnet10t"
    return Net(num_classes)
"""
SMALL = (
    "classification.data.num_train=24",
    "classification.data.num_val=12",
    "classification.train.epochs=1",
    "classification.finetune.epochs=1",
    "detection.data.num_train=8",
    "detection.data.num_val=4",
    "detection.model.image_size_hw=(64,64)",
    "detection.model.num_proposals=10",
    "detection.train.epochs=1",
    "detection.finetune.epochs=1",
    "latency.rounds=10",
    "budgets=('scratch_e',)",
)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The folder of the example, with a stand-in for timm where that is absent."""
    monkeypatch.chdir(EXAMPLE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(own_backbone, "_NAMED", {})
    if not importlib.util.find_spec("timm"):
        (tmp_path / "timm.py").write_text(STAND_IN)
        sys.path.append(str(tmp_path))
    yield EXAMPLE
    for name in ("own", "timm"):
        sys.modules.pop(name, None)


def test_own_network_and_criterion_go_through_all_orderings(example, tmp_path, command):
    sets = [word for text in SMALL for word in ("--set", text)]
    folder = tmp_path / "run"
    code, out, err = command("run", "own_experiment.py", "--out", folder, "--json", *sets)
    assert code == 0, err
    rows = json.loads(out)
    assert [row["ordering"] for row in rows] == ["dense", "prune_transfer", "transfer_prune", "scratch_transfer"]
    assert {row["method"] for row in rows[1:]} == {"LargestWeight"}
    dense, *slim = rows
    assert all(row["macs"] < dense["macs"] and row["params"] < dense["params"] for row in slim)
    cards = [read_card(folder / row["model"]) for row in rows]
    assert {card.backbone.name for card in cards} == {"own:resnet10t"}
    assert len({card.preprocessing.std_rgb for card in cards}) == 1
    assert cards[0].preprocessing.std_rgb[0] != cards[0].preprocessing.mean_rgb[0]
    codes = {}
    for name in ("train_classifier", "prune_classifier"):
        stage = json.loads(next((folder / "stages").glob(f"{name}-*/stage.json")).read_text())
        codes[name] = stage["settings"]["code"]
    ours = sha256_of(example / "own.py")
    assert codes == {"train_classifier": [ours], "prune_classifier": [ours, ours]}  # the network's and the criterion's
