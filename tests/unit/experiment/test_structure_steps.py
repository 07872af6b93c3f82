"""The steps of an experiment by structure selection, on few generated images: killed, resumed, opened again."""

import shutil
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, read_card, save_model
from classify.synthetic import SHAPES
from command.config import read_config
from detect import DetectorSettings, load_detector, new_detector, save_detector
from experiment.config import ExperimentConfig
from experiment.stages import Stage, StageStore
from experiment.steps import MODEL, STEPS, Job

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"
LEARNING = "{'epochs': 2, 'batch_size': %d, 'lr': 1e-3, 'warmup_iters': 0}"
OVERRIDES = (
    "pruning.method=structure_selection",
    "pruning.penalty=30",
    "classification.image_size=32",
    "classification.train.epochs=1",
    "detection.train.epochs=1",
    f"classification.learning={LEARNING % 6}",
    f"detection.learning={LEARNING % 2}",
)
STAGES = {"prune_classifier": "classifier", "prune_detector": "detector"}


class KilledError(Exception):
    pass


def write(kind, folder):
    if kind == "classifier":
        arch = Architecture("resnet18", len(SHAPES), 16)
        torch.manual_seed(0)
        card = ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)))
        save_model(folder / MODEL, build_classifier(arch), card)
    else:
        settings = DetectorSettings((64, 64), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
        save_detector(folder / MODEL, *new_detector(Architecture("resnet18", 1, 16), SHAPES, settings, seed=0))
    return {"macs": 1}


@pytest.fixture
def work(data, tmp_path):
    """Do a step on what another one wrote, in a folder; return the model file."""
    store = StageStore(tmp_path / "stages")

    def step(name, source, folder, progress=lambda *_: None):
        (tmp_path / folder).mkdir(exist_ok=True)
        config = read_config(QUICKSTART, OVERRIDES, ExperimentConfig)
        job = Job(config, 0, config.pruning.at(0.5), "scratch_e", data, source)
        figures = STEPS[name](job, tmp_path / folder, progress)
        made = Stage(
            folder, {}, (), lambda place, _: shutil.copytree(tmp_path / folder, place, dirs_exist_ok=True) and figures
        )
        store.run(made, progress)
        return store.folder(made)

    def start(kind):
        made = Stage(kind, {}, (), lambda place, _: write(kind, place))
        store.run(made, lambda *_: None)
        return store.folder(made)

    step.start = start
    return step


@pytest.mark.parametrize("step", STAGES)
def test_a_step_killed_in_training_removes_the_same_blocks(work, tmp_path, step):
    source = work.start(STAGES[step])
    whole = work(step, source, "whole")
    calls = []

    def kill(*_):
        calls.append(1)
        if len(calls) == 3:  # in the second epoch
            raise KilledError

    with pytest.raises(KilledError):
        work(step, source, "killed", kill)
    assert list((tmp_path / "killed").rglob("epoch_1.pth"))
    killed = work(step, source, "killed")
    assert (killed / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    assert len(read_card(whole / MODEL).backbone.removed_blocks) == 4


def test_a_classifier_without_blocks_is_drawn_anew_and_transferred(work):
    pruned = work("prune_classifier", work.start("classifier"), "pruned")
    scratch = work("scratch_classifier", pruned, "scratch")
    detector = work("train_detector", work("transfer", scratch, "transfer"), "detector")
    net, card = load_classifier(scratch / MODEL)
    found, detector_card = load_detector(detector / MODEL)
    assert detector_card.backbone.removed_blocks == card.backbone.removed_blocks
    assert detector_card.spec == read_card(pruned / MODEL).spec
    assert found.backbone.net.state_dict().keys() == {name for name in net.state_dict() if not name.startswith("fc.")}
