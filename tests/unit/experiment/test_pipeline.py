import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, read_card, save_model
from classify.synthetic import SHAPES, write_shapes
from command.config import read_config
from command.errors import WorkError
from detect import DetectorSettings, new_detector, save_detector
from detect.synthetic import write_scenes
from experiment.checks import check_experiment
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.stages import Stage, StageStore
from experiment.steps import MODEL, STEPS, Job

QUICKSTART = Path(__file__).parents[3] / "configs/experiment/quickstart.py"


PUBLISHED = ("terms=paper", "controls=('dense_longer',)", "detection.train.epochs=6", "detection.finetune.epochs=4")


def plan(*overrides):
    return make_plan(read_config(QUICKSTART, (*PUBLISHED, *overrides), ExperimentConfig), StageStore(Path("nowhere")))


def names(stages):
    return [stage.name for stage in stages]


def changed(*overrides, before=()):
    """Names of the stages that a change of the config repeats."""
    known = {stage.hash for stage in plan(*before).stages}
    return {stage.name for stage in plan(*before, *overrides).stages if stage.hash not in known}


def test_orderings_share_what_they_have_in_common():
    # 4 of data; 1 dense classifier; 1 pruning of it; 3 slim classifiers; 4 transfers, each with its training;
    # 1 pruned detector and its fine-tuning; 4 classifiers and 5 detectors evaluated; 5 exports; 1 measurement
    stages = names(plan("controls=()").stages)
    assert len(stages) == 4 + 1 + 1 + 3 + 2 * 4 + 2 + 4 + 5 + 5 + 1
    assert stages.count("train_classifier") == 1
    assert stages.count("train_detector") == 4


def test_every_stage_comes_after_its_inputs():
    done = set()
    for stage in plan().stages:
        assert {parent.hash for parent in stage.inputs} <= done
        done.add(stage.hash)


def test_the_dense_reference_comes_first_and_is_always_there():
    assert names(plan("orderings=()", "controls=()").leaves) == ["dense"]
    assert names(plan().leaves)[0] == "dense"


def test_rows_are_named_apart_by_ratio_and_seed():
    leaves = names(plan("pruning.prune_ratios=(0.3,0.5)", "seeds=(0,1)", "orderings=('transfer_prune',)").leaves)
    assert leaves[:4] == ["dense-seed0", "dense-seed1", "dense_longer-seed0", "dense_longer-seed1"]
    assert "transfer_prune-finetune-0.3-seed1" in leaves
    assert len(leaves) == len(set(leaves)) == 2 + 2 + 2 * 2


PRESETS_AB = "methods={'A': {'preset': 'resnet34-A'}, 'B': {'preset': 'resnet34-B'}, 'half': {'prune_ratios': (0.5,)}}"


def test_presets_are_rows_beside_ratios():
    given = (
        "backbone={'name': 'resnet34', 'base_channels': 64}",
        "pruning={}",
        PRESETS_AB,
        "orderings=('transfer_prune',)",
        "controls=()",
    )
    found = {leaf.name: (leaf.prune_ratio, leaf.pruning and leaf.pruning.preset) for leaf in plan(*given).leaves}
    assert found == {
        "dense": (0.0, None),
        "transfer_prune-finetune-A": (None, "resnet34-A"),
        "transfer_prune-finetune-B": (None, "resnet34-B"),
        "transfer_prune-finetune-half-0.5": (0.5, None),
    }


def test_the_control_is_dense_with_the_epochs_of_both_detector_trainings():
    dense, longer = (leaf.chain[-1].settings for leaf in plan().leaves[:2])
    assert (dense["schedule"]["epochs"], longer["schedule"]["epochs"]) == (6, 6 + 4)
    assert dense | {"schedule": dense["schedule"] | {"epochs": 10}} == longer


def test_the_control_shares_all_that_comes_before_the_detector():
    dense, longer = plan().leaves[:2]
    assert [stage.name for stage in longer.chain] == ["train_classifier", "transfer", "train_detector"]
    assert [a.hash == b.hash for a, b in zip(dense.chain, longer.chain, strict=True)] == [True, True, False]
    assert [a.hash == b.hash for a, b in zip(dense.evaluations, longer.evaluations, strict=True)] == [True, False]


def test_a_control_repeats_nothing_of_the_other_rows():
    added = {"train_detector", *DETECTED}
    assert changed("controls=('dense_longer',)", before=["controls=()"]) == added
    assert len(plan().stages) == len(plan("controls=()").stages) + len(added - {"latency"})


