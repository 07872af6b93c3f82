"""Experiments with several backbones, and limits in the place of ratios."""

from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from command.config import read_config
from command.errors import RequestError, WorkError
from experiment.checks import check_experiment
from experiment.claims import Claims
from experiment.comparison import comparison
from experiment.config import ExperimentConfig
from experiment.cuts import Pruning, varied
from experiment.leaves import bare_leaves
from experiment.limits import at_limit
from experiment.pipeline import make_plan
from experiment.report_lines import lines_of
from experiment.run import why_failed
from experiment.stages import StageStore
from experiment.verdicts import judged_lines, judged_speeds
from prune.cost import cost_of
from prune.pruning import prune_model

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"
TWO = "backbones={'wide': {}, 'narrow': {'base_channels': 16, 'methods': ['half']}}"
METHODS = "methods={'half': {'prune_ratios': [0.5]}, 'l2': {'criterion': 'l2'}}"


def config(*overrides):
    return read_config(QUICKSTART, overrides, ExperimentConfig)


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def test_every_backbone_has_its_dense_row_and_its_methods():
    rows = [leaf.name for leaf in bare_leaves(config(TWO, METHODS, "orderings=['prune_transfer']"))]
    assert rows == [
        "wide-dense",
        "wide-prune_transfer-finetune-half",
        "wide-prune_transfer-finetune-l2",
        "narrow-dense",
        "narrow-prune_transfer-finetune",
    ]


def test_backbones_share_the_data_and_the_measurement_of_times(store):
    plan = make_plan(config(TWO, METHODS, "orderings=['prune_transfer']"), store)
    names = [stage.name for stage in plan.stages]
    assert [names.count(name) for name in ("train_scenes", "train_shapes", "latency")] == [1, 1, 1]
    assert names.count("train_classifier") == 2
    assert plan.latencies["onnxruntime"].settings["references"]["narrow-prune_transfer-finetune"] == "narrow-dense"
    assert plan.latencies["onnxruntime"].settings["references"]["wide-prune_transfer-finetune-l2"] == "wide-dense"


def test_stages_of_a_backbone_are_those_of_its_experiment_alone(store):
    both = {stage.hash for stage in make_plan(config(TWO, METHODS), store).stages}
    one = make_plan(config("backbone.base_channels=16"), store)
    assert {stage.hash for stage in one.stages} - both == {one.latencies["onnxruntime"].hash}


def test_all_impossible_backbones_are_told_at_once():
    preset = "methods={'A': {'preset': 'resnet34-A', 'round_to': 8}}"
    two = "backbones={'a': {'name': 'resnet18'}, 'b': {'name': 'vgg17'}}"
    with pytest.raises(RequestError) as fault:
        config(two, preset, "pruning={'_delete_': True}")
    assert "backbones.a: preset: resnet34-A is for resnet34" in str(fault.value)
    assert "; backbones.b: " in str(fault.value)
    assert "vgg17" in str(fault.value)


def test_a_backbone_with_an_unknown_method_is_refused():
    with pytest.raises(RequestError, match=r"backbones.a.methods: unknown, got 'l3'; expected one of half, l2$"):
        config("backbones={'a': {'methods': ['l3']}}", METHODS)


def test_what_does_not_fit_several_backbones_is_told_together(tmp_path):
    both = config(TWO, METHODS, "pruning.skip=['layer9']")
    with pytest.raises(RequestError, match=r"^wide: layer9: no layer.*; narrow: layer9: no layer"):
        check_experiment(both, tmp_path)


def failed(plan, store, leaf, stage):
    Claims(store.root).add(next(one for one in leaf.chain if one.name == stage), "loss: not a number")
    return why_failed(plan, Claims(store.root))


def test_a_failed_reference_takes_the_rows_of_its_backbone_alone(store):
    plan = make_plan(config(TWO, METHODS, "orderings=['prune_transfer']"), store)
    narrow = plan.leaves[3]
    assert list(failed(plan, store, narrow, "train_detector")) == ["narrow-dense", "narrow-prune_transfer-finetune"]
    with pytest.raises(WorkError, match="not a number"):
        failed(plan, store, plan.leaves[0], "train_detector")


@pytest.mark.parametrize("methods", [None, 5, (), "l1"])
def test_methods_of_a_backbone_are_a_list_of_names(methods):
    with pytest.raises(RequestError, match=r"backbones.a.methods: wrong, got .*; expected names of methods$"):
        config(f"backbones={{'a': {{'methods': {methods!r}}}}}", METHODS)


@pytest.mark.parametrize("terms", ["equal_iterations", "equal_macs"])
def test_terms_of_detectors_change_nothing_without_any(terms, store):
    assert make_plan(config("detection=None", f"terms={terms}"), store).stages[-1].hash == (
        make_plan(config("detection=None", "terms=paper"), store).stages[-1].hash
    )


def test_the_shipped_matrix_has_every_combination(store):
    plan = make_plan(read_config(QUICKSTART.with_name("matrix.py"), (), ExperimentConfig), store)
    # of each backbone and seed dense, and at each ratio prune_transfer, transfer_prune, scratch_e and scratch_b
    assert len({leaf.row for leaf in plan.rows}) == len(plan.rows) == 2 * 2 * (1 + 2 * 4) * 2
    assert [stage.name for stage in plan.stages].count("train_classifier") == 2 * 2


# Limits


