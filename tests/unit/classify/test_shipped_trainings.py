"""Every config in configs/classify trains for a step and writes its file, on a few images of its data's layout."""

import math
from pathlib import Path

import pytest
from cifar_archives import write_cifar

from classify.backbones import Architecture, build_classifier, weightless
from classify.checkpoint import ModelCard, read_card, save_model
from classify.config import ClassifierTraining, Dense
from classify.image_data import CifarData, FolderData, ShapesData
from classify.pruning import prune_classifier
from classify.synthetic import SHAPES, write_shapes
from command.config import read_config

pytestmark = pytest.mark.slow

CONFIGS = sorted((Path(__file__).parents[3] / "configs/classify").glob("*.py"))
NUM_IMAGES = 12
SHORT = {"schedule.epochs": 1, "schedule.batch_size": NUM_IMAGES, "schedule.num_workers": 0}
SMALL = {"resnet34": "resnet18", "resnet50": "resnet18", "vgg11_bn": "mobilenet_v2"}
"""Network -> a smaller one with such layers that is trained in its place: checkpoints of the large ones take long."""


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """What to set for each kind of data: where a few images lie in its layout."""
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "images", NUM_IMAGES, 6, 32, seed=0)
    write_cifar(folder / "cifar-10-python.tar.gz", 10)
    return {
        FolderData: {"data.root": folder / "images"},
        CifarData: {"data.root": folder / "cifar-10-python.tar.gz"},
        ShapesData: {"data.num_train": NUM_IMAGES, "data.num_val": 6},
    }


@pytest.fixture(scope="module")
def slim_file(tmp_path_factory):
    """The file of a slim network, for trainings that begin with one."""
    card = ModelCard("classifier", Architecture("resnet18", len(SHAPES), 8), SHAPES)
    slim, card, _ = prune_classifier(build_classifier(card.backbone), card, 0.5)
    path = tmp_path_factory.mktemp("slim") / "net.safetensors"
    save_model(path, slim, card)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_training_takes_a_step(path, layouts, slim_file, invoke, tmp_path):
    settings = read_config(path, (), ClassifierTraining)
    given = {**SHORT, **layouts[type(settings.data)], "image_size": min(settings.image_size, 64)}
    if isinstance(settings.start, Dense):
        with weightless():
            build_classifier(Architecture(settings.start.name, 10, settings.start.base_channels))
        given["start.name"] = SMALL.get(settings.start.name, settings.start.name)
    else:
        given["start.file"] = slim_file
    if isinstance(settings.data, CifarData):
        given["schedule.batch_size"] = 20  # all of its training images
    if settings.method and settings.method.type == "structure_selection":
        given["method.prune_ratio"] = 0.25  # a step brings no factor to zero
    sets = [part for key, value in given.items() for part in ("--set", f"{key}={value}")]
    out = tmp_path / "net.safetensors"
    invoke("classify", "train", path, *sets, "--out", out)
    card = read_card(out)
    assert card.provenance["schedule"]["epochs"] >= 1
    assert math.isfinite(card.provenance["metrics"]["top1"])
    is_cut = settings.method is not None and settings.method.type != "magnitude"
    assert card.is_slim == (is_cut or not isinstance(settings.start, Dense))