DETECTED = {"evaluate_detector", "export", "latency"}
"""Measurements of a detector that changed."""
TRAINED = {"transfer", "train_detector", "prune_detector", "finetune_detector", *DETECTED}
"""What follows a dense classifier that changed, besides slim classifiers."""
SLIM = {"finetune_classifier", "scratch_classifier"}
ALL_CLASSIFIERS = {"train_classifier", "prune_classifier", *SLIM, "evaluate_classifier"}


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("detection.finetune.lr=1.0", {"finetune_detector", *DETECTED}),
        (
            "detection.finetune.epochs=9",
            {"finetune_detector", "train_detector", *DETECTED},
        ),  # the latter of the control
        ("detection.train.lr=0.1", TRAINED - {"transfer"}),
        ("detection.model.roi_samples=16", TRAINED),
        (
            "classification.finetune.lr=1.0",
            {"finetune_classifier", "evaluate_classifier", "transfer", "train_detector"},
        ),
        ("classification.train.lr=1.0", {*ALL_CLASSIFIERS, *TRAINED}),
        ("classification.augmentation.erasing=0.5", {*ALL_CLASSIFIERS, *TRAINED}),
        ("classification.crop_share=0.875", {*ALL_CLASSIFIERS, *TRAINED}),
        ("classification.augmentation.padding=None", set()),  # the default
        ("latency.rounds=20", {"latency"}),
        ("name=other", set()),
        ("detection.data.num_val=7", {"val_scenes", *DETECTED}),
        ("detection.data.num_train=7", {"train_scenes", *TRAINED} - {"transfer"}),
        ("classification.data.num_val=7", {"val_shapes", "evaluate_classifier"}),
        ("classification.data.num_train=7", {"train_shapes", *ALL_CLASSIFIERS, *TRAINED}),
        ("num_threads=7", {*ALL_CLASSIFIERS, *TRAINED}),
    ],
)
def test_a_changed_setting_repeats_only_what_depends_on_it(override, again):
    if "finetune_classifier" in again:
        again = again | DETECTED
    assert changed(override) == again


@pytest.mark.parametrize(
    "schedule", ["classification.train", "classification.finetune", "detection.train", "detection.finetune"]
)
def test_a_setting_without_effect_repeats_nothing(schedule):
    assert changed(f"{schedule}.momentum=0.5") == set()  # of AdamW
    assert changed(f"{schedule}.momentum=0.5", before=[f"{schedule}.optimizer=SGD"]) != set()


SCRATCH = {"scratch_classifier", "evaluate_classifier", "transfer", "train_detector", *DETECTED}
"""What a longer training from random weights repeats."""


@pytest.mark.parametrize("setting", ["scratch_b_cap=None", "scratch_b_cap=1.5", "strict_budget=True"])
def test_another_budget_repeats_only_the_training_from_scratch(setting):
    assert changed(setting) == SCRATCH
    assert changed(setting, before=["orderings=('prune_transfer',)", "controls=()"]) == set()


def test_cap_matters_only_for_scratch_b():
    assert changed("scratch_b_cap=None", before=["budgets=('scratch_e',)"]) == set()
    assert changed("strict_budget=True", before=["budgets=('scratch_e',)"]) == SCRATCH


def test_finetuning_matters_for_scratch_only_in_the_strict_budget():
    longer, only = "classification.finetune.epochs=9", ["orderings=('scratch_transfer',)", "controls=()"]
    assert changed(longer, before=only) == set()
    assert changed(longer, before=[*only, "strict_budget=True"]) == SCRATCH


@pytest.fixture
def given(tmp_path):
    """Overrides for data in files: an image folder `shapes`, a COCO folder `scenes`."""
    write_shapes(tmp_path / "shapes", 12, 6, 32, seed=0)
    for seed, split in enumerate(("train", "val")):
        write_scenes(tmp_path / "scenes" / split, 3, (64, 64), seed)
    coco = {"_delete_": True, "type": "coco", "root": str(tmp_path / "scenes")}
    for split in ("train", "val"):
        coco |= {f"{split}_annotations": f"{split}/instances.json", f"{split}_images": f"{split}/images"}
    folder = {"_delete_": True, "type": "folder", "root": str(tmp_path / "shapes")}
    return (f"detection.data={coco}", f"classification.data={folder}")


def replace_image(path):
    """Replace an image by another of equal size in bytes."""
    old = path.read_bytes()
    path.write_bytes(old + b"x")
    path.with_name("other.png").write_bytes(old + b"y")
    return path.with_name("other.png")