def kept_share(name, arch, side, pruning):
    """Count a cost of the network that a recipe makes, as a share of the dense one's."""
    net, example = build_classifier(arch), (torch.zeros(1, 3, side, side),)
    slim = prune_model(net, example, pruning).model
    return getattr(cost_of(slim, example), name) / getattr(cost_of(net, example), name)


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_a_limit_is_reached_from_below(cost):
    arch = Architecture("resnet18", 4, 16)
    (recipe,) = Pruning(**{f"kept_{cost}": (0.4,)}, round_to=1).recipes
    share = kept_share(cost, arch, 32, at_limit(recipe, arch, 32))
    assert 0.36 < share <= 0.4


def test_orderings_cut_to_the_same_widths_at_a_limit(store):
    plan = make_plan(config("pruning={'_delete_': True, 'kept_macs': [0.5]}"), store)
    widths = [stage.settings["widths"] for stage in plan.stages if stage.name.startswith("prune_")]
    assert len(widths) == 2
    assert widths[0] == widths[1] != []


def test_rows_of_limits_are_named_by_them(store):
    both = config(
        "pruning={'_delete_': True, 'kept_macs': [0.5], 'kept_params': [0.25]}", "orderings=['prune_transfer']"
    )
    leaves = list(bare_leaves(both))[1:]
    assert [leaf.name for leaf in leaves] == [f"prune_transfer-finetune-{one}" for one in ("macs0.5", "params0.25")]
    assert [(leaf.limit, leaf.prune_ratio) for leaf in leaves] == [("macs 0.5", None), ("params 0.25", None)]


@pytest.mark.parametrize(
    "more",
    [{"prune_ratios": (0.3,)}, {"steps": 2}, {"ranking": "global"}, {"method": "slimming"}, {"preset": "vgg16-5x"}],
)
def test_what_does_not_go_with_limits_is_refused(more):
    with pytest.raises(RequestError, match=r"limits|not used with a preset"):
        Pruning(kept_macs=(0.5,), **more)


def test_a_limit_takes_the_place_of_the_ratios_that_others_have():
    base = Pruning(prune_ratios=(0.3,), round_to=1)
    (limited,) = varied(base, "a", {"kept_macs": (0.5,)}).recipes
    assert (limited.kept, limited.round_to) == (("macs", 0.5), 1)
    assert varied(base, "b", {"preset": "vgg16-5x"}).preset == "vgg16-5x"


@pytest.mark.parametrize("other", [{"kept_params": (0.5,)}, {"preset": "vgg16-5x"}])
def test_ratios_beside_another_amount_are_refused(other):
    with pytest.raises(RequestError, match=r"methods.a.prune_ratios: not used with \w+, got both"):
        varied(Pruning(), "a", {"prune_ratios": (0.5,), **other})


def test_a_limit_that_cannot_be_reached_is_named_as_in_the_config():
    arch = Architecture("resnet18", 4, 16)
    (recipe,) = Pruning(kept_macs=(1e-5,)).recipes
    with pytest.raises(RequestError, match=r"^kept_macs: 1e-05 of the dense network's: "):
        at_limit(recipe, arch, 32)


def test_a_share_that_keeps_all_or_nothing_is_refused():
    for share in (0.0, 1.0):
        with pytest.raises(RequestError, match=r"methods.a: kept_macs"):
            varied(Pruning(), "a", {"kept_macs": (share,)})


# Reports

DENSE = {
    "ordering": "dense", "budget": None, "method": None, "prune_ratio": 0.0, "limit": None, "seed": 0,
    "map": 0.5, "top1": None, "speedup": 1.0, "speedup_low": None, "speedup_high": None,
}  # fmt: skip
SLIM = DENSE | {"ordering": "prune_transfer", "budget": "finetune", "method": "l1", "prune_ratio": 0.5}


def row(kind, backbone, **more):
    return kind | {"name": f"{backbone}-{kind['ordering']}", "backbone": backbone, **more}


def many():
    fast = {"speedup": 2.0, "speedup_low": 1.9, "speedup_high": 2.1}
    noisy = row(DENSE, "vgg", seed=1, speedup_low=0.5, speedup_high=2.5, name="again")
    return [row(DENSE, "vgg"), noisy, row(SLIM, "vgg", **fast), row(DENSE, "resnet"), row(SLIM, "resnet", **fast)]


def test_lines_are_compared_with_their_own_dense_network():
    found = [(one.first.label, one.second.label) for one in judged_lines(lines_of(many()), {})]
    assert found == [
        ("prune_transfer (finetune, vgg)", "dense (vgg)"),
        ("prune_transfer (finetune, resnet)", "dense (resnet)"),
    ]


def test_noise_of_one_backbone_decides_nothing_of_another():
    assert [speed.verdict for speed in judged_speeds(lines_of(many()))] == ["not decided", "faster"]


def test_methods_stand_below_the_dense_network_of_their_backbone():
    headers, *cells = comparison(many()).table()
    assert headers == ["of", "method", "prune_ratio", "prune_transfer (finetune)"]
    assert [line[:3] for line in cells] == [
        ["vgg", "dense", "0"],
        ["vgg", "l1", "0.5"],
        ["resnet", "dense", "0"],
        ["resnet", "l1", "0.5"],
    ]


def test_how_much_was_cut_is_left_out_where_the_method_tells():
    told = [row(DENSE, "vgg"), row(SLIM, "vgg"), row(SLIM, "vgg", method="macs", prune_ratio=None, limit="macs 0.5")]
    assert [line.label for line in lines_of(told)][1:] == [
        "prune_transfer (finetune, l1)",
        "prune_transfer (finetune, macs)",
    ]
    untold = [*told, row(SLIM, "vgg", prune_ratio=0.7, name="more")]
    assert lines_of(untold)[-1].label == "prune_transfer (finetune, l1, 0.7)"
