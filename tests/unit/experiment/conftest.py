import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from classify.image_data import FolderData
from classify.synthetic import SHAPES, write_shapes
from detect.synthetic import write_scenes
from experiment.data import Boxes, Data, Part

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
