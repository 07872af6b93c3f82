import copy
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from PIL import Image

from classify.backbones import Architecture
from classify.checkpoint import load_weights, read_weights
from classify.mmengine_runner import silent
from classify.schedule import Schedule
from detect import DetectorSettings, mmdet_config, new_detector
from detect.annotations import read_annotations
from detect.data import CocoSet
from detect.pruning import prune_detector
from detect.synthetic import write_scenes
from detect.train import coco_loader

TRAINED = Path(__file__).parents[2] / "data/small_detector.safetensors"


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Eight generated scenes of 96 x 120, so that a detector of 128 x 128 must scale and pad them."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), 8, (96, 120), seed=0)


@pytest.fixture(scope="session")
def classes(scenes):
    return tuple(category["name"] for category in read_annotations(scenes.annotations)["categories"])


@pytest.fixture(scope="session")
def tiny(classes):
    """Return a fresh narrow Faster R-CNN and its card."""

    def build(seed=0, name="resnet18", image_size_hw=(128, 128), **settings):
        settings = {
            "fpn_channels": 16,
            "head_channels": 32,
            "num_proposals": 50,
            "roi_samples": 16,
            "anchor_scale": 4,
            **settings,
        }
        return new_detector(
            Architecture(name, 1, 8), classes, DetectorSettings(image_size_hw=image_size_hw, **settings), seed
        )

    return build


@pytest.fixture(scope="session")
def schedule():
    """The fewest iterations that run every part of training."""
    return Schedule(epochs=1, batch_size=4, lr=1e-3, warmup_iters=2)


@pytest.fixture(scope="session")
def _trained(tiny):
    detector, card = tiny()
    load_weights(detector, read_weights(TRAINED), str(TRAINED))
    return detector.eval(), card


@pytest.fixture
def trained(_trained):
    """A detector trained on such scenes, in eval mode, and its card."""
    return copy.deepcopy(_trained[0]), _trained[1]


@pytest.fixture(scope="session")
def _slim(_trained):
    return prune_detector(*_trained, 0.5)


@pytest.fixture
def slim(_slim):
    """The trained detector with half of its backbone, in eval mode, its card, and what was pruned."""
    return copy.deepcopy(_slim[0]).eval(), *_slim[1:]


@pytest.fixture(scope="session")
def found_by(scenes):
    """Return what a detector finds in the first scene, by mmdet's own inference from the file on."""
    from mmdet.apis import inference_detector  # after detect, which installs the operators it needs

    def found(detector, card):
        detector.cfg = mmdet_config(card)
        detector.roi_head.test_cfg.score_thr = 0.0  # right after pruning, its scores are low
        name = read_annotations(scenes.annotations)["images"][0]["file_name"]
        with DefaultScope.overwrite_default_scope("mmdet"):
            instances = inference_detector(detector, str(scenes.images / name)).pred_instances
        assert len(instances) > 0
        return dict(instances.items())

    return found


@pytest.fixture(scope="session")
def images():
    return torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def train_loss(scenes):
    """Return the loss over the eight scenes at once, with a graph to run backward."""

    def loss(detector, card):
        with silent():
            dataset = DATASETS.build({**coco_loader(card, scenes)["dataset"], "_scope_": "mmdet"})
        rows = [dataset[i] for i in range(len(dataset))]
        batch = {key: [row[key] for row in rows] for key in ("inputs", "data_samples")}
        torch.manual_seed(0)  # RoIs are drawn
        losses = detector(**detector.data_preprocessor(batch, training=True), mode="loss")
        return detector.parse_losses(losses)[0]

    return loss


@pytest.fixture
def write_coco(tmp_path):
    """Write a valid annotation file, with the given top-level keys replaced."""

    def write(**changes) -> CocoSet:
        row = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
        data = {
            "images": [{"id": 7, "file_name": "a.png", "width": 100, "height": 50}],
            "annotations": [row],
            "categories": [{"id": 3, "name": "cat"}],
        }
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "a.json").write_text(json.dumps({**data, **changes}))
        return CocoSet(tmp_path / "a.json", tmp_path / "images")

    return write


@pytest.fixture
def save_image():
    """Write a picture, 100 wide and 50 high, as the image that `write_coco` names."""

    def save(coco, size_wh=(100, 50), name="a.png", pixels=None):
        picture = Image.new("RGB", size_wh) if pixels is None else Image.fromarray(pixels)
        picture.save(coco.images / name)
        return coco

    return save
