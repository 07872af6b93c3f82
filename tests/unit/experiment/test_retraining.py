"""After a cut, `espalier prune` prints the command that trains on, with the data that is known."""

import shlex

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, save_model
from classify.synthetic import SHAPES, write_shapes
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.synthetic import write_scenes

pytestmark = pytest.mark.slow

CLASSES = ("cat", "dog")
SHORT = ("--set", "schedule.epochs=1", "--set", "schedule.batch_size=4")


@pytest.fixture
def write_classifier(tmp_path):
    """Write an untrained classifier whose file names its data."""

    def write(config, classes=CLASSES):
        arch, path = Architecture("resnet18", len(classes), 8), tmp_path / "my models/net.safetensors"
        torch.manual_seed(0)
        card = ModelCard("classifier", arch, classes, Preprocessing((32, 32)), provenance={"config": config})
        save_model(path, build_classifier(arch), card)
        return path

    return write


@pytest.fixture
def images(tmp_path):
    """An image folder with two classes and a space in its name."""
    root = tmp_path / "my images"
    write_shapes(root, 12, 6, 32, seed=0)
    for split in ("train", "val"):
        for name, old in zip(CLASSES, SHAPES, strict=False):
            (root / split / old).rename(root / split / name)
        for rest in SHAPES[2:]:
            (root / split / rest).rename(root.parent / f"{split}-{rest}")
    return root


@pytest.fixture
def next_after_prune(invoke):
    """Cut a model file and return the words of the command that is printed."""

    def run(config, model, *options):
        result = invoke("prune", config, model, *options)
        return shlex.split(result.stderr.splitlines()[-1].removeprefix("next: espalier "))

    return run


def folder_data(root):
    return f'data={{"_delete_": True, "type": "folder", "root": "{root}"}}'


def test_a_classifier_is_trained_on_with_the_data_of_its_training(invoke, write_classifier, images, next_after_prune):
    model = write_classifier({"data": {"type": "folder", "root": str(images)}})
    words = next_after_prune("l1_half", model)
    slim, out = model.with_name("net-l1-0.5.safetensors"), model.with_name("out.safetensors")
    given = [
        "--set",
        f"start.file={slim}",
        "--set",
        folder_data(images),
        "--set",
        "image_size=32",
        "--set",
        "crop_share=1.0",
    ]
    assert words == ["classify", "train", "imagenet_finetune", *given]
    assert invoke(*words, *SHORT, "--out", out).exit_code == 0
    assert load_classifier(out)[1].spec is not None


def test_the_data_of_the_pruning_comes_first(write_classifier, images, next_after_prune):
    model = write_classifier({"data": {"type": "shapes"}})
    data = ("--set", "data.type=folder", "--set", f"data.root={images}", "--set", "calibration.num_batches=1")
    assert folder_data(images) in next_after_prune("taylor", model, *data)


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"data": {"type": "folder", "root": "gone"}},
        {"data": {"type": "folder", "root": "x" * 300}},
        {"data": {"type": "coco", "root": "."}},
        {"classification": {"data": {"type": "crops"}}},
        {"classification": 3},
    ],
)
def test_data_that_nobody_named_is_a_placeholder(write_classifier, next_after_prune, config):
    assert folder_data("FOLDER") in next_after_prune("l1_half", write_classifier(config))


def test_a_classifier_of_an_experiment_has_its_data_there(write_classifier, images, next_after_prune):
    config = {"classification": {"data": {"type": "folder", "root": str(images)}}}
    assert folder_data(images) in next_after_prune("l1_half", write_classifier(config))


def test_generated_data_as_in_the_config_is_not_repeated(write_classifier, next_after_prune):
    model = write_classifier({"data": {"type": "shapes", "num_train": 1200, "num_val": 300, "seed": 0}}, SHAPES)
    assert not any(word.startswith("data=") for word in next_after_prune("l1_half", model))
    other = write_classifier({"data": {"type": "shapes", "num_train": 60}}, SHAPES)
    assert 'data={"_delete_": True, "type": "shapes", "num_train": 60}' in next_after_prune("l1_half", other, "--force")


def test_a_detector_is_trained_on_with_the_data_of_its_training(invoke, tmp_path, next_after_prune):
    root = tmp_path / "my set"
    for split in ("train", "val"):
        write_scenes(root / split, 4, (64, 96), seed=0)
    places = {f"{split}_annotations": f"{split}/instances.json" for split in ("train", "val")}
    places |= {f"{split}_images": f"{split}/images" for split in ("train", "val")}
    settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    detector, card = new_detector(Architecture("resnet18", 1, 16), SHAPES, settings, seed=0)
    card.provenance["config"] = {"data": {"type": "coco", "root": str(root), **places}}
    save_detector(tmp_path / "det.safetensors", detector, card)
    words = next_after_prune("l1_half", tmp_path / "det.safetensors")
    assert words[:3] == ["detect", "train", "faster_rcnn_coco_finetune"]
    assert invoke(*words, *SHORT, "--out", tmp_path / "out.safetensors").exit_code == 0
    assert load_detector(tmp_path / "out.safetensors")[1].provenance["config"]["data"]["root"] == str(root)
