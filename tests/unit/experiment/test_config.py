from pathlib import Path

import pytest

from classify.config import read_config
from detect.orderings import ORDERINGS
from experiment.config import PruneConfig, load_config

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs/experiment/quickstart.py"
PRUNE = sorted((ROOT / "configs/prune").glob("*.py"))


def refused(*overrides):
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        load_config(QUICKSTART, overrides)
    return str(caught.value).removeprefix(f"{QUICKSTART}: ")


def prune_config(*overrides):
    return read_config(ROOT / "configs/prune/l1_half.py", overrides, PruneConfig)


def test_quickstart_runs_all_orderings():
    assert load_config(QUICKSTART).orderings == tuple(ORDERINGS)


def test_overrides_reach_every_depth():
    config = load_config(QUICKSTART, ["seeds=(0,1)", "detection.model.fpn_channels=32"])
    assert config.seeds == (0, 1)
    assert config.detection.model.fpn_channels == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classification.data.num_trian=3", "classification.data.num_trian; nearest valid ones: num_train, num_val"),
        ("classification.train.epoch=3", "classification.train.epoch; nearest valid ones: epochs"),
        ("detection.model.image_size=3", "detection.model.image_size; nearest valid ones: image_size_hw"),
        ("backbone.nme=3", "backbone.nme; nearest valid ones: name"),
        ("pruning.prune_ratio=0.5", "pruning.prune_ratio; nearest valid ones: prune_ratios, round_to, reduction"),
    ],
)
def test_an_unknown_key_tells_the_nearest_of_its_place(override, message):
    assert refused(override) == f"unknown key {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning.prune_ratios=(0.5, 1)", "pruning.prune_ratios.1: prune_ratio: would remove all channels or more"),
        ("pruning.criterion=l9", "pruning.criterion: unknown, got 'l9'; expected one of"),
        ("orderings=('prune',)", "orderings: unknown, got 'prune'; expected one of dense, prune_transfer,"),
        ("budgets=('scratch',)", "budgets.0: Input should be 'scratch_e' or 'scratch_b', got 'scratch'"),
        ("seeds=()", "seeds: Tuple should have at least 1 item"),
        (
            "detection.model.image_size_hw=(100, 96)",
            "detection.model: image_size_hw: got (100, 96); expected multiples",
        ),
        ("name='a/b'", "name: String should match pattern"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(override, message):
    assert refused(override).startswith(message)


@pytest.mark.parametrize("path", PRUNE, ids=lambda path: path.stem)
def test_every_prune_config_is_valid(path):
    assert 0 < read_config(path, (), PruneConfig).prune_ratio < 1


def test_single_layers_have_their_own_ratio():
    assert prune_config("ratios={'layer1.*': 0.25}").ratios == {"layer1.*": 0.25}
    with pytest.raises(ValueError, match=r"ratios.layer1: prune_ratio: would remove all channels or more, got 1.5"):
        prune_config("ratios={'layer1': 1.5}")


@pytest.mark.parametrize("ratio", ["1", "-0.1"])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"expected a share in \[0, 1\)"):
        prune_config(f"prune_ratio={ratio}")
