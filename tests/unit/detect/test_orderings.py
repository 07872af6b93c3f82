import pytest

from detect.orderings import ORDERINGS, steps


def test_the_three_orderings_and_the_dense_reference_are_known():
    assert set(ORDERINGS) == {"dense", "prune_transfer", "transfer_prune", "scratch_transfer"}


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_every_ordering_begins_and_ends_with_training(ordering):
    first, *_, last = steps(ordering)
    assert first == "train_classifier"
    assert last in {"train_detector", "finetune_detector"}


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_every_ordering_transfers_once_before_detector_training(ordering):
    names = steps(ordering)
    assert names.count("transfer") == 1
    assert names.index("transfer") < names.index("train_detector")


@pytest.mark.parametrize("ordering", ["prune_transfer", "scratch_transfer"])
def test_the_classifier_is_pruned_and_finetuned_before_the_transfer(ordering):
    names = steps(ordering)
    budget = {"prune_transfer": "finetune_classifier", "scratch_transfer": "scratch_classifier"}[ordering]
    assert names.index("prune_classifier") < names.index(budget) < names.index("transfer")


def test_transfer_prune_prunes_and_finetunes_the_trained_detector():
    names = steps("transfer_prune")
    assert names.index("transfer") < names.index("train_detector") < names.index("prune_detector")
    assert names.index("prune_detector") < names.index("finetune_detector")


def test_the_dense_reference_is_never_pruned():
    assert not [name for name in steps("dense") if "prune" in name]


def test_the_longer_control_takes_the_steps_of_dense():
    assert steps("dense_longer") == steps("dense")


def test_an_unknown_ordering_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"ordering: unknown, got 'prune'; expected one of .*'prune_transfer'"):
        steps("prune")
