from pathlib import Path

import pytest

from command.config import read_config
from command.errors import RequestError
from detect.orderings import ORDERINGS
from experiment.config import ExperimentConfig
from experiment.cuts import PruneConfig, Pruning
from prune import Recipe
from prune.choose.presets import PRESETS

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs/experiment/quickstart.py"
PRUNE = sorted(
    path for path in (ROOT / "configs/prune").glob("*.py") if not path.stem.startswith(("lottery_", "sensitivity_"))
)


def refused(*overrides):
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        read_config(QUICKSTART, overrides, ExperimentConfig)
    return str(caught.value).removeprefix(f"{QUICKSTART}: ")


def prune_config(*overrides):
    return read_config(ROOT / "configs/prune/l1_half.py", overrides, PruneConfig)


def test_quickstart_runs_all_orderings():
    assert read_config(QUICKSTART, (), ExperimentConfig).orderings == tuple(ORDERINGS)


def test_no_control_is_trained_unless_asked_for():
    assert ExperimentConfig.model_fields["controls"].default == ()


def test_a_control_is_refused_where_no_detector_is_trained_longer():
    message = "controls: not used without transfer_prune, which alone trains its detector longer than dense, got "
    assert message in refused("orderings=('prune_transfer',)", "controls=('dense_longer',)", "terms=paper")


@pytest.mark.parametrize("terms", ["equal_iterations", "equal_macs"])
def test_a_control_is_refused_where_dense_is_trained_as_long(terms):
    message = f"controls: not used with terms={terms}, where dense is trained as long; expected none"
    assert refused(f"terms={terms}", "controls=('dense_longer',)").endswith(message)


def test_equal_terms_need_equal_batches():
    message = "terms: iterations of different batches, got 8 images in detection.train and 4 in detection.finetune"
    assert message in refused("detection.finetune.batch_size=4")
    read_config(QUICKSTART, ["detection.finetune.batch_size=4", "terms=paper"], ExperimentConfig)


def test_trainings_are_as_published_unless_asked_otherwise():
    assert ExperimentConfig.model_fields["terms"].default == "paper"


def test_overrides_reach_every_depth():
    config = read_config(QUICKSTART, ["seeds=(0,1)", "detection.model.fpn_channels=32"], ExperimentConfig)
    assert config.seeds == (0, 1)
    assert config.detection.model.fpn_channels == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("classification.data.num_trian=3", "classification.data.num_trian; nearest valid ones: num_train, num_val"),
        ("classification.train.epoch=3", "classification.train.epoch; nearest valid ones: epochs"),
        ("detection.model.image_size=3", "detection.model.image_size; nearest valid ones: image_size_hw"),
        ("backbone.nme=3", "backbone.nme; nearest valid ones: name"),
        ("pruning.prune_ratoi=0.5", "pruning.prune_ratoi; nearest valid ones: prune_ratio, prune_ratios, round_to"),
    ],
)
def test_an_unknown_key_lists_the_nearest_keys_of_its_level(override, message):
    assert refused(override) == f"unknown key {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pruning.prune_ratios=(0.5, 1)", "pruning.prune_ratios.1: prune_ratio: would remove all channels or more"),
        ("pruning.prune_ratio=0.5", "pruning.prune_ratio: not used in an experiment, got 0.5; give prune_ratios"),
        ("pruning.max_macs=5", "pruning.max_macs: not used in an experiment, got 5; give prune_ratios"),
        ("pruning.criterion=l9", "pruning.criterion: unknown, got 'l9'; expected one of"),
        (
            "pruning.method=magnitude",
            "pruning.method: magnitude: leaves zeros that a dense engine multiplies like other numbers, so that a "
            'timed row would say nothing; expected espalier classify train with method=dict(type="magnitude")',
        ),
        (
            "pruning={'method': 'structure_selection', 'ratios': {'layer1.*': 0.1}}",
            "pruning.ratios: not used with structure_selection, which removes blocks; expected none",
        ),
        ("orderings=('prune',)", "orderings: unknown, got 'prune'; expected one of dense, prune_transfer,"),
        ("controls=('longer',)", "controls.0: Input should be 'dense_longer', got 'longer'"),
        ("budgets=('scratch',)", "budgets.0: Input should be 'scratch_e' or 'scratch_b', got 'scratch'"),
        ("seeds=()", "seeds: Tuple should have at least 1 item"),
        (
            "detection.model.image_size_hw=(100, 96)",
            "detection.model.image_size_hw: not divisible by 32, got (100, 96); expected multiples",
        ),
        ("name='a/b'", "name: String should match pattern"),
    ],
)
def test_a_wrong_value_is_reported_with_its_key_path(override, message):
    assert refused(override).startswith(message)


