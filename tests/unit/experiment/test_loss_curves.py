import json
from xml.etree import ElementTree

import pytest

from classify.curve import Curve, Epoch, save_curve
from experiment import plots
from experiment.loss_curves import loss_curves
from experiment.plots import LossCurve
from experiment.report import write_report
from experiment.results import read_results

LINES = [
    ("dense", "dense", ["dense"]),
    ("prune", "prune_transfer", ["prune"]),
    ("later", "transfer_prune", ["later"]),
    ("scratch", "scratch_transfer", ["scratch"]),
]
FIRST = {"train_classifier": "dense.json"}
FILES = {
    "dense": FIRST,
    "prune": {**FIRST, "finetune_classifier": "prune.json"},
    "later": {**FIRST, "finetune_detector": "det.json"},
    "scratch": {**FIRST, "scratch_classifier": "scratch.json"},
}


@pytest.fixture
def write(tmp_path):
    """Write a curve with these losses, one an epoch."""

    def curve(name, *losses):
        epochs = tuple(Epoch(epoch=i, lr=0.1, losses={"loss": loss}) for i, loss in enumerate(losses, 1))
        save_curve(Curve(epochs=epochs), tmp_path / name)

    return curve


@pytest.fixture
def trained(write, tmp_path):
    """The folder of the curves in `FILES`."""
    write("dense.json", 3.0, 2.0)
    write("prune.json", 1.0)
    write("scratch.json", 4.0, 3.5)
    write("det.json", 5.0)
    return tmp_path


def test_a_shared_training_is_drawn_once_and_goes_on_where_it_ended(trained):
    assert loss_curves("classifier", LINES, FILES, trained) == [
        LossCurve("dense", "dense", (1, 2), (3.0, 2.0)),
        LossCurve("prune", "prune_transfer", (3,), (1.0,)),
        LossCurve("scratch", "scratch_transfer", (1, 2), (4.0, 3.5)),
    ]
    assert loss_curves("detector", LINES, FILES, trained) == [LossCurve("later", "transfer_prune", (1,), (5.0,))]


def test_seeds_become_their_mean(write, tmp_path):
    write("0.json", 3.0, 2.0)
    write("1.json", 4.0, 1.0)
    files = {f"dense-{seed}": {"train_classifier": f"{seed}.json"} for seed in (0, 1)}
    (curve,) = loss_curves("classifier", [("dense", "dense", list(files))], files, tmp_path)
    assert curve.losses == (3.5, 1.5)


def test_trainings_without_a_curve_are_left_out(trained):
    (trained / "prune.json").unlink()
    labels = [curve.label for curve in loss_curves("classifier", LINES, {**FILES, "dense": {}}, trained)]
    assert labels == ["prune", "scratch"]  # the dense training is drawn with the first that has it
    assert loss_curves("classifier", LINES, {}, trained) == []


def test_the_plot_has_labels_units_and_the_colours_of_the_orderings():
    labels = ("a <b> $x", "c", "d")
    curves = [LossCurve(label, "prune_transfer", (1, 2), (2.0, 1e38)) for label in labels]
    svg = plots.loss_plot(curves, "nats")
    texts = {element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")}
    assert {*labels, "epoch", "training loss (nats)"} <= texts
    assert plots.STYLE["prune_transfer"][0] in svg
    assert svg.count("stroke-dasharray") >= 2  # lines of one colour differ
    assert plots.loss_plot([], "nats") == ""


@pytest.fixture
def with_curves(results, write):
    """The results with a curve of the dense detector in the run's folder."""
    write("stages-curve.json", 2.0, 1.0)
    return results | {"curves": {"dense": {"train_detector": "stages-curve.json"}}}


def test_the_report_draws_the_curves_it_has(with_curves, results, tmp_path):
    text = write_report(with_curves, tmp_path).read_text("utf-8")
    assert "Detection: loss" in text
    assert "Classification: loss" not in text
    assert "training loss (no unit)" in text
    assert "training loss" not in write_report(results, tmp_path).read_text("utf-8")


def test_a_damaged_curve_is_named(with_curves, tmp_path):
    (tmp_path / "stages-curve.json").write_text("{")
    with pytest.raises(ValueError, match=r"stages-curve\.json: not a readable Curve, got file: "):
        write_report(with_curves, tmp_path)


def test_a_curve_outside_the_run_is_refused(results, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results | {"curves": {"dense": {"train_detector": "../curve.json"}}}))
    with pytest.raises(ValueError, match=r"curves\.dense\.train_detector: .*outside the run folder"):
        read_results(path)
