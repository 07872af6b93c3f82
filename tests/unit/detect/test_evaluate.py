import json

import numpy as np
import pytest
import torch
from PIL import Image

from deploy.agreement import agreement
from detect.annotations import read_annotations
from detect.evaluate import Detections, coco_map, coco_rows, detections_by_graph, evaluate_detector
from detect.fixed_shape import FixedShapeDetector

ZEROS = {"map": 0.0, "map50": 0.0, "map75": 0.0}


def perfect_rows(annotations):
    rows = read_annotations(annotations)["annotations"]
    return [{key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for row in rows]


@pytest.fixture
def two_images(write_coco):
    """Two images of 100 x 50 with one box each, the annotations' ids counting from 0."""
    row = {"image_id": 0, "category_id": 3, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
    coco = write_coco(
        images=[{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in (0, 1)],
        annotations=[{**row, "id": i, "image_id": i} for i in (0, 1)],
    )
    red = np.zeros((50, 100, 3), np.uint8)
    red[..., 0] = 255
    for i in (0, 1):
        Image.fromarray(red).save(coco.images / f"{i}.png")
    return coco


def test_the_reference_detections_get_the_reference_figures(shared_data):
    folder = shared_data / "coco_eval"
    results = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    assert len(results) == 734
    found = coco_map(folder / "instances_val2014_100_bbox.json", results)
    # printed by the cocoapi for its own example
    assert found == pytest.approx({"map": 0.504581, "map50": 0.696973, "map75": 0.572982}, abs=1e-6)


def test_no_detections_score_0(scenes):
    assert coco_map(scenes.annotations, []) == ZEROS


def test_all_boxes_found_score_1(scenes):
    found = coco_map(scenes.annotations, perfect_rows(scenes.annotations))
    assert found == pytest.approx({"map": 1.0, "map50": 1.0, "map75": 1.0})


def test_boxes_of_another_class_score_0(two_images):
    data = read_annotations(two_images.annotations)
    data["categories"].append({"id": 4, "name": "dog"})
    two_images.annotations.write_text(json.dumps(data))
    rows = [{**row, "category_id": 4} for row in perfect_rows(two_images.annotations)]
    assert coco_map(two_images.annotations, rows) == ZEROS


def test_an_annotation_numbered_zero_counts_like_any_other(two_images):
    assert coco_map(two_images.annotations, perfect_rows(two_images.annotations))["map"] == pytest.approx(1.0)


def test_an_image_without_detections_counts(two_images):
    rows = perfect_rows(two_images.annotations)[:1]
    # precision is 1 up to recall 0.5, that is at 51 of COCO's 101 recall points, and 0 beyond
    assert coco_map(two_images.annotations, rows)["map"] == pytest.approx(51 / 101)


@pytest.mark.parametrize(
    ("overlap", "thresholds_reached"),
    # a box of 30 x 15 of which only `overlap` of 30 columns are claimed has IoU overlap / 30
    [(15, 1), (18, 3), (24, 7), (30, 10)],  # IoU 0.5, 0.6, 0.8 and 1 reach 1, 3, 7 and 10 of 0.50, 0.55 .. 0.95
)
def test_map_is_the_mean_over_ten_overlap_thresholds(two_images, overlap, thresholds_reached):
    rows = [{**row, "bbox": [10, 20, overlap, 15]} for row in perfect_rows(two_images.annotations)]
    assert coco_map(two_images.annotations, rows)["map"] == pytest.approx(thresholds_reached / 10)


def test_boxes_come_back_in_the_images_own_pixels(two_images):
    def graph(inputs):
        (height, width), size = inputs["image_hw"][0], inputs["image"].shape[2:]
        assert (height, width, *size) == (32, 64, 64, 64)
        boxes = np.array([[[0, 0, 64, 32], [16, 8, 32, 24], [1, 1, 2, 2]]], np.float32)
        return {"boxes_xyxy": boxes, "scores": np.array([[0.9, 0.8, 0.0]]), "labels": np.array([[1, 0, -1]])}

    first, second = detections_by_graph(graph, two_images, (64, 64))
    assert (first.image_id, second.image_id) == (0, 1)
    np.testing.assert_allclose(first.boxes_xyxy, [[0, 0, 100, 50], [25, 12.5, 50, 37.5]])  # / 0.64
    assert first.scores.tolist() == [0.9, 0.8]
    assert first.labels.tolist() == [1, 0]


def test_a_graph_is_given_red_green_blue(two_images):
    colours = []

    def graph(inputs):
        colours.append(inputs["image"][0, :, 0, 0].tolist())
        return {"boxes_xyxy": np.zeros((1, 1, 4)), "scores": np.zeros((1, 1)), "labels": np.full((1, 1), -1)}

    assert [len(found.boxes_xyxy) for found in detections_by_graph(graph, two_images, (64, 128))] == [0, 0]
    assert colours == [[255, 0, 0], [255, 0, 0]]


def test_result_rows_hold_category_ids_and_box_sizes():
    found = Detections(7, np.array([[1, 2, 5, 9]], np.float32), np.array([0.5], np.float32), np.array([1]))
    assert coco_rows(found, [10, 90]) == [{"image_id": 7, "category_id": 90, "bbox": [1, 2, 4, 7], "score": 0.5}]


def test_a_graph_scores_as_mmdets_own_evaluation(trained, scenes, tmp_path):
    detector, card = trained
    module = FixedShapeDetector(detector, (128, 128), debug=True, nms_iterations=60)

    def graph(inputs):
        outputs = module(*(torch.from_numpy(inputs[name]) for name in module.input_names))
        found = dict(zip(module.output_names, (value.numpy() for value in outputs), strict=True))
        assert found.pop("nms_converged").all()
        return found

    category_ids = [category["id"] for category in read_annotations(scenes.annotations)["categories"]]
    detections = detections_by_graph(graph, scenes, (128, 128))
    found = coco_map(scenes.annotations, [row for d in detections for row in coco_rows(d, category_ids)])
    expected = evaluate_detector(detector, card, scenes, tmp_path)
    assert expected["map50"] > 0.1
    assert found == pytest.approx(expected, abs=1e-3)


def test_a_detector_that_finds_nothing_scores_zero(tiny, scenes, tmp_path):
    detector, card = tiny()
    detector.roi_head.test_cfg.score_thr = 1.0
    assert evaluate_detector(detector, card, scenes, tmp_path) == ZEROS


def outputs(boxes, scores, labels):
    return {"boxes_xyxy": np.array([boxes], np.float32), "scores": np.array([scores]), "labels": np.array([labels])}


def test_a_detection_too_many_counts_against_the_graph():
    expected = outputs([[0, 0, 9, 9], [0, 0, 0, 0]], [0.9, 0.0], [0, -1])
    assert agreement(expected, outputs([[0, 0, 9, 9], [0, 0, 5, 5]], [0.9, 0.5], [0, 1])) == (1, 2)


def test_detections_in_another_order_agree():
    expected = outputs([[0, 0, 9, 9], [0, 0, 5, 5], [0, 0, 0, 0]], [0.9, 0.5, 0.0], [0, 1, -1])
    swapped = {name: value[:, [1, 0, 2]] for name, value in expected.items()}
    assert agreement(expected, swapped) == (2, 2)  # the unused place does not count


def test_one_found_box_matches_one_expected_box_only():
    expected = outputs([[0, 0, 9, 9], [0, 0, 9, 9.05]], [0.9, 0.9], [0, 0])
    assert agreement(expected, outputs([[0, 0, 9, 9], [0, 0, 0, 0]], [0.9, 0.0], [0, -1])) == (1, 2)


@pytest.mark.parametrize(
    "other",
    [
        outputs([[0, 0, 9, 9.2]], [0.9], [0]),  # twice what is allowed
        outputs([[0, 0, 9, 9]], [0.9002], [0]),
        outputs([[0, 0, 9, 9]], [0.9], [1]),
    ],
    ids=["box", "score", "label"],
)
def test_a_detection_that_differs_does_not_agree(other):
    assert agreement(outputs([[0, 0, 9, 9]], [0.9], [0]), other) == (0, 1)
