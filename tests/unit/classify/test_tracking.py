"""What a training writes for TensorBoard, Weights & Biases and MLflow; the last two are stood in for."""

import sys
from types import SimpleNamespace

import pytest

from classify.augmentation import Augmentation, centre_crops
from classify.curve import Curve, Epoch, Iteration
from classify.data import image_folder
from classify.schedule import Schedule
from classify.tracking import Tracker, tracked
from classify.train import train_classifier
from classify.validation import Validation
from command.errors import RequestError

pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


class KilledError(Exception):
    pass


@pytest.fixture
def train(shapes, tiny_net, tmp_path):
    """Train four epochs of three iterations, evaluating every second one, and return the curve."""

    def run(kill_at=None):
        def progress(done, *_):
            if done == kill_at:
                raise KilledError

        data = image_folder(shapes, "train", Augmentation().crops(24))
        validation = Validation(2, image_folder(shapes, "val", centre_crops(24)), lambda curve: None)
        more = {"progress": progress, "validation": validation}
        with tracked(["tensorboard"], tmp_path / "tracking") as tracker:
            schedule = Schedule(4, 12, 0.01, warmup_iters=4)
            return train_classifier(tiny_net(), data, schedule, tmp_path / "run", 0, tracker=tracker, **more)

    return run


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def check(found, curve):
    assert {*found} == {"iteration/loss", "iteration/learning rate", "epoch/loss", "validation/top1", "validation/top5"}
    losses = [epoch.losses["loss"] for epoch in curve.epochs]
    assert [step for step, _ in found["epoch/loss"]] == [3, 6, 9, 12]
    assert [value for _, value in found["epoch/loss"]] == pytest.approx(losses)
    assert [step for step, _ in found["iteration/loss"]] == [one.iteration for one in curve.iterations]
    assert [step for step, _ in found["validation/top1"]] == [6, 12]


def test_tensorboard_gets_losses_rates_and_figures(train, tmp_path):
    curve = train()
    check(scalars(tmp_path / "tracking"), curve)


@pytest.mark.parametrize("kill_at", [2, 8])
def test_a_resumed_training_has_every_point_once(train, tmp_path, kill_at):
    with pytest.raises(KilledError):
        train(kill_at=kill_at)  # 8: after two whole epochs, and two iterations that are done again
    curve = train()
    check(scalars(tmp_path / "tracking"), curve)


def test_a_run_of_several_epochs_is_replayed_at_their_iterations(tmp_path):
    epochs = tuple(Epoch(epoch=n, lr=0.1, losses={"loss": 1.0 / n}, figures={"top1": n / 10}) for n in (1, 2))
    with tracked(["tensorboard"], tmp_path / "run") as tracker:
        tracker.replay(Curve(epochs=epochs, iterations=(Iteration(iteration=5, loss=0.5, lr=0.1),)), num_batches=10)
    found = scalars(tmp_path / "run")
    assert found["epoch/loss"] == [(10, 1.0), (20, 0.5)]
    assert found["validation/top1"] == [(10, pytest.approx(0.1)), (20, pytest.approx(0.2))]
    assert found["iteration/loss"] == [(5, 0.5)]


@pytest.fixture
def recorded(monkeypatch):
    """Stand in for a library; return the calls of its functions."""

    def stand_in(name):
        calls = []

        def recorder(function):
            return lambda *args, **options: calls.append((function, args, options))

        functions = {
            "wandb": ("init", "define_metric", "log", "finish"),
            "mlflow": (
                "set_tracking_uri",
                "get_experiment_by_name",
                "create_experiment",
                "set_experiment",
                "set_tag",
                "log_metrics",
                "end_run",
            ),
        }[name]
        module = SimpleNamespace(**{function: recorder(function) for function in functions}, MlflowException=OSError)
        monkeypatch.setitem(sys.modules, name, module)
        return calls

    return stand_in


def test_weights_and_biases_gets_figures_by_iteration(recorded, tmp_path):
    calls = recorded("wandb")
    with tracked(["wandb"], tmp_path / "net.tracking") as tracker:
        tracker.write({"loss": 0.5, "name": "left out"}, "epoch", 30)
    assert calls == [
        ("init", (), {"name": "net", "dir": str(tmp_path / "net.tracking")}),
        ("define_metric", (), {"name": "*", "step_metric": "iteration"}),
        ("log", ({"epoch/loss": 0.5, "iteration": 30},), {"commit": True}),
        ("finish", (), {}),
    ]


def test_mlflow_gets_figures_in_a_run_that_ends(recorded, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    calls = recorded("mlflow")
    with tracked(["mlflow"], tmp_path / "net.tracking") as tracker:
        tracker.write({"loss": 0.5}, "epoch", 30)
    assert ("set_tracking_uri", ("http://127.0.0.1:5000",), {}) in calls
    assert ("set_tag", ("mlflow.runName", "net"), {}) in calls
    assert calls[-2:] == [("log_metrics", ({"epoch/loss": 0.5}, 30), {}), ("end_run", (), {})]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_training_that_wrote_nothing_begins_no_run(recorded, tmp_path, name):
    calls = recorded(name)
    with tracked([name], tmp_path / "net.tracking"):
        pass
    assert calls == []


def test_a_missing_library_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        RequestError, match=r'wandb is not installed; tracking needs it: pip install "espalier\[wandb\]"'
    ):
        Tracker(["wandb"], tmp_path)
