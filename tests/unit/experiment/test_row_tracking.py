"""Curves and figures of an experiment for TensorBoard: beside the stages, which are the same with and without."""

import sys

import pytest

from command.config import read_config
from command.errors import RequestError
from experiment.checks import check_experiment
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.row_tracking import track_rows
from experiment.stages import StageStore
from experiment.steps import MODEL, STEPS, Job

SMALL = (
    "backbone.base_channels=8",
    "classification.image_size=32",
    "classification.train.epochs=2",
    "classification.train.batch_size=6",
)
TRACKED = "tracking=('tensorboard',)"


def config(*overrides):
    return read_config("quickstart", (*SMALL, *overrides), ExperimentConfig)


def scalars(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tracking_changes_no_stage(tmp_path):
    plain, with_it = (make_plan(config(*more), StageStore(tmp_path)).stages for more in ((), (TRACKED,)))
    assert [stage.key for stage in with_it] == [stage.key for stage in plain]


def test_a_trainings_curve_is_written_beside_its_stage(data, tmp_path):
    models = []
    for run, more in (("plain", ()), ("tracked", (TRACKED,))):
        folder = tmp_path / run / "stages/train_classifier-0123.partial"
        folder.mkdir(parents=True)
        STEPS["train_classifier"](Job(config(*more), 0, None, None, data, None), folder, lambda *_: None)
        models.append((folder / MODEL).read_bytes())
        assert not list(folder.rglob("events.out.tfevents.*"))
    assert models[0] == models[1]
    found = scalars(tmp_path / "tracked/tracking/train_classifier-0123")
    assert [step for step, _ in found["epoch/loss"]] == [2, 4]  # twelve images in batches of six
    assert not (tmp_path / "plain/tracking").exists()


def test_rows_have_their_figures_once(tmp_path):
    row = {"name": "dense", "map": 0.25, "top1": None, "macs": 1000, "latency_ms": 2.5, "speedup": 1.0, "seed": 3}
    for _ in range(2):
        track_rows(("tensorboard",), [row], tmp_path)
    assert scalars(tmp_path / "tracking/rows/dense") == {
        "result/map": [(0, 0.25)],
        "result/macs": [(0, 1000.0)],
        "result/latency_ms": [(0, 2.5)],
        "result/speedup": [(0, 1.0)],
    }


def test_a_missing_library_is_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(RequestError, match=r'mlflow is not installed; .* pip install "espalier\[mlflow\]"'):
        check_experiment(config("tracking=('mlflow',)"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