def move_box(path):
    data = json.loads(path.read_text())
    data["annotations"][0]["bbox"][2] -= 1
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("file", "again"),
    [
        ("scenes/val/images/00000.png", DETECTED),
        ("scenes/val/instances.json", DETECTED),
        ("scenes/train/images/00000.png", TRAINED - {"transfer"}),
        ("scenes/train/instances.json", TRAINED - {"transfer"}),
        ("shapes/val/circle/00000.png", {"evaluate_classifier"}),
        ("shapes/train/circle/00000.png", {*ALL_CLASSIFIERS, *TRAINED}),
    ],
)
def test_changed_data_repeats_only_what_read_it(given, tmp_path, file, again):
    path, other = tmp_path / file, replace_image(tmp_path / file) if file.endswith("png") else None
    before = {stage.hash for stage in plan(*given).stages}
    other.replace(path) if other else move_box(path)
    assert {stage.name for stage in plan(*given).stages if stage.hash not in before} == again


def test_costs_are_positive():
    assert all(stage.cost > 0 for stage in plan().stages)


@pytest.mark.parametrize(
    "override",
    [
        "criterion=fpgm",
        "criterion=taylor",
        "reduction=max",
        "ranking=global",
        "round_to=4",
        "min_channels=4",
        "skip=('layer1.*',)",
    ],
)
def test_another_pruning_trains_no_dense_model_again(override):
    again = changed(f"pruning.{override}")
    assert again >= {"prune_classifier", "finetune_classifier", "scratch_classifier", "prune_detector", "latency"}
    assert "train_classifier" not in again


def test_calibration_matters_only_for_criteria_that_use_data():
    calibration = "pruning.calibration.num_batches=3"
    assert changed(calibration) == set()
    assert changed(calibration, before=["pruning.criterion=taylor"]) >= {"prune_classifier", "prune_detector"}


def test_a_penalty_matters_only_for_methods_that_have_one():
    structures = ["pruning.method=structure_selection"]
    assert changed("pruning.penalty=0.01", before=structures) == set()  # the default
    assert changed("pruning.penalty=0.1", before=structures) >= {"prune_classifier", "prune_detector"}
    assert changed("pruning.penalty=0.1", before=["pruning.method=soft_filters"]) == set()
    assert changed("pruning.shift=folded", before=structures) == set()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "backbone={'name': 'efficientnet_b0', 'base_channels': 64}",
            "model: has no residual branch or group to select",
        ),
        ("pruning.skip=('layer9.*',)", r"skip\['layer9.\*'\]: matches no layer"),
        ("classification.train.sync_bn=True", "sync_bn: not with structure_selection"),
    ],
)
def test_structure_selection_that_does_not_fit_is_refused_early(tmp_path, override, line):
    config = read_config(QUICKSTART, ["pruning.method=structure_selection", override], ExperimentConfig)
    with pytest.raises(ValueError, match=line):
        check_experiment(config, tmp_path)


STEPS_OR_STATISTICS = {"prune_classifier", "prune_detector", "finetune_detector", "finetune_classifier"}


@pytest.mark.parametrize(
    ("before", "override", "repeats"),
    [
        ((), "steps=2", True),
        ((), "step_schedule=exponential", False),
        ((), "epochs_per_step=3", False),
        (("steps=2",), "step_schedule=exponential", True),
        (("steps=2",), "epochs_per_step=3", True),
        (("steps=2",), "calibration.batch_size=3", False),
        ((), "recalibrate=2", True),
        (("recalibrate=2",), "calibration.batch_size=3", True),
        (("recalibrate=2",), "calibration.num_batches=3", False),
    ],
)
def test_steps_and_statistics_repeat_the_cuts_where_they_matter(before, override, repeats):
    again = changed(f"pruning.{override}", before=["controls=()", *(f"pruning.{text}" for text in before)])
    assert (again >= STEPS_OR_STATISTICS) if repeats else again == set()
    assert "train_classifier" not in again


def test_trainings_between_steps_and_layers_follow_the_finetuning():
    rate, only = "classification.finetune.lr=1.0", ["controls=()", "orderings=('scratch_transfer',)"]
    assert changed(rate, before=only) == set()
    for between in (["pruning.steps=2"], ["pruning.method=thinet", "pruning.epochs_per_layer=1"]):
        assert changed(rate, before=[*only, *between]) >= {"prune_classifier", "scratch_classifier"}


def test_statistics_of_a_backbone_without_any_are_refused_early(tmp_path):
    overrides = ["backbone={'name': 'convnext_tiny', 'base_channels': 64}", "pruning.recalibrate=1"]
    with pytest.raises(ValueError, match=r"^recalibration: nothing to estimate, got \w+ without BatchNorm"):
        check_experiment(read_config(QUICKSTART, overrides, ExperimentConfig), tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ("pruning.criterion=taylor",),
        ("pruning.recalibrate=2",),
        ("pruning.method=thinet", "pruning.epochs_per_layer=1", "orderings=()", "controls=()"),
    ],
)
def test_the_check_before_any_work_needs_no_data(tmp_path, overrides):
    check_experiment(read_config(QUICKSTART, overrides, ExperimentConfig), tmp_path)


