import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from classify.synthetic import SHAPES, draw_shape
from detect.annotations import read_annotations
from detect.data import check_coco
from detect.synthetic import write_scenes


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pixels(coco, image):
    return np.asarray(Image.open(coco.images / image["file_name"]))


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_scenes(tmp_path / name, 2, (64, 96), seed=3)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert len(content(tmp_path / "a")) == 3


def test_another_seed_gives_other_pictures_and_boxes(tmp_path):
    for seed in (3, 4):
        write_scenes(tmp_path / str(seed), 1, (64, 96), seed)
    first, second = content(tmp_path / "3"), content(tmp_path / "4")
    assert all(first[name] != second[name] for name in first)


def test_pictures_have_the_requested_size(scenes):
    data = read_annotations(scenes.annotations)
    assert [pixels(scenes, image).shape for image in data["images"]] == [(96, 120, 3)] * 8


def test_every_picture_has_one_to_six_boxes_inside_it(tmp_path):
    data = read_annotations(write_scenes(tmp_path, 30, (64, 96), seed=0).annotations)
    boxes = np.array([row["bbox"] for row in data["annotations"]])
    counts = np.bincount([row["image_id"] for row in data["annotations"]], minlength=30)
    assert counts.min() >= 1
    assert counts.max() <= 6
    assert (boxes >= [0, 0, 1, 1]).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [96, 64]).all()


def test_every_shape_is_drawn_and_named(tmp_path):
    coco = write_scenes(tmp_path, 30, (64, 96), seed=0)
    assert check_coco(coco) == SHAPES
    assert {row["category_id"] for row in read_annotations(coco.annotations)["annotations"]} == {1, 2, 3, 4, 5, 6}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [7, 20, 31])
def test_a_drawn_shape_fills_its_box(shape, side):
    picture = Image.new("RGB", (60, 50), (128, 128, 128))
    draw_shape(picture, shape, (11, 5, 11 + side, 5 + side), np.random.default_rng(0))
    drawn = (np.asarray(picture) != 128).any(-1)
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    assert (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) == (11, 5, 11 + side, 5 + side)


def test_a_square_in_a_scene_is_one_colour_up_to_the_edge_of_its_box(tmp_path):
    coco = write_scenes(tmp_path, 1, (96, 120), seed=0)
    data = read_annotations(coco.annotations)
    picture = pixels(coco, data["images"][0])
    square = next(row for row in data["annotations"] if row["category_id"] == SHAPES.index("square") + 1)
    x, y, w, h = square["bbox"]
    inside = picture[y : y + h, x : x + w]
    assert (inside == inside[0, 0]).all()
    for outside in (picture[y : y + h, x - 1], picture[y - 1, x : x + w], picture[y : y + h, x + w]):
        assert (outside != inside[0, 0]).any(-1).all()


def test_annotation_numbers_count_from_one(scenes):
    numbers = [row["id"] for row in json.loads(scenes.annotations.read_text())["annotations"]]
    assert numbers[0] == 1
    assert all(b == a + 1 for a, b in pairwise(numbers))