RESNET34 = "backbone={'name': 'resnet34', 'base_channels': 64}"
UNTRAINED = ("classification.finetune=None", "backbone.weights='w.safetensors'", "controls=()")


def test_a_preset_is_one_recipe_with_its_own_widths():
    config = read_config(QUICKSTART, [RESNET34, "pruning={'preset': 'resnet34-A'}"], ExperimentConfig)
    (recipe,) = config.pruning.recipes
    assert recipe.widths == PRESETS["resnet34-A"].kept
    assert (recipe.prune_ratio, recipe.round_to, recipe.preset) == (0.0, 1, "resnet34-A")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pruning={'preset': 'resnet34-Z'}"], "pruning.preset: unknown, got 'resnet34-Z'; expected one of"),
        (
            [RESNET34, "pruning={'preset': 'resnet34-A', 'prune_ratios': (0.3,)}"],
            "pruning.prune_ratios: not used with a preset, got preset resnet34-A; leave it out",
        ),
        (
            [RESNET34, "pruning={'preset': 'resnet34-A', 'steps': 2}"],
            "pruning.steps: not used with a preset, got preset resnet34-A; leave it out",
        ),
        (
            [RESNET34, "pruning={'preset': 'resnet34-A', 'method': 'slimming'}"],
            "pruning.preset: not used with slimming, got resnet34-A; expected prune_ratios",
        ),
        (
            ["pruning={'preset': 'resnet34-A'}"],
            "preset: resnet34-A is for resnet34 with base_channels 64, got resnet18 with base_channels 24; expected",
        ),
        (UNTRAINED[:1], "backbone.weights: does not fit classification.finetune=None, got none; expected a file"),
        ([*UNTRAINED, "orderings=('scratch_transfer',)"], "orderings: does not fit classification.finetune=None, got"),
        ([*UNTRAINED, "pruning.steps=2"], "pruning: does not fit classification.finetune=None, got l1, which reads"),
        ([*UNTRAINED, "strict_budget=True"], "strict_budget: does not fit classification.finetune=None, got True"),
    ],
)
def test_a_preset_or_an_untrained_classifier_that_does_not_fit_is_refused(overrides, message):
    assert refused(*overrides).startswith(message)


@pytest.mark.parametrize("path", PRUNE, ids=lambda path: path.stem)
def test_every_prune_config_is_valid(path):
    assert isinstance(read_config(path, (), PruneConfig), Recipe)


def test_single_layers_have_their_own_ratio():
    assert prune_config("ratios={'layer1.*': 0.25}").ratios == {"layer1.*": 0.25}
    with pytest.raises(ValueError, match=r"ratios\['layer1'\]: would remove all channels or more, got 1.5"):
        prune_config("ratios={'layer1': 1.5}")


@pytest.mark.parametrize("ratio", ["1", "-0.1"])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"expected a share in \[0, 1\)"):
        prune_config(f"prune_ratio={ratio}")


@pytest.mark.parametrize(
    ("overrides", "label"),
    [
        ((), "l1-0.5"),
        (("prune_ratio=None", "max_macs=1000"), "l1-max_macs-1000"),
        (("criterion=taylor", "data={'type': 'shapes'}"), "taylor-0.5"),
    ],
)
def test_a_file_is_named_after_criterion_and_amount(overrides, label):
    assert prune_config(*overrides).label == label


