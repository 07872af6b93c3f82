"""Trainings between the steps of a cut, or between the layers of a refitted one, and statistics after it."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, save_model
from classify.curve import CURVE, read_curve
from classify.synthetic import SHAPES
from command.config import read_config
from detect import DetectorSettings, load_detector, new_detector, save_detector
from experiment.config import ExperimentConfig
from experiment.stages import Stage, StageStore
from experiment.steps import MODEL, STEPS, Job
from prune import PruneSpec, slim_model

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"
SMALL = (
    "terms=paper",
    "classification.image_size=32",
    "classification.finetune.batch_size=6",
    "detection.finetune.batch_size=2",
    "pruning.round_to=1",
    "pruning.calibration={'batch_size': 6, 'num_batches': 2}",
)
STEPWISE = ("pruning.steps=3", "pruning.ratios={'layer2.*': 0.25}")
LAYERWISE = ("pruning.method=thinet", "pruning.epochs_per_layer=1", "pruning.skip=('layer[234].*',)")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The stages of an untrained classifier and detector."""
    store = StageStore(tmp_path_factory.mktemp("sources"))

    def classifier(folder, progress):
        arch = Architecture("resnet18", len(SHAPES), 8)
        torch.manual_seed(0)
        card = ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)))
        save_model(folder / MODEL, build_classifier(arch), card)
        return {"macs": 10**9}

    def detector(folder, progress):
        settings = DetectorSettings((64, 64), fpn_channels=8, head_channels=16, num_proposals=20, roi_samples=16)
        save_detector(folder / MODEL, *new_detector(Architecture("resnet18", 1, 8), SHAPES, settings, seed=0))
        return {}

    stages = {"prune_classifier": Stage("c", {}, (), classifier), "prune_detector": Stage("d", {}, (), detector)}
    for stage in stages.values():
        store.run(stage, lambda *_: None)
    return {step: store.folder(stage) for step, stage in stages.items()}


@pytest.fixture
def cut(data, sources, tmp_path):
    """Do a step that prunes; return its folder and figures."""

    def run(step, *overrides, name="cut", progress=lambda *_: None):
        config = read_config(QUICKSTART, (*SMALL, "orderings=()", *overrides), ExperimentConfig)
        (tmp_path / name).mkdir(exist_ok=True)
        figures = STEPS[step](
            Job(config, 0, config.pruning.at(0.5), "finetune", data, sources[step]), tmp_path / name, progress
        )
        return tmp_path / name, figures

    return run


LOADERS = {"prune_classifier": load_classifier, "prune_detector": load_detector}
SLOW = pytest.param("prune_detector", marks=pytest.mark.slow)  # mmdet's detectors take seconds to build and train
each_step = pytest.mark.parametrize("step", ["prune_classifier", SLOW])


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@each_step
def test_steps_end_with_the_widths_of_one_cut_counted_from_dense(cut, sources, step):
    at_once, in_steps = (cut(step, *options, name=str(options)) for options in (STEPWISE[1:], STEPWISE))
    (one, one_card), (slim, card) = (LOADERS[step](folder / MODEL) for folder, _ in (at_once, in_steps))
    assert card.backbone == one_card.backbone
    assert shapes(slim) == shapes(one)
    dense, _ = LOADERS[step](sources[step] / MODEL)
    names = "" if step == "prune_classifier" else "backbone.net."
    spec = PruneSpec.from_json(json.dumps(card.spec))
    rebuilt = slim_model(dense.get_submodule(names.rstrip(".")), spec)
    assert shapes(rebuilt) == shapes(slim.get_submodule(names.rstrip(".")))
    assert in_steps[1]["untouched"] == at_once[1]["untouched"]


@each_step
def test_trainings_between_steps_count_and_have_a_curve(cut, step):
    folder, figures = cut(step, *STEPWISE, "pruning.epochs_per_step=2")
    assert figures["epochs"] == (3 - 1) * 2
    assert [epoch.epoch for epoch in read_curve(folder / CURVE).epochs] == [1, 2, 3, 4]


def test_one_cut_trains_nothing(cut):
    folder, figures = cut("prune_classifier")
    assert "epochs" not in figures
    assert not (folder / CURVE).exists()


def test_each_refitted_layer_is_followed_by_a_training(cut, sources):
    folder, figures = cut("prune_classifier", *LAYERWISE)
    assert figures["epochs"] == 2  # conv1 of both blocks of layer1
    stems = [load_classifier(place / MODEL)[0].conv1.weight for place in (folder, sources["prune_classifier"])]
    assert not torch.equal(*stems)  # which no refit changes


class KilledError(BaseException):
    """As if the process had ended."""


