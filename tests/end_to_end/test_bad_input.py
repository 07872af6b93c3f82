import json
import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from PIL import Image

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs/experiment"


@pytest.fixture
def quickstart(command, tmp_path):
    def run(*sets):
        overrides = [part for text in sets for part in ("--set", text)]
        return command("run", CONFIGS / "quickstart.py", "--out", tmp_path / "run", *overrides)

    return run


@pytest.fixture
def photos(tmp_path):
    """A correct set of two photographs in COCO format, for tests to damage."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 48)).save(folder / "images" / name)
    images = [{"id": i, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(("a.png", "b.png"))]
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [4, 4, 30, 30], "area": 900, "iscrowd": 0}
    coco = {"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "cell"}]}
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").write_text(json.dumps(coco))
    return folder


def spoil(photos, change):
    path = photos / "instances_train.json"
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def refused(done, *texts):
    """One line beside notes on the data, exit code 2, no traceback."""
    code, _, stderr = done
    assert code == 2, stderr
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith("note: ")]
    assert len(lines) == 1, stderr
    assert all(text in lines[0] for text in texts), lines[0]


def run_photos(command, photos, *sets):
    overrides = [part for text in (f"detection.data.root={photos}", *sets) for part in ("--set", text)]
    return command("run", CONFIGS / "photos.py", "--out", photos.parent / "run", *overrides)


def test_an_unknown_key_is_refused_with_the_nearest_ones(quickstart, tmp_path):
    refused(quickstart("detection.train.epoch=3"), "unknown key detection.train.epoch", "epochs")
    assert not (tmp_path / "run").exists()


def test_ratio_one_is_refused(quickstart):
    refused(quickstart("pruning.prune_ratios=(1.0,)"), "prune_ratio", "got 1.0", "[0, 1)")


def test_a_missing_data_folder_is_refused(command, tmp_path):
    refused(run_photos(command, tmp_path / "nowhere"), "nowhere: no such folder")


def test_an_annotation_file_that_is_not_coco_is_refused(command, photos):
    (photos / "instances_train.json").write_text("[]")
    refused(run_photos(command, photos), "instances_train.json: not COCO")


def test_missing_images_are_refused(command, photos):
    (photos / "images/b.png").unlink()
    refused(run_photos(command, photos), "b.png: no such image", "1 of the 2")


def test_a_box_outside_its_image_is_refused(command, photos):
    spoil(photos, lambda coco: coco["annotations"][0].update(bbox=[50, 4, 30, 30]))
    refused(run_photos(command, photos), "annotation 1: box outside its image", "64 x 48")


def test_a_checkpoint_of_another_architecture_is_refused(command, photos, tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    done = run_photos(command, photos, f"backbone.weights={tmp_path / 'other.pth'}")
    refused(done, "other.pth: of another architecture")


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(command, photos, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    refused(run_photos(command, photos, f"backbone.weights={tmp_path / 'evil.pth'}"), "evil.pth: no plain weights")
    assert not (tmp_path / "ran").exists()


def test_a_run_folder_in_use_is_refused(quickstart, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with FileLock(folder / ".lock"):
        refused(quickstart(), "in use by another run")


def test_a_missing_config_is_refused(command, tmp_path):
    refused(command("run", tmp_path / "none.py"), "none.py: no such file")


def test_nothing_is_written_before_the_checks(command, photos):
    (photos / "images/a.png").write_bytes(b"no image")
    refused(run_photos(command, photos), "a.png: does not decode")
    assert not (photos.parent / "run").exists()
