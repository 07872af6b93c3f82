"""Early-bird tickets as a step of an experiment: drawn from random weights, counted, and refused where it cannot be."""

from pathlib import Path

import pytest
import torch
from torch import nn

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, read_weights, save_model
from classify.synthetic import SHAPES
from command.config import read_config
from command.errors import WorkError
from experiment.config import ExperimentConfig
from experiment.cutting import check_settled
from experiment.pipeline import make_plan
from experiment.stages import Stage, StageStore
from experiment.steps import MODEL, STEPS, Job
from experiment.train_macs import classifier_macs
from prune import Recipe
from prune.learn.early_bird import EarlyBird

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"
CLASSIFIERS = "orderings=('prune_transfer', 'scratch_transfer')"
EARLY = "pruning.method=early_bird"
OVERRIDES = (
    CLASSIFIERS,
    EARLY,
    "pruning.window=2",
    "pruning.tolerance=1",  # any two masks agree
    "classification.image_size=32",
    "classification.learning={'epochs': 4, 'batch_size': 6, 'lr': 1e-3}",
)


class KilledError(BaseException):
    """As if the process had ended."""


@pytest.fixture
def draw(data, tmp_path):
    """Do the step after a dense classifier of some seed; return the weights, the figures and the dense network."""

    def run(dense_seed, name, progress=lambda *_: None):
        arch = Architecture("resnet18", len(SHAPES), 8)
        torch.manual_seed(dense_seed)
        card, net = ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32))), build_classifier(arch)

        def dense(folder, progress):
            save_model(folder / MODEL, net, card)
            return {"macs": 10**9, "train_macs": 10**12}

        store = StageStore(tmp_path / "stages")
        stage = Stage(f"dense{dense_seed}", {}, (), dense)
        if not store.is_finished(stage):
            store.run(stage, lambda *_: None)
        config = read_config(QUICKSTART, OVERRIDES, ExperimentConfig)
        (tmp_path / name).mkdir(exist_ok=True)
        job = Job(config, 0, config.pruning.at(0.5), "finetune", data, store.folder(stage))
        figures = STEPS["prune_classifier"](job, tmp_path / name, progress)
        return tmp_path / name / MODEL, figures, net

    return run


def test_a_ticket_has_nothing_of_the_dense_weights(draw):
    one, other = (read_weights(draw(seed, str(seed))[0]) for seed in (0, 1))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_epochs_of_a_ticket_count_and_those_of_dense_do_not(draw):
    model, figures, net = draw(0, "ticket")
    assert figures["epochs"] == 2  # of 4: as many as masks are compared
    assert figures["train_macs"] == 2 * 12 * 3 * classifier_macs(net, 32)
    slim, card = load_classifier(model)
    assert card.prune_spec
    assert sum(p.numel() for p in slim.parameters()) < sum(p.numel() for p in net.parameters())


def test_a_ticket_killed_in_its_training_ends_with_the_same_bytes(draw):
    done = []

    def kill(*_):
        done.append(1)
        if len(done) == 3:  # in the second epoch
            raise KilledError

    whole, *_ = draw(0, "whole")
    with pytest.raises(KilledError):
        draw(0, "killed", kill)
    assert draw(0, "killed")[0].read_bytes() == whole.read_bytes()


def test_a_ticket_that_did_not_settle_fails_with_the_distance():
    net = nn.Sequential(nn.Conv2d(3, 10, 1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 2, 1))
    method = EarlyBird(net, (torch.zeros(1, 3, 4, 4),), Recipe(prune_ratio=0.5), (0.5,), window=2, tolerance=0.1)
    for epoch, scales in enumerate((torch.arange(10.0), torch.arange(10.0).roll(1))):
        net[1].weight.data = scales
        method.after_epoch(net, epoch)
    # what is above 5 is in places 6 7 8 9, then in 7 8 9 0: places 0 and 6 of ten differ
    message = r"early_bird: no ticket of 0.5 after 2 epochs, the last of 2 masks differs from another in 0.2 of all"
    with pytest.raises(WorkError, match=message):
        check_settled(method, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([EARLY], "pruning.method: early_bird begins with random weights, and a detector that is pruned with those of"),
        (
            [EARLY, CLASSIFIERS, "classification.train.epochs=4"],
            "pruning.window: more masks than epochs to draw them in, got 5 for 4 epochs; expected a smaller one",
        ),
        ([EARLY, "pruning.tolerance=1.5"], "pruning.tolerance: "),
        ([EARLY, "pruning.steps=2"], "pruning.steps: not used with early_bird, got 2; expected 1"),
    ],
)
def test_a_ticket_that_cannot_be_drawn_is_refused(overrides, message):
    with pytest.raises(ValueError, match=f": {message}"):
        read_config(QUICKSTART, overrides, ExperimentConfig)


def test_only_a_ticket_depends_on_how_masks_are_compared():
    def hashes(*overrides):
        config = read_config(QUICKSTART, [CLASSIFIERS, "classification.train.epochs=9", *overrides], ExperimentConfig)
        stages = make_plan(config, StageStore(Path("nowhere"))).stages
        return {stage.hash for stage in stages if stage.name == "prune_classifier"}

    for changed in ("pruning.window=3", "pruning.tolerance=0.2"):
        assert hashes(changed) == hashes()
        assert hashes(EARLY, changed) != hashes(EARLY)
