"""Experiments with a user's own config of mmdet: what is refused, and what a change repeats."""

import json
from pathlib import Path

import pytest

from command.config import read_config
from command.errors import RequestError
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.stages import StageStore

EXPERIMENT = """
name = "own"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(
    data=dict(type="shapes", num_train=60, num_val=12),
    image_size=32,
    train=dict(epochs=1, batch_size=16, lr=4e-3),
    finetune=dict(epochs=1, batch_size=16, lr=2e-3),
)
detection = dict(mmdet_config="mine.py")
"""


@pytest.fixture
def stages(own_mmdet, tmp_path):
    """Return name and hash of the planned stages, with texts added to mmdet's config and to the experiment's."""

    def planned(text="", *overrides):
        own_mmdet(text)
        (tmp_path / "exp.py").write_text(EXPERIMENT)
        config = read_config(tmp_path / "exp.py", overrides, ExperimentConfig)
        return {(stage.name, stage.hash) for stage in make_plan(config, StageStore(Path("nowhere"))).stages}

    return planned


TRAINED = {"train_detector", "prune_detector", "finetune_detector", "evaluate_detector", "export", "latency"}


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("# said\nunused = 1\nlog_level = 'ERROR'", set()),
        ("val_dataloader = dict(batch_size=2)", {"evaluate_detector"}),
        ("optim_wrapper = dict(clip_grad=dict(max_norm=5))", TRAINED),
        ("train_dataloader = dict(batch_size=3)", TRAINED),
        ("model = dict(backbone=dict(frozen_stages=2))", {"transfer", *TRAINED}),
    ],
)
def test_a_change_of_mmdets_config_repeats_what_depends_on_it(stages, text, repeated):
    assert {name for name, _ in stages(text) - stages()} == repeated


def test_a_change_of_the_data_repeats_what_reads_it(stages, tmp_path):
    before = stages()
    for name, repeated in (("more", TRAINED), ("val", {"evaluate_detector", "export", "latency"})):
        file = tmp_path / name / "instances.json"
        rows = json.loads(file.read_text())
        rows["images"].reverse()
        file.write_text(json.dumps(rows))
        assert {stage for stage, _ in stages() - before} == repeated
        before = stages()


def test_a_finetuning_of_its_own_repeats_that_alone(stages, own_mmdet):
    own_mmdet("train_cfg = dict(max_epochs=1)", "shorter.py")
    more = stages("", "detection.mmdet_finetune=shorter.py") - stages()
    assert {name for name, _ in more} == {"finetune_detector", "evaluate_detector", "export", "latency"}


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("controls=('dense_longer',)", "controls: not used with mmdet_config"),
        ("pruning.steps=2", "pruning.steps: not used with mmdet_config"),
        ("detection.train.epochs=2", "detection.train: not used with mmdet_config"),
        ("detection.mmdet_config=none.py", "detection: none.py: no such file"),
        ("detection.mmdet_finetune=other.py", "other.py: model: another than in mine.py"),
        ("detection.mmdet_config=exp.py", "detection: exp.py: cannot build a detector, got model=None"),
    ],
)
def test_what_does_not_fit_mmdets_config_is_one_line(stages, own_mmdet, override, fault):
    own_mmdet("model = dict(roi_head=dict(bbox_head=dict(fc_out_channels=8)))", "other.py")
    part, _, value = override.partition("=")
    extra = {"detection.train.epochs": "detection.train={'epochs': 2}", "pruning.steps": "pruning={'steps': 2}"}
    with pytest.raises(RequestError) as error:
        stages("", extra.get(part, f"{part}={value}"))
    assert fault in str(error.value)
    assert "\n" not in str(error.value)