def test_a_preset_sets_every_width_and_names_the_file():
    config = read_config(ROOT / "configs/prune/resnet34_a.py", ["preset=resnet34-B"], PruneConfig)
    assert config.label == "resnet34-B"
    assert config.recipe.widths == PRESETS["resnet34-B"].kept
    assert (config.recipe.prune_ratio, config.recipe.round_to) == (0.0, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["prune_ratio=None"],
            "recipe: how much to cut is not clear, got none; expected one of preset, prune_ratio,",
        ),
        (["max_macs=9"], "recipe: how much to cut is not clear, got prune_ratio and max_macs; expected one of"),
        (["preset=resnet34-A"], "recipe: how much to cut is not clear, got preset and prune_ratio; expected one of"),
        (["preset=resnet34A", "prune_ratio=None"], "preset: unknown, got 'resnet34A'; expected one of resnet110-A,"),
        (
            ["preset=resnet34-A", "prune_ratio=None", "round_to=16"],
            "round_to: not used with a preset, got preset resnet34-A; leave it out, as that sets all widths",
        ),
        (["criterion=taylor"], "data: taylor measures on training images, got none; expected data=dict(type=...)"),
        (["data={'type': 'shapes'}"], "data: not used with l1, got shapes; expected none"),
        (
            ["data={'type': 'shape'}"],
            "data.type: unknown, got 'shape'; expected one of 'shapes', 'folder', 'npz', 'cifar',",
        ),
        (["calibration.num_batches=0"], "calibration.num_batches: Input should be greater than or equal to 1, got 0"),
        (["calibration.batches=3"], "unknown key calibration.batches; nearest valid ones: num_batches"),
    ],
)
def test_a_prune_config_that_is_not_clear_is_refused(overrides, message):
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        prune_config(*overrides)
    assert str(caught.value).removeprefix(f"{ROOT}/configs/prune/l1_half.py: ").startswith(message)


WITHOUT = ("detection=None", "controls=()")


def test_without_detection_the_orderings_are_those_of_classifiers():
    config = read_config(QUICKSTART, WITHOUT, ExperimentConfig)
    assert config.detection is None
    assert config.orderings == tuple(ORDERINGS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("orderings=('transfer_prune',)", "orderings: not used without detection, got transfer_prune; expected"),
        ("controls=('dense_longer',)", "controls: not used without detection, got dense_longer; expected"),
        ("classification.data={'_delete_': True, 'type': 'crops'}", "classification.data: not used without detection"),
    ],
)
def test_what_only_detectors_have_is_refused_without_them(override, message):
    assert refused(*WITHOUT, override).startswith(message)


def test_methods_differ_from_the_pruning_in_what_they_name():
    methods = "methods={'a': {}, 'b': {'method': 'lasso', 'prune_ratios': (0.25, 0.5)}}"
    found = read_config(QUICKSTART, ["pruning.round_to=4", methods], ExperimentConfig).prunings
    assert {name: (one.method, one.prune_ratios, one.round_to) for name, one in found.items()} == {
        "a": ("rank", (0.5,), 4),
        "b": ("lasso", (0.25, 0.5), 4),
    }
    assert list(read_config(QUICKSTART, ["pruning.method=thinet"], ExperimentConfig).prunings) == ["thinet"]


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("{'a': {'methd': 'lasso'}}", "methods.a: unknown key methd; nearest valid ones: method"),
        ("{'a': {'method': 'lass'}}", "methods.a: method: unknown, got 'lass'; expected one of"),
        ("{'a': {'prune_ratios': (2,)}}", "methods.a: prune_ratios.0: prune_ratio: would remove all channels or more"),
        ("{'a/b': {}}", "methods.a/b.[key]: String should match pattern"),
    ],
)
def test_a_method_with_unknown_settings_is_refused(methods, message):
    assert message in refused(f"methods={methods}")


@pytest.mark.parametrize(
    ("method", "given", "penalty"),
    [
        ("slimming", None, 1e-4),
        ("structure_selection", None, 0.01),
        ("structure_selection", 0.5, 0.5),
        ("soft_filters", 0.5, None),
        ("rank", None, None),
    ],
)
def test_each_method_has_the_penalty_of_its_paper(method, given, penalty):
    assert Pruning(method=method, penalty=given).effective_penalty == penalty


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"dense": {}}}, "methods: a row of what is not cut has that name, got dense; expected none of"),
        ({"methods": {"l1": {}, "dense_longer": {}}}, "has that name, got dense_longer; expected none of"),
        ({"methods": {"l" * 61: {}}}, "at most 60 characters"),
        ({"name": "n" * 400}, "name: String should have at most 60 characters"),
    ],
)
def test_a_name_that_cannot_be_told_apart_or_written_is_refused(changes, message):
    texts = [f"{key}={value!r}" for key, value in changes.items()]
    with pytest.raises(RequestError, match=message):
        read_config(QUICKSTART, texts, ExperimentConfig)
