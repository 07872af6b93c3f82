import io
import shutil

import pytest
from rich.console import Console

from command.config import read_config
from command.errors import RequestError
from experiment.claims import Claims
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.plan_table import plan_figures, plan_table
from experiment.planned import check_disk, planned
from experiment.stages import Stage, StageStore

CONFIG = """
name = "planned"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(
    data=dict(type="shapes", num_train=16, num_val=8), image_size=32,
    train=dict(epochs=1, batch_size=8, lr=1e-3), finetune=dict(epochs=1, batch_size=8, lr=1e-3),
)
pruning = dict(prune_ratios=(0.5,), round_to=1)
"""


def config(tmp_path, *overrides):
    (tmp_path / "planned.py").write_text(CONFIG)
    return read_config(tmp_path / "planned.py", overrides, ExperimentConfig)


def why(figures):
    return {stage["name"]: stage["why"] for stage in figures["stages"]}


def test_a_plan_writes_nothing_and_lists_every_stage(tmp_path):
    figures = plan_figures(config(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert (figures["num_rows"], figures["num_done"], figures["left_s"]) == (4, 0, None)
    assert why(figures)["train_classifier"] == "new: no stage of that name was done"
    text = io.StringIO()
    Console(file=text, width=200).print(plan_table(figures))
    assert "4 rows; 0 stages done, 16 left: not measured yet" in text.getvalue()


def test_a_plan_says_what_is_there_and_what_a_setting_changes(tmp_path):
    settings, store = config(tmp_path), StageStore(tmp_path / "run/stages")
    for stage in make_plan(settings, store).stages[:2]:  # the generated images
        store.run(stage, lambda *_: None)
    figures = plan_figures(settings, tmp_path / "run")
    assert figures["num_done"] == 2
    assert why(figures)["train_shapes"] is None
    assert why(figures)["train_classifier"] == "new: no stage of that name was done"
    changed = plan_figures(config(tmp_path, "classification.data.seed=5"), tmp_path / "run")
    assert why(changed)["train_shapes"] == "setting seed: 0 -> 5"
    known = {stage["name"]: stage["wall_s"] for stage in changed["stages"]}
    assert known["train_shapes"] is not None  # as long as the other one took
    assert known["latency"] is None


def test_a_stage_that_was_interrupted_goes_on(tmp_path):
    settings, store = config(tmp_path), StageStore(tmp_path / "run/stages")
    first = make_plan(settings, store).stages[0]
    (store.root / f"{store.folder(first).name}.partial").mkdir(parents=True)
    assert why(plan_figures(settings, tmp_path / "run"))[first.name] == "was interrupted; goes on"


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def nothing(*_):
    return {}


def reasons(stages, store):
    return [row["why"] for row in planned(stages, store)]


def test_a_stage_that_was_changed_is_not_listed_as_done(store):
    data = Stage("data", {}, (), nothing)
    train = Stage("train", {}, (data,), nothing)
    for stage in (data, train):
        store.run(stage, nothing)
    (store.folder(data) / "mine.txt").touch()
    first, second = reasons((data, train), store)
    place = store.folder(data) / "mine.txt"
    assert first == f"damaged, {place}: not as the stage wrote it, added or missing; --redo does it again"
    assert second == f"damaged, made from {store.folder(data).name}; --redo does it again"


def test_what_differs_is_named_with_both_values(store):
    """Of two finished ones the reason is the difference from that which is more like it."""
    data, other = (Stage("data", {"seed": seed}, (), nothing) for seed in (0, 1))
    old = Stage("train", {"schedule": {"lr": 0.1, "epochs": 2}, "seed": 0}, (data,), nothing)
    unlike = Stage("train", {"schedule": {"lr": 0.3, "epochs": 9}, "seed": 5}, (data,), nothing)
    for stage in (data, old, unlike):
        store.run(stage, nothing)
    new = Stage("train", {"schedule": {"lr": 0.2, "epochs": 2}, "ema": 0.9, "seed": 0}, (data,), nothing)
    moved = Stage("train", {"schedule": {"lr": 0.1, "epochs": 2}, "seed": 0}, (other,), nothing)
    assert reasons((new, other, moved), store) == [
        "setting ema: none -> 0.9, setting schedule.lr: 0.1 -> 0.2",
        "setting seed: 0 -> 1",
        "input data changed",
    ]


def test_a_stage_that_failed_last_time_says_why(store):
    bad = Stage("bad", {}, (), nothing)
    Claims(store.root).add(bad, "loss: nan\u202e")
    assert reasons([bad], store) == [r"failed last time: loss: nan\u202e"]


def test_a_disk_that_is_too_small_for_the_plan_is_refused(store, monkeypatch):
    """A finished stage of that name took 5000 bytes, and 12,000 are free: two more fit, three do not."""

    def write(folder, progress):
        (folder / "weights").write_bytes(bytes(5000))
        return {}

    store.run(Stage("train", {"seed": 0}, (), write), nothing)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 12_000))
    left = [Stage("train", {"seed": seed}, (), write) for seed in (1, 2, 3)]
    check_disk([*left[:2], Stage("unknown", {}, (), write)], store)
    with pytest.raises(RequestError, match=r"stages: 0.0 GB free on its disk, the stages that are left take about 0.0"):
        check_disk(left, store)
