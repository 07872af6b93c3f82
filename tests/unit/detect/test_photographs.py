"""On real photographs an exported detector finds what mmdet's own prediction finds, box by box."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from typer.testing import CliRunner

from classify.backbones import Architecture
from classify.checkpoint import load_weights, read_weights
from deploy import Detector
from deploy.fitting import read_image
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.annotations import read_annotations
from detect.data import CocoSet, check_coco
from detect.predict import predict
from experiment.cli import app

pytestmark = pytest.mark.slow

TRAINED = Path(__file__).parents[2] / "data/small_cells_detector.safetensors"
SETTINGS = DetectorSettings(
    (192, 256), fpn_channels=32, head_channels=64, num_proposals=100, roi_samples=32, anchor_scale=4
)
NUM_PHOTOGRAPHS = 21  # which no batch of two divides
LEAST_SCORE = 0.3
LIMITS = np.array([0.05, 0.05, 0.05, 0.05, 1e-4])
"""Largest differences of boxes, in pixels, and of scores."""


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def cells(shared_data):
    """Photographs of blood cells, 240 x 320, which scale to the detector's shape without padding."""
    folder = shared_data / "bccd"
    return {split: CocoSet(folder / f"instances_{split}.json", folder / "images") for split in ("train", "val")}


@pytest.fixture(scope="module")
def model(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    net, card = new_detector(Architecture("resnet18", 1, 8), check_coco(cells["train"]), SETTINGS, seed=0)
    load_weights(net, read_weights(TRAINED), str(TRAINED))
    save_detector(folder / "cells.safetensors", net, card)
    return folder / "cells.safetensors"


@pytest.fixture(scope="module")
def deployed(model, cells):
    """Return the folder that `deploy export` writes for a batch size."""
    coco = cells["train"]
    pictures = ("--set", f"pictures.annotations={coco.annotations}", "--set", f"pictures.images={coco.images}")

    def export(batch):
        folder = model.with_name(f"batch{batch}")
        invoke("deploy", "export", model, "--out", folder, "--set", f"batch={batch}", *pictures)
        return folder

    return {batch: export(batch) for batch in (1, 2)}


@pytest.fixture(scope="module")
def photographs(cells):
    rows = read_annotations(cells["val"].annotations)["images"][:NUM_PHOTOGRAPHS]
    return [cells["val"].images / row["file_name"] for row in rows]


@pytest.fixture(scope="module")
def expected(model, photographs):
    """What mmdet's own prediction finds in each."""
    return list(predict(*load_detector(model), map(read_image, photographs), 0.0))


def in_limits(things, name):
    return [[*thing.box_xyxy, thing.score] / LIMITS for thing in things if thing.name == name]


def assert_same(found, expected):
    """Pair what was found in each photograph one to one, those nearest to each other, and compare."""
    for things, others in zip(found, expected, strict=True):
        names = [thing.name for thing in things]
        assert sorted(names) == sorted(other.name for other in others)
        for name in set(names):
            apart = cdist(in_limits(things, name), in_limits(others, name), "chebyshev")
            assert apart[linear_sum_assignment(apart)].max() <= 1


@pytest.mark.parametrize("batch", [1, 2])
def test_the_file_finds_what_mmdet_finds(deployed, photographs, expected, batch):
    assert sum(thing.score >= LEAST_SCORE for things in expected for thing in things) > 100
    assert_same(Detector.load(deployed[batch])(photographs, min_score=0.0), expected)


def test_the_file_agrees_with_pytorch_on_its_own_pictures(deployed):
    parity = json.loads((deployed[1] / "deploy.json").read_text())["parity"]
    assert parity["num_agreed"] == parity["num_detections"] > 40


def test_the_file_has_the_map_of_its_model(deployed, cells):
    coco = cells["val"]
    figures = json.loads(invoke("deploy", "eval", deployed[1], coco.annotations, coco.images, "--json"))
    assert figures["framework_map"] > 0.2
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=1e-4)
