import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from classify.image_data import FolderData
from classify.synthetic import SHAPES, write_shapes
from detect.synthetic import write_scenes
from experiment.config import ExperimentConfig
from experiment.data import Boxes, Data, Part
from experiment.run import run_experiment

RECORD = Path(__file__).parents[3] / "benchmarks/photos-cpu/results.json"


@pytest.fixture
def results():
    """Results of a real run, of an older version without pictures."""
    return json.loads(RECORD.read_text())


@pytest.fixture
def pictured(results, tmp_path):
    """Those results with a picture that lies in `tmp_path`, the run's folder."""
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    box = {"box_xyxy": [4, 20, 24, 40], "label": 1}
    found = {row["name"]: [box | {"score": 0.9}] for row in results["rows"]}
    return results | {"pictures": [{"file": "a.png", "size_hw": [48, 64], "truth": [box], "detections": found}]}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Twelve generated images and four scenes."""
    folder = tmp_path_factory.mktemp("data")
    write_shapes(folder / "shapes", 12, 6, 32, seed=0)
    shutil.rmtree(folder / "shapes/val")  # as in a stage of a split
    images = Part(FolderData(type="folder", root=folder / "shapes"), "images", None)
    scenes = Part(write_scenes(folder / "scenes", 4, (64, 64), seed=0), "scenes", None)
    return Data(images, images, SHAPES, 12, Boxes(scenes, scenes, SHAPES, 4, 12))


def _tiny(**changes):
    """Return an experiment of two classifiers on generated images that runs in seconds."""
    training = {"epochs": 1, "batch_size": 8, "lr": 1e-3}
    settings = {
        "name": "tiny",
        "backbone": {"name": "resnet18", "base_channels": 8},
        "classification": {
            "data": {"type": "shapes", "num_train": 16, "num_val": 8},
            "image_size": 32,
            "train": training,
            "finetune": training,
        },
        "pruning": {"prune_ratios": (0.5,), "round_to": 1},
        "orderings": ("prune_transfer",),
        "latency": {"rounds": 10, "warmup": 1},
    }
    return ExperimentConfig(**{**settings, **changes})


def _run_tiny(folder, config, **options):
    return run_experiment(config, folder, "espalier run tiny", Console(file=io.StringIO()), **options)


@pytest.fixture
def tiny():
    """Returns an experiment of two classifiers that runs in seconds, with changed settings."""
    return _tiny


@pytest.fixture
def run_tiny():
    """Runs an experiment into a folder."""
    return _run_tiny


@pytest.fixture(scope="session")
def _ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "run"
    _run_tiny(folder, _tiny())
    return folder


@pytest.fixture
def ran(_ran, tmp_path):
    """A finished run of `tiny`, which the test may change."""
    return shutil.copytree(_ran, tmp_path / "run")
