from pathlib import Path

import pytest

from experiment.config import load_config
from experiment.pipeline import make_plan
from experiment.stages import StageStore

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"


def plan(*overrides):
    return make_plan(load_config(QUICKSTART, overrides), StageStore(Path("nowhere")))


def names(stages):
    return [stage.name for stage in stages]


def changed(*overrides):
    """Names of the stages that a change of the config makes anew."""
    before = {stage.hash for stage in plan().stages}
    return {stage.name for stage in plan(*overrides).stages if stage.hash not in before}


def test_orderings_share_what_they_have_in_common():
    # 2 of data; 1 dense classifier; 1 pruning of it; 3 slim classifiers; 4 transfers, each with its training;
    # 1 pruned detector and its fine-tuning; 5 exports; 1 measurement
    stages = names(plan().stages)
    assert len(stages) == 2 + 1 + 1 + 3 + 2 * 4 + 2 + 5 + 1
    assert stages.count("train_classifier") == 1
    assert stages.count("train_detector") == 4


def test_every_stage_comes_after_its_inputs():
    done = set()
    for stage in plan().stages:
        assert {parent.hash for parent in stage.inputs} <= done
        done.add(stage.hash)


def test_the_dense_reference_comes_first_and_is_always_there():
    assert names(plan("orderings=()").leaves) == ["dense"]
    assert names(plan().leaves)[0] == "dense"


def test_rows_are_named_apart_by_ratio_and_seed():
    leaves = names(plan("pruning.prune_ratios=(0.3,0.5)", "seeds=(0,1)", "orderings=('prune_transfer',)").leaves)
    assert leaves[:2] == ["dense-seed0", "dense-seed1"]
    assert "prune_transfer-finetune-0.3-seed1" in leaves
    assert len(leaves) == len(set(leaves)) == 2 + 2 * 2


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("detection.finetune.epochs=9", {"finetune_detector", "export", "latency"}),
        ("latency.rounds=20", {"latency"}),
        ("classification.finetune.lr=1.0", {"finetune_classifier", "transfer", "train_detector", "export", "latency"}),
        ("name=other", set()),
    ],
)
def test_a_change_makes_anew_only_what_depends_on_it(override, again):
    assert changed(override) == again


def test_another_seed_of_the_data_makes_everything_anew():
    assert changed("detection.data.seed=7") == set(names(plan().stages)) - {"shapes"}


def test_costs_are_positive():
    assert all(stage.cost > 0 for stage in plan().stages)
