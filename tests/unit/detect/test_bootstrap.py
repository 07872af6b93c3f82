import json

import numpy as np
import pytest

from detect import bootstrap
from detect.annotations import read_annotations
from detect.evaluate import coco_evaluation, coco_map

SIZE = 20  # of an image


@pytest.fixture
def reference(shared_data):
    """The detections on 100 images of COCO that cocoapi comes with, and their annotations."""
    folder = shared_data / "coco_eval"
    return (
        folder / "instances_val2014_100_bbox.json",
        json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text()),
    )


@pytest.fixture
def ten(write_coco):
    """Ten images with one box each."""
    images = [{"id": i, "file_name": f"{i}.png", "width": SIZE, "height": SIZE} for i in range(10)]
    box = {"category_id": 3, "bbox": [2, 2, 10, 10], "area": 100, "iscrowd": 0}
    return write_coco(images=images, annotations=[{**box, "id": i, "image_id": i} for i in range(10)]).annotations


def map_of_draws(annotations, results, draws):
    return bootstrap.map_of_draws(coco_evaluation(annotations, results), draws)


def difference_interval(annotations, *both):
    return bootstrap.difference_interval(*(coco_evaluation(annotations, rows) for rows in both))


def found_in(*images, shift=0.0):
    return [{"image_id": i, "category_id": 3, "bbox": [2 + shift, 2, 10, 10], "score": 0.9 - i / 100} for i in images]


def test_every_image_once_gives_the_map_of_pycocotools(reference):
    annotations, results = reference
    once = np.ones(len(read_annotations(annotations)["images"]), int)
    assert map_of_draws(annotations, results, once) == pytest.approx(coco_map(annotations, results)["map"], abs=1e-9)


def test_an_image_drawn_twice_counts_as_two(reference, tmp_path):
    annotations, results = reference
    data = read_annotations(annotations)
    ids = sorted(image["id"] for image in data["images"])
    again = max(ids) + 1  # the first image once more, as the last one
    data["images"].append({**next(i for i in data["images"] if i["id"] == ids[0]), "id": again})
    boxes = [row for row in data["annotations"] if row["image_id"] == ids[0]]
    highest = max(row["id"] for row in data["annotations"])
    data["annotations"] += [{**row, "id": highest + n, "image_id": again} for n, row in enumerate(boxes, 1)]
    (tmp_path / "twice.json").write_text(json.dumps(data))
    rows = results + [{**row, "image_id": again} for row in results if row["image_id"] == ids[0]]
    draws = np.ones(len(ids), int)
    draws[0] = 2
    expected = coco_map(tmp_path / "twice.json", rows)["map"]
    assert map_of_draws(annotations, results, draws) == pytest.approx(expected, abs=2e-3)  # equal scores may change


def test_half_of_the_objects_found_has_half_the_map(ten):
    draws = np.ones(10, int)
    assert map_of_draws(ten, found_in(*range(10)), draws) == pytest.approx(1.0)
    assert map_of_draws(ten, found_in(*range(5)), draws) == pytest.approx(51 / 101)  # of 101 recalls, up to 0.5
    assert map_of_draws(ten, found_in(*range(5)), np.repeat([2, 0], 5)) == pytest.approx(1.0)
    assert map_of_draws(ten, [], draws) == 0


def test_equal_detections_differ_by_nothing(ten):
    assert difference_interval(ten, found_in(*range(7)), found_in(*range(7))) == (0, 0)


def test_worse_boxes_everywhere_are_surely_worse(ten):
    low, high = difference_interval(ten, found_in(*range(10), shift=2.0), found_in(*range(10)))
    assert low <= high < 0


def test_one_object_of_ten_may_be_chance(ten):
    low, high = difference_interval(ten, found_in(*range(9)), found_in(*range(10)))
    assert low < 0
    assert high == 0  # a third of the draws lack that image