@pytest.mark.parametrize("num_iterations", [2, 3])  # of two trainings with two each
@pytest.mark.parametrize("options", [STEPWISE, LAYERWISE], ids=["steps", "layers"])
def test_a_cut_killed_in_a_training_resumes_to_the_same_bytes(cut, options, num_iterations):
    done = []

    def kill(*_):
        done.append(1)
        if len(done) == num_iterations:
            raise KilledError

    whole, _ = cut("prune_classifier", *options, name="whole")
    with pytest.raises(KilledError):
        cut("prune_classifier", *options, name="killed", progress=kill)
    again, figures = cut("prune_classifier", *options, name="killed")
    assert figures["epochs"] == 2
    for file in (MODEL, CURVE):
        assert (again / file).read_bytes() == (whole / file).read_bytes()


@each_step
def test_statistics_are_estimated_anew_before_anything_is_saved(cut, step):
    size = "pruning.calibration.batch_size=2"
    plain, one, two, other = (
        LOADERS[step](cut(step, size, f"pruning.recalibrate={num}", name=name)[0] / MODEL)[0].state_dict()
        for num, name in ((0, "plain"), (2, "one"), (2, "two"), (1, "other"))
    )
    changed = {name for name, tensor in plain.items() if not torch.equal(tensor, one[name])}
    assert changed
    assert all("running_" in name or "num_batches" in name for name in changed)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_strict_budget_counts_the_trainings_between(cut, data, tmp_path):
    folder, figures = cut("prune_classifier", *STEPWISE)
    store, again = StageStore(tmp_path), lambda place, progress: shutil.copy(folder / MODEL, place) and figures
    store.run(stage := Stage("slim", {}, (), again), lambda *_: None)
    overrides = (*SMALL, *STEPWISE, "strict_budget=True", "classification.train.epochs=1")
    config = read_config(QUICKSTART, overrides, ExperimentConfig)
    (tmp_path / "scratch").mkdir()
    job = Job(config, 0, config.pruning.at(0.5), "scratch_e", data, store.folder(stage))
    done = STEPS["scratch_classifier"](job, tmp_path / "scratch", lambda *_: None)
    assert done["epochs"] == 1 + 3 + 2  # dense, finetune, between three steps


def test_longer_dense_training_has_the_epochs_between_steps_too():
    lengths = ("detection.train.epochs=6", "detection.finetune.epochs=4")
    config = read_config(QUICKSTART, [*lengths, "pruning.steps=4", "pruning.epochs_per_step=5"], ExperimentConfig)
    assert config.with_longer_training().detection.train.epochs == 6 + 4 + 3 * 5


@pytest.mark.parametrize(
    ("schedule", "num", "ratios", "own"),
    [
        ("linear", 3, (0.25, 0.5, 0.75), (0.3, 0.6, 0.9)),
        ("exponential", 2, (0.5, 0.75), (0.683772233983, 0.9)),  # half is left twice; 1 - sqrt(0.1)
    ],
)
def test_ratios_of_the_steps(schedule, num, ratios, own):
    overrides = (f"steps={num}", f"step_schedule={schedule}", "ratios={'layer1.*': 0.9}")
    pruning = read_config(QUICKSTART, [f"pruning.{text}" for text in overrides], ExperimentConfig).pruning
    recipes = [*pruning.at(0.75).in_steps()]
    assert tuple(recipe.prune_ratio for recipe in recipes) == ratios
    assert tuple(recipe.ratios["layer1.*"] for recipe in recipes) == own
    assert recipes[-1] == pruning.at(0.75)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("steps=2", "method=slimming"), "pruning.steps: not used with slimming, got 2; expected 1"),
        (("steps=2", "method=soft_filters"), "pruning.steps: not used with soft_filters, got 2; expected 1"),
        (("steps=2", "method=thinet", "epochs_per_layer=1"), "steps: not used with epochs_per_layer, got 2"),
        (("steps=2", "widths={'conv1': 8}"), "steps: each goes by ratios, got widths for conv1; expected ratios"),
        (("steps=0",), "pruning.steps: "),
        (("step_schedule=cubic",), "step_schedule: unknown, got 'cubic'; expected one of exponential, linear"),
        (("epochs_per_layer=1",), "epochs_per_layer: not used with l1, got 1; expected 0"),
        (("method=thinet", "epochs_per_layer=1"), "epochs_per_layer: for classifiers alone, got transfer_prune"),
        (("dense_widths={'conv1': 8}",), "dense_widths: not used in an experiment"),
    ],
)
def test_contradictions_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        read_config(QUICKSTART, [f"pruning.{text}" for text in overrides], ExperimentConfig)
    assert "\n" not in str(caught.value)
