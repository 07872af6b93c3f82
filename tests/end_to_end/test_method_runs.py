"""Whole experiments whose method refits on data, or acts in a training of its own."""

import json
import shutil

import pytest

from classify.checkpoint import read_card

pytestmark = pytest.mark.slow

ORDERINGS = ("orderings=('prune_transfer', 'transfer_prune')", "controls=()")
SMALL = ("calibration.num_batches=12", "skip=('layer3.*', 'layer4.*')")
TRAINED = {"slimming": ("penalty=1e-3",), "structure_selection": (), "thinet": SMALL}


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_is_one_line_of_an_experiment(finished, forked, tiny_arguments, tmp_path, method):
    shutil.copytree(finished[0], tmp_path / "run")  # the dense detector is done
    settings = [f"pruning.{text}" for text in (f"method={method}", *TRAINED[method])]
    learning = ("classification.learning={'epochs': 1, 'batch_size': 16, 'lr': 1e-3}",) if method != "thinet" else ()
    arguments = tiny_arguments(tmp_path / "run", *ORDERINGS, *settings, *learning)
    done = forked(*arguments)
    assert done.returncode == 0, done.stderr
    dense, *slim = json.loads(done.stdout)
    assert [(row["ordering"], row["method"]) for row in slim] == [
        ("prune_transfer", method),
        ("transfer_prune", method),
    ]
    assert all(row["macs"] < dense["macs"] for row in slim)
    epochs = (None, None) if method == "thinet" else (1, 2)
    pruned = ("prune_classifier", "prune_detector")
    assert tuple(row["train_epochs"].get(step) for row, step in zip(slim, pruned, strict=True)) == epochs
    specs = [read_card(tmp_path / "run" / row["model"]).prune_spec for row in slim]
    if method == "structure_selection":  # half of ResNet-18's eight blocks, and no channels
        assert [(len(spec.removed_blocks), len(spec.layers)) for spec in specs] == [(4, 0)] * 2
    assert all(specs)
    assert forked(*arguments).stdout == done.stdout


CLASSIFIERS = """
name = "classifiers"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(
    data=dict(type="shapes", num_train=32, num_val=8), image_size=32,
    train=dict(epochs=1, batch_size=16, lr=1e-3), finetune=dict(epochs=1, batch_size=16, lr=1e-3),
)
pruning = dict(prune_ratios=(0.5,), calibration=dict(num_batches=2, batch_size=8), round_to=1)
methods = dict(l1=dict(), data=dict(criterion="taylor"))
seeds = (0, 1)
latency = dict(rounds=10)
"""


def test_methods_are_compared_without_detectors(espalier, forked, tmp_path):
    (tmp_path / "classifiers.py").write_text(CLASSIFIERS)
    arguments = ["run", tmp_path / "classifiers.py", "--out", tmp_path / "run", "--json"]
    killed = espalier(*arguments, kill_when=(tmp_path / "run/stages", "finetune_classifier-*.partial"))
    assert killed.returncode != 0
    done = forked(*arguments)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    slim = [row for row in rows if row["budget"]]
    assert {(row["method"], row["budget"], row["seed"]) for row in slim} == {
        (method, budget, seed)
        for method in ("l1", "data")
        for budget in ("finetune", "scratch_e", "scratch_b")
        for seed in (0, 1)
    }
    assert all(row["map"] is None and 0 <= row["top1"] <= 1 for row in rows)
    dense = {row["seed"]: row for row in rows if row["ordering"] == "dense"}
    assert all(row["macs"] < dense[row["seed"]]["macs"] and row["latency_ms"] > 0 for row in slim)
    report = (tmp_path / "run/report.html").read_text()
    assert "Methods side by side" in report
    assert "detector" not in report.partition("<h2>Reproduce")[0]
    assert forked(*arguments).stdout == done.stdout
