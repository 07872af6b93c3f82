import contextlib
import json
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, read_weights, save_model
from classify.curve import read_curve
from classify.provenance import origin
from classify.pruning import prune_classifier
from classify.synthetic import SHAPES
from command.config import read_config
from command.folders import training_folder
from detect import load_detector, save_detector
from detect.annotations import read_annotations
from detect.cli import app
from detect.config import CocoData, DetectorTraining
from detect.data import CocoSet, fingerprint
from detect.evaluate import evaluate_detector

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/detect").glob("*.py"))
CONFIG = """
start = dict({start})
data = dict({data})
{model}
schedule = dict(epochs=1, batch_size=4, lr=1e-3)
"""
MODEL = "model = dict(image_size_hw=(64, 96), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16)"
SCENES = "type='scenes', num_train=4, num_val=2"
DENSE = "type='dense', name='resnet18', base_channels=16"


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def config(tmp_path):
    """Write a config; it is in a folder of its own."""

    def write(start=DENSE, data=SCENES, model=MODEL):
        path = tmp_path / "config/c.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(CONFIG.format(start=start, data=data, model=model))
        return path

    return write


@pytest.fixture
def slim_classifier(tmp_path):
    """The model file of a slim ResNet-18."""
    torch.manual_seed(0)
    arch = Architecture("resnet18", 3, 16)
    card = ModelCard("classifier", arch, ("a", "b", "c"), Preprocessing((32, 32)))
    slim, slim_card, _ = prune_classifier(build_classifier(arch), card, 0.5)
    save_model(tmp_path / "slim.safetensors", slim, slim_card)
    return tmp_path / "slim.safetensors"


@pytest.fixture
def model(trained, tmp_path):
    """The model file of a detector trained on the scenes."""
    path = tmp_path / "model.safetensors"
    save_detector(path, *trained)
    return path


def test_train_transfers_a_slim_classifier(config, slim_classifier, tmp_path):
    out = tmp_path / "out/d.safetensors"
    path = config(f"type='transfer', file='{slim_classifier}'")
    result = invoke("train", path, "--set", "schedule.lr=1e-9", "--out", out)
    detector, card = load_detector(out)
    bands = ["map", "map50", "map75", "map_small", "map_medium", "map_large"]
    assert [line.split()[0] for line in result.stdout.splitlines()] == [*bands, *SHAPES]
    assert result.stderr.endswith(
        f"and {out.with_suffix('.py')} for mmdet's tools\nnext: espalier deploy export {out}\n"
    )
    (epoch,) = read_curve(out.with_suffix(".curve.json")).epochs
    assert [*epoch.figures] == bands
    assert card.spec is not None
    first = read_weights(slim_classifier)["conv1.weight"]
    torch.testing.assert_close(detector.backbone.net.conv1.weight.detach(), first, atol=1e-6, rtol=0)
    assert not (tmp_path / "out/d.training").exists()


def test_train_starts_a_dense_backbone_from_random_weights(config, tmp_path):
    invoke("train", config(), "--out", tmp_path / "d.safetensors")
    _, card = load_detector(tmp_path / "d.safetensors")
    assert card.backbone == Architecture("resnet18", 6, 16)
    assert card.provenance["parent"] is None


def test_train_goes_on_from_a_detector_at_its_own_image_size(config, model, tmp_path):
    path = config(f"type='finetune', file='{model}'", model="")
    invoke("train", path, "--set", "schedule.lr=1e-9", "--out", tmp_path / "d.safetensors")
    before, after = (
        read_weights(file)["roi_head.bbox_head.fc_cls.weight"] for file in (model, tmp_path / "d.safetensors")
    )
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    assert (tmp_path / "scenes-128x128-4-seed0").is_dir()


def test_settings_of_a_detector_that_has_its_own_are_refused(config, model):
    with pytest.raises(
        ValueError, match=r"c.py: model: not used with finetune, got settings; drop them, .* has its own"
    ):
        invoke("train", config(f"type='finetune', file='{model}'"))


def test_train_on_coco_files(config, scenes, tmp_path):
    files = {
        f"{split}_{what}": str(getattr(scenes, what))
        for split in ("train", "val")
        for what in ("annotations", "images")
    }
    data = ", ".join(f"{key}={value!r}" for key, value in {"type": "coco", "root": "/", **files}.items())
    assert invoke("train", config(data=data), "--out", tmp_path / "d.safetensors").exit_code == 0


@pytest.fixture
def coco_config(config, scenes, tmp_path):
    """A config that names a copy of the generated scenes, and that copy."""
    root = tmp_path / "coco"
    shutil.copytree(scenes.annotations.parent, root)
    places = ", ".join(f"{s}_annotations='{scenes.annotations.name}', {s}_images='images'" for s in ("train", "val"))
    return config(data=f"type='coco', root='{root}', {places}"), CocoSet(
        root / scenes.annotations.name, root / "images"
    )


