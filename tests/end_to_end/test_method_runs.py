"""Whole experiments whose method refits on data, or acts in a training of its own."""

import json

import pytest

from classify.checkpoint import read_card

pytestmark = pytest.mark.slow

ORDERINGS = ("orderings=('prune_transfer', 'transfer_prune')", "controls=()")
SMALL = ("calibration.num_batches=12", "skip=('layer3.*', 'layer4.*')")
TRAINED = {"slimming": ("penalty=1e-3",), "thinet": SMALL}


@pytest.mark.parametrize("method", TRAINED)
def test_a_method_is_one_line_of_an_experiment(espalier, tiny_arguments, tmp_path, method):
    settings = [f"pruning.{text}" for text in (f"method={method}", *TRAINED[method])]
    learning = ("classification.learning={'epochs': 1, 'batch_size': 16, 'lr': 1e-3}",) if method == "slimming" else ()
    arguments = tiny_arguments(tmp_path / "run", *ORDERINGS, *settings, *learning)
    done = espalier(*arguments)
    assert done.returncode == 0, done.stderr
    dense, *slim = json.loads(done.stdout)
    assert [(row["ordering"], row["method"]) for row in slim] == [
        ("prune_transfer", method),
        ("transfer_prune", method),
    ]
    assert all(row["macs"] < dense["macs"] for row in slim)
    epochs = {"slimming": (1, 2), "thinet": (None, None)}[method]
    pruned = ("prune_classifier", "prune_detector")
    assert tuple(row["train_epochs"].get(step) for row, step in zip(slim, pruned, strict=True)) == epochs
    assert all(read_card(tmp_path / "run" / row["model"]).prune_spec for row in slim)
    assert espalier(*arguments).stdout == done.stdout
