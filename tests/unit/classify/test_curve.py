import json

import pytest

from classify.curve import Curve, Epoch, Iteration, curve_at_risk, read_curve, save_curve

EPOCHS = (Epoch(epoch=1, lr=0.1, losses={"loss": 2.0}), Epoch(epoch=2, lr=0.05, losses={"loss": 1.0}))
CURVE = Curve(epochs=EPOCHS, iterations=(Iteration(iteration=1, loss=2.5, lr=0.1),))


def test_a_curve_is_read_as_it_was_written(tmp_path):
    save_curve(CURVE, tmp_path / "curve.json")
    assert read_curve(tmp_path / "curve.json") == CURVE
    assert json.loads((tmp_path / "curve.json").read_bytes()) == {
        "version": 1,
        "epochs": [
            {"epoch": 1, "lr": 0.1, "losses": {"loss": 2.0}, "figures": {}},
            {"epoch": 2, "lr": 0.05, "losses": {"loss": 1.0}, "figures": {}},
        ],
        "iterations": [{"iteration": 1, "loss": 2.5, "lr": 0.1}],
    }


def test_figures_stand_at_the_last_epoch_without_those_by_class():
    curve = CURVE.evaluated({"map": 0.5, "map_large": None, "per_class": {"cat": 0.5}})
    assert [epoch.figures for epoch in curve.epochs] == [{}, {"map": 0.5, "map_large": None}]
    assert Curve().evaluated({"map": 0.5}) == Curve()  # of a training that an earlier version finished


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"version": 2}, "version"),
        ({"epochs": [{"epoch": 1, "lr": 0.1, "losses": {"loss": float("nan")}}]}, "epochs.0.losses.loss"),
        ({"epochs": [{"epoch": 0, "lr": 0.1, "losses": {}}]}, "epochs.0.epoch"),
        ({"iterations": [{"iteration": 1, "loss": 1e300, "lr": 0.1}]}, "iterations.0.loss"),
        ({"took_s": 3}, "took_s"),
    ],
)
def test_another_file_is_refused_and_not_replaced(tmp_path, change, where):
    path = tmp_path / "net.curve.json"
    path.write_text(json.dumps({**CURVE.model_dump(mode="json"), **change}))
    with pytest.raises(ValueError, match=rf"net\.curve\.json: not a readable Curve, got {where}: "):
        read_curve(path)
    assert curve_at_risk(tmp_path / "net.safetensors") == (path,)


def test_an_earlier_curve_is_replaced(tmp_path):
    save_curve(CURVE, tmp_path / "net.curve.json")
    assert curve_at_risk(tmp_path / "net.safetensors") == ()