def test_a_criterion_that_cannot_rank_the_backbone_is_refused_early(tmp_path):
    backbone = "backbone={'name': 'convnext_tiny', 'base_channels': 64}"  # without BatchNorm
    with pytest.raises(ValueError, match=r"^features\.\S+: BatchNormScale cannot rank this group"):
        check_experiment(read_config(QUICKSTART, [backbone, "pruning.criterion=bn_scale"], ExperimentConfig), tmp_path)


def pruning_job(data, source, criterion, seed=0):
    calibration = "pruning.calibration={'batch_size': 4, 'num_batches': 2}"
    overrides = (f"pruning.criterion={criterion}", calibration, "classification.image_size=32")
    config = read_config(QUICKSTART, overrides, ExperimentConfig)
    return Job(config, seed, config.pruning.at(0.5), "finetune", data, source)


def write_classifier(folder):
    arch = Architecture("resnet18", len(SHAPES), 16)
    torch.manual_seed(0)
    save_model(folder / MODEL, build_classifier(arch), ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32))))


def write_detector(folder):
    settings = DetectorSettings((64, 64), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(folder / MODEL, *new_detector(Architecture("resnet18", 1, 16), SHAPES, settings, seed=0))


@pytest.mark.parametrize(
    ("step", "write"), [("prune_classifier", write_classifier), ("prune_detector", write_detector)]
)
def test_a_pruning_step_measures_on_the_jobs_own_data_and_seed(data, tmp_path, step, write):
    store, made = StageStore(tmp_path), Stage("source", {}, (), lambda folder, progress: write(folder) or {"macs": 1})
    store.run(made, lambda done, total: None)

    def spec(criterion, seed=0):
        out = tmp_path / f"{criterion}-{seed}-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        job = pruning_job(data, store.folder(made), criterion, seed)
        STEPS[step](job, out, lambda done, total: None)
        return read_card(out / MODEL).spec

    by_taylor = spec("taylor")
    assert by_taylor == spec("taylor")
    assert by_taylor not in (spec("l1"), spec("taylor", seed=1))
    assert spec("random") != spec("random", seed=1)


def test_the_order_of_patterns_counts():
    one, other = ("{'layer1.*': 0.25, 'layer*': 0.75}", "{'layer*': 0.75, 'layer1.*': 0.25}")
    hashes = [{stage.hash for stage in plan(f"pruning.ratios={text}").stages} for text in (one, other)]
    cut = [stage for stage in plan(f"pruning.ratios={one}").stages if stage.name == "prune_classifier"]
    assert cut[0].hash in hashes[0] - hashes[1]


@pytest.fixture
def train_detector_by(given, tmp_path, monkeypatch):
    """Runs the stage that trains the detector on given data, with another function for its work."""

    def run(step):
        monkeypatch.setitem(STEPS, "train_detector", step)
        store = StageStore(tmp_path / "stages")
        stages = make_plan(read_config(QUICKSTART, given, ExperimentConfig), store).stages
        stage = next(stage for stage in stages if stage.name == "train_detector")
        store.run(replace(stage, inputs=()), lambda done, total: None)

    return run


def test_data_that_changes_while_a_stage_reads_it_gives_no_result(train_detector_by, tmp_path):
    def step(job, folder, progress):
        (folder / "checkpoints").mkdir()
        move_box(tmp_path / "scenes/train/instances.json")
        return {}

    with pytest.raises(RuntimeError, match="train_detector: its data was changed while it ran"):
        train_detector_by(step)
    assert list((tmp_path / "stages").iterdir()) == []


@pytest.mark.parametrize("damage", [b"", b'{"images": [', b"[]"])
def test_data_that_is_cut_short_while_a_stage_reads_it_is_failed_work(train_detector_by, tmp_path, damage):
    def step(job, folder, progress):
        (tmp_path / "scenes/train/instances.json").write_bytes(damage)
        raise AssertionError("of a library")

    with pytest.raises(WorkError, match=r"train_detector: its data was changed while it ran; .*instances\.json: not "):
        train_detector_by(step)
    assert list((tmp_path / "stages").iterdir()) == []


def test_a_fault_with_unchanged_data_stays_what_it_is(train_detector_by):
    def step(job, folder, progress):
        raise AssertionError("a bug")

    with pytest.raises(AssertionError, match="a bug"):
        train_detector_by(step)
