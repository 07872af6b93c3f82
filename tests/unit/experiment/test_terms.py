from pathlib import Path

import pytest
from torch import nn

from classify.schedule import Schedule
from command.config import read_config
from command.errors import WorkError
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.stages import Stage, StageStore
from experiment.train_macs import affordable, classifier_macs, counted, macs_before, train_macs

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"


def leaves(*overrides):
    """Return the planned rows of an experiment with 6 + 4 epochs of detection, by name."""
    lengths = ("detection.train.epochs=6", "detection.finetune.epochs=4")
    config = read_config(QUICKSTART, (*lengths, *overrides), ExperimentConfig)
    return {leaf.name: leaf for leaf in make_plan(config, StageStore(Path("nowhere"))).leaves}


def epochs(leaf):
    """Return the epochs of the detector's trainings."""
    named = [stage for stage in leaf.chain if stage.name in ("train_detector", "finetune_detector")]
    return [stage.settings["schedule"]["epochs"] for stage in named]


def test_as_published_transfer_prune_alone_is_trained_longer():
    found = {name: epochs(leaf) for name, leaf in leaves("terms=paper").items()}
    assert found["transfer_prune-finetune"] == [6, 4]
    assert [found[name] for name in found if name != "transfer_prune-finetune"] == [[6]] * 4


def test_with_equal_iterations_all_detectors_have_as_many_epochs():
    assert {sum(epochs(leaf)) for leaf in leaves("terms=equal_iterations").values()} == {10}
    assert epochs(leaves("terms=equal_iterations")["transfer_prune-finetune"]) == [6, 4]


def test_epochs_between_cuts_and_of_learning_count_in_equal_iterations():
    # in two steps of 3 epochs 6 + 3 + 4, with slimming 6 + 6 + 4: l1 is fine-tuned 3 epochs longer
    methods = "methods={'l1': {'steps': 2, 'epochs_per_step': 3}, 'slim': {'method': 'slimming'}}"
    found = {name: epochs(leaf) for name, leaf in leaves(methods).items()}
    assert found["transfer_prune-finetune-l1"] == [6, 4 + 3]
    assert found["transfer_prune-finetune-slim"] == [6, 4]
    assert found["dense"] == found["prune_transfer-finetune-l1"] == [16]


def test_with_equal_macs_every_last_training_goes_by_the_dense_one():
    found = leaves("terms=equal_macs")
    dense = found.pop("dense").chain[-1]
    assert dense.settings["schedule"]["epochs"] == 10
    for leaf in found.values():
        assert dense.hash in [parent.hash for parent in leaf.chain[-1].inputs]
        assert dense.hash not in [parent.hash for stage in leaf.chain[:-1] for parent in stage.inputs]


def test_multiply_adds_of_a_training_are_three_passes():
    # 3 x 3 x 3 weights x 2 channels x 4 x 4 places = 864 for an image
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1))
    assert classifier_macs(net, 4) == 864
    assert train_macs(864, num_images=10, epochs=5) == 3 * 864 * 10 * 5


@pytest.fixture
def folder(tmp_path):
    """Write a finished stage's folder that has the figures."""

    def write(name, **figures):
        stage, store = Stage(name, {}, (), lambda folder, report: figures), StageStore(tmp_path)
        store.run(stage, lambda *_: None)
        return store.folder(stage)

    return write


@pytest.mark.parametrize(
    ("before", "expected"),
    [(400, 6), (430, 6), (460, 5), (900, 3), (2000, 3)],  # (1000 - 400) / 100, 5.7, 5.4, and never below 3
)
def test_the_epochs_bring_a_row_up_to_the_reference(folder, before, expected):
    schedule = Schedule(epochs=3, batch_size=8, lr=1e-3)
    source, reference = folder("transfer", train_macs=before), folder("train_detector", train_macs=1000)
    assert affordable(schedule, source, reference, macs_per_epoch=100).epochs == expected


def test_what_an_earlier_version_did_not_count_is_not_known(folder):
    old, reference = folder("transfer"), folder("train_detector", train_macs=1000)
    assert macs_before(old) is None
    assert counted(macs_before(old), 7) == {}
    with pytest.raises(WorkError, match="of an earlier version"):
        affordable(Schedule(epochs=3, batch_size=8, lr=1e-3), old, reference, macs_per_epoch=100)


def test_a_model_without_a_training_has_none():
    assert counted(macs_before(None), 0) == {"train_macs": 0}
