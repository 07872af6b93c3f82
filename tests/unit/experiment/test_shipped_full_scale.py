"""The configs for COCO 2017 and VOC 2007, on stand-ins of the same layout: planned, built, and trained for a step."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from classify.backbones import Architecture
from classify.synthetic import write_shapes
from command.config import read_config
from detect import new_detector
from detect.annotations import read_annotations
from detect.config import VocData
from detect.pruning import prune_detector
from detect.synthetic import write_scenes
from detect.train import train_detector
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.stages import StageStore

pytestmark = pytest.mark.slow  # whole backbones: the slim networks of the literature have no narrow ones

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[3] / "configs/experiment").glob("*.py")
    if path.stem[:4] in ("coco", "voc_")
)
LONGER = [path for path in CONFIGS if path.stem.endswith("_2x")]
WITHOUT_IMAGES = ["classification.data={'_delete_': True, 'type': 'crops'}", "classification.finetune=None"]
SIZE_HW = (64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_voc):
    """The three sets as they are unpacked, of two images each, and a file in place of weights."""
    folder = tmp_path_factory.mktemp("sets")
    write_shapes(folder / "imagenet", 12, 12, 32, seed=0)
    for seed, (images, image_set) in enumerate((("train2017", "trainval"), ("val2017", "test"))):
        scenes = write_scenes(folder / f"scenes{seed}", 2, SIZE_HW, seed=seed)
        (folder / "coco/annotations").mkdir(parents=True, exist_ok=True)
        shutil.copy(scenes.annotations, folder / f"coco/annotations/instances_{images}.json")
        shutil.copytree(scenes.images, folder / f"coco/{images}")
        write_voc(scenes, folder / "VOCdevkit", image_set, prefix=image_set)
    (folder / "weights.safetensors").write_bytes(b"not read by a plan, but for its hash")
    return folder


def config_on(folder, path, *overrides):
    root = folder / ("VOCdevkit" if path.stem.startswith("voc") else "coco")
    given = [f"backbone.weights={folder / 'weights.safetensors'}", f"detection.data.root={root}"]
    return read_config(path, [*given, *overrides], ExperimentConfig)


def plan_of(config):
    return make_plan(config, StageStore(Path("nowhere")))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_with_images_of_classes_all_orderings_are_planned(folder, path):
    plan = plan_of(config_on(folder, path, f"classification.data.root={folder / 'imagenet'}"))
    num_methods = 1 if "vgg16" in path.stem else 2
    # of each seed: dense, and for each slim network prune_transfer, transfer_prune, scratch_e and scratch_b
    assert len(plan.leaves) == 3 * (1 + 4 * num_methods)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_without_them_no_classifier_is_trained_and_no_crop_is_written(folder, path):
    plan = plan_of(config_on(folder, path, *WITHOUT_IMAGES))
    names = {stage.name for stage in plan.stages}
    assert not names & {"finetune_classifier", "scratch_classifier", "evaluate_classifier", "train_crops", "val_crops"}
    assert {(leaf.ordering, leaf.budget) for leaf in plan.leaves} == {
        ("dense", None),
        ("prune_transfer", "untrained"),
        ("transfer_prune", "finetune"),
    }


@pytest.mark.parametrize("path", LONGER, ids=lambda path: path.stem)
def test_the_2x_schedule_changes_the_length_of_the_training_alone(folder, path):
    config = config_on(folder, path)
    shorter = config_on(folder, path.with_stem(path.stem.removesuffix("_2x")))
    train = replace(shorter.detecting.train, epochs=24, milestones=(16 / 24, 22 / 24))
    detection = shorter.detecting.model_copy(update={"train": train})
    assert config == shorter.model_copy(update={"name": path.stem, "detection": detection})


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in LONGER], ids=lambda path: path.stem)
def test_its_slim_detector_trains_for_a_step(folder, path, tmp_path):
    config = config_on(folder, path, *WITHOUT_IMAGES)
    assert isinstance(config.detecting.data, VocData) == path.stem.startswith("voc")
    coco = config.detecting.data.train
    classes = tuple(row["name"] for row in read_annotations(coco.annotations)["categories"])
    small = replace(config.detecting.model, image_size_hw=SIZE_HW, num_proposals=20, roi_samples=16, fpn_channels=16)
    backbone = Architecture(config.backbone.name, 1, config.backbone.base_channels)
    detector, card = new_detector(backbone, classes, replace(small, head_channels=16), seed=0)
    recipe = next(iter(config.prunings.values())).recipes[0]
    patterns = tuple(pattern for pattern in recipe.skip if not pattern.startswith("classifier"))
    slim, card, pruned = prune_detector(detector, card, replace(recipe, skip=patterns), verify=False)  # in other tests
    assert any(decision.num_kept < decision.num_channels for decision in pruned.decisions)
    schedule = replace(config.detecting.train, epochs=1, batch_size=2, num_workers=0, warmup_iters=1)
    curve = train_detector(slim, card, coco, schedule, tmp_path, seed=0)
    assert math.isfinite(curve.epochs[0].losses["loss"])
