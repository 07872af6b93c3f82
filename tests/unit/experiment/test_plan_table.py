import io

import pytest
from rich.console import Console

from command.config import read_config
from command.errors import RequestError
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.plan_table import plan_figures, plan_table
from experiment.stages import StageStore

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
    assert why(figures)["train_classifier"] == "train_shapes must run first"
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
    assert why(figures)["train_classifier"] == "no stage of that name was done"
    changed = plan_figures(config(tmp_path, "classification.data.seed=5"), tmp_path / "run")
    assert why(changed)["train_shapes"] == "differs from a finished one in seed"
    known = {stage["name"]: stage["wall_s"] for stage in changed["stages"]}
    assert known["train_shapes"] is not None  # as long as the other one took
    assert known["latency"] is None


def test_a_stage_that_was_interrupted_goes_on(tmp_path):
    settings, store = config(tmp_path), StageStore(tmp_path / "run/stages")
    first = make_plan(settings, store).stages[0]
    (store.root / f"{store.folder(first).name}.partial").mkdir(parents=True)
    assert why(plan_figures(settings, tmp_path / "run"))[first.name] == "was interrupted; goes on"


def test_a_stage_that_was_changed_is_not_listed_as_done(tmp_path):
    settings, store = config(tmp_path), StageStore(tmp_path / "run/stages")
    first = make_plan(settings, store).stages[0]
    store.run(first, lambda *_: None)
    (store.folder(first) / "mine.txt").touch()
    with pytest.raises(RequestError, match=r"mine.txt: not as the stage wrote it"):
        plan_figures(settings, tmp_path / "run")