def test_changed_coco_data_is_noticed(coco_config, tmp_path):
    path, coco = coco_config
    out = tmp_path / "d.safetensors"
    made_from = origin(read_config(path, (), DetectorTraining), None, [fingerprint(coco)] * 2)
    with contextlib.suppress(KeyboardInterrupt), training_folder(out, made_from, force=False):
        raise KeyboardInterrupt
    coco.annotations.write_text(coco.annotations.read_text() + " ")
    with pytest.raises(ValueError, match=r"d\.training: left by a training with another config, start file or data"):
        invoke("train", path, "--out", out)
    invoke("train", path, "--out", out, "--force")
    assert load_detector(out)[1].provenance["data"] == [fingerprint(coco)] * 2


def test_a_second_training_of_the_same_file_is_refused(config, tmp_path):
    out = tmp_path / "d.safetensors"
    made_from = origin(read_config(config(), (), DetectorTraining), None)
    with (
        training_folder(out, made_from, force=False),
        pytest.raises(ValueError, match=r"d\.training: in use by another run; wait for it, or give"),
    ):
        invoke("train", config(), "--out", out)


def test_data_is_checked_before_training(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; set data.root to a COCO-format folder"):
        invoke("train", config(data=f"type='coco', root='{tmp_path / 'nowhere'}'"), "--out", tmp_path / "d.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_sets_of_different_categories_are_refused(config, write_coco, tmp_path):
    coco = write_coco()
    Image.new("RGB", (100, 50)).save(coco.images / "a.png")
    other = read_annotations(coco.annotations)
    other["categories"][0]["name"] = "dog"
    (tmp_path / "b.json").write_text(json.dumps(other))
    data = f"type='coco', root='{tmp_path}', train_annotations='a.json', val_annotations='b.json', "
    path = config(data=data + "train_images='images', val_images='images'")
    with pytest.raises(ValueError, match=r"b.json: categories differ from those of .*a.json; expected the same"):
        invoke("train", path, "--out", tmp_path / "d.safetensors")


@pytest.mark.parametrize("name", ["d.safetensors", "d.py"])
def test_existing_files_are_refused(config, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"{name}: exists already; give another --out, or --force to replace it"):
        invoke("train", config(), "--out", tmp_path / "d.safetensors")
    assert (tmp_path / name).read_text() == "mine"


def test_what_a_kill_left_is_written_again_unless_edited(config, trained, tmp_path):
    out = tmp_path / "d.safetensors"
    save_detector(out, *trained)
    out.unlink()
    invoke("train", config(), "--out", out)
    assert out.is_file()
    out.unlink()
    with out.with_suffix(".py").open("a") as file:
        file.write("# mine\n")
    with pytest.raises(ValueError, match=r"d\.py: exists already; give another --out, or --force to replace it"):
        invoke("train", config(), "--out", out)


def test_eval_gives_the_figures_of_evaluate_detector(model, trained, scenes, tmp_path):
    result = invoke("eval", model, scenes.annotations, scenes.images, "--json")
    figures, expected = json.loads(result.stdout), evaluate_detector(*trained, scenes, tmp_path / "evaluation")
    assert {key: figures[key] for key in expected} == expected
    assert statistics.mean(value for value in figures["per_class"].values() if value is not None) == pytest.approx(
        expected["map"]
    )
    assert figures["map_large"] is None  # scenes of 96 x 120 hold no such objects
    assert f"next: espalier deploy export {model}" in result.stderr


def test_eval_on_other_classes_is_refused(model, write_coco):
    coco = write_coco()
    Image.new("RGB", (100, 50)).save(coco.images / "a.png")
    with pytest.raises(
        ValueError, match=r"model.safetensors: knows other classes than the data has, got 1 \(cat ...\)"
    ):
        invoke("eval", model, coco.annotations, coco.images)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    assert read_config(path, (), DetectorTraining).schedule.epochs >= 1


def test_coco_has_mmdets_schedule():
    config = read_config(ROOT / "configs/detect/faster_rcnn_coco.py", (), DetectorTraining)
    schedule = config.schedule
    assert isinstance(config.data, CocoData)
    assert (schedule.optimizer, schedule.lr, schedule.batch_size, schedule.epochs) == ("SGD", 0.02, 16, 12)
    assert [round(share * schedule.epochs) for share in schedule.milestones] == [8, 11]
    assert (schedule.warmup_iters, schedule.weight_decay, schedule.momentum) == (500, 1e-4, 0.9)
