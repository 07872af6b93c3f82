"""VOC's average precision against figures worked by hand, and against mmdet's own whole evaluation."""

import numpy as np
import pytest
from mmdet.evaluation.functional import eval_map

from detect.bootstrap import difference_interval, map_of_draws
from detect.voc_map import voc_averages, voc_evaluation

BOX = [0, 0, 10, 10]
FAR = [50, 50, 10, 10]


def data_of(*objects, num_images=3, classes=("cat", "dog")):
    """Annotations of objects (image, category, bbox, difficult)."""
    keys = ("image_id", "category_id", "bbox", "difficult")
    return {
        "images": [{"id": i} for i in range(1, num_images + 1)],
        "annotations": [dict(zip(keys, row, strict=True)) for row in objects],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }


def found(*detections):
    """Result rows of detections (image, category, bbox, score)."""
    return [dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in detections]


def scores(data, rows):
    return voc_averages(voc_evaluation(data, rows))


THREE_CATS = data_of((1, 1, BOX, 0), (2, 1, BOX, 0), (3, 1, BOX, 0), (3, 1, FAR, 1))
FIVE = found(
    (1, 1, BOX, 0.9),  # found: recall 1/3, precision 1
    (1, 1, FAR, 0.8),  # nothing is there: 1/2
    (2, 1, BOX, 0.7),  # found: recall 2/3, precision 2/3
    (3, 1, FAR, 0.6),  # difficult: neither
    (2, 1, BOX, 0.5),  # a second time: precision 2/4
)


def test_the_mean_of_eleven_recalls_is_the_one_worked_by_hand():
    # precision 1 at the recalls 0 to 0.3, 2/3 at 0.4 to 0.6, 0 at 0.7 to 1
    assert scores(THREE_CATS, FIVE)["map50"] == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 0) / 11)


def test_the_area_is_the_one_worked_by_hand():
    assert scores(THREE_CATS, FIVE)["map50_area"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3)


def test_map_is_the_mean_of_eleven_recalls_too():
    figures = scores(THREE_CATS, FIVE)
    assert figures["map"] == figures["map50"]


def test_a_class_without_objects_to_be_found_does_not_count():
    # dogs: one that is difficult; found where none is, which nobody can be asked to avoid
    data = data_of((1, 1, BOX, 0), (1, 2, FAR, 1))
    assert scores(data, found((1, 1, BOX, 0.9), (2, 2, BOX, 0.9)))["map50"] == pytest.approx(1.0)


def test_the_mean_is_over_the_classes():
    data = data_of((1, 1, BOX, 0), (1, 2, FAR, 0))
    assert scores(data, found((1, 1, BOX, 0.9)))["map50"] == pytest.approx((1 + 0) / 2)


def test_nothing_found_scores_0():
    assert scores(THREE_CATS, []) == {"map": 0.0, "map50": 0.0, "map50_area": 0.0}


@pytest.mark.parametrize(("width", "expected"), [(5, 1.0), (4.9, 0.0)])
def test_an_overlap_of_half_is_enough(width, expected):
    data = data_of((1, 1, BOX, 0))  # 10 x 10, of which width x 10 is claimed: IoU width / 10
    assert scores(data, found((1, 1, [0, 0, width, 10], 0.9)))["map50"] == expected


def test_the_object_that_is_overlapped_most_counts_though_it_is_taken():
    # both overlap the first object most, so the second detection is false; COCO would give it the second object
    data = data_of((1, 1, [0, 0, 10, 10], 0), (1, 1, [0, 0, 10, 8], 0))
    rows = found((1, 1, [0, 0, 10, 10], 0.9), (1, 1, [0, 0, 10, 9.5], 0.8))
    # recall 1/2 with precision 1: the recalls 0 to 0.5
    assert scores(data, rows)["map50"] == pytest.approx(6 / 11)


@pytest.mark.parametrize(("difficult", "expected"), [((1, 0), 0), ((0, 1), 1)])
def test_of_objects_overlapped_alike_the_first_counts(difficult, expected):
    data = data_of(*((1, 1, BOX, flag) for flag in difficult))
    assert scores(data, found((1, 1, BOX, 0.9)))["map50"] == expected


def test_of_detections_with_one_score_the_first_counts():
    # two objects; the first of 40 detections is right and so is the last, a repetition of it: found at rank 1 alone
    data, score = data_of((1, 1, BOX, 0), (1, 1, FAR, 0)), 0.5
    rows = found((1, 1, BOX, score), *[(1, 1, [90, 90, 5, 5], score)] * 38, (1, 1, BOX, score))
    (cats, _) = voc_evaluation(data, rows).classes
    assert cats.is_true.tolist() == [True] + [False] * 39
    assert cats.average_precision("11points") == pytest.approx(6 / 11)  # precision 1 at the recalls 0 to 0.5


def test_detections_are_ranked_by_score_however_they_are_listed():
    rows = found((1, 1, FAR, 0.1), (1, 1, BOX, 0.9))
    # first the right one, recall 1 with precision 1
    assert scores(data_of((1, 1, BOX, 0)), rows)["map50"] == pytest.approx(1.0)


def drawn(seed, num_images=12):
    """Objects and detections around them, at random."""
    rng = np.random.default_rng(seed)
    objects, rows = [], []
    for image in range(1, num_images + 1):
        for _ in range(rng.integers(0, 4)):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2)]
            category = int(rng.integers(1, 3))
            objects.append((image, category, box, int(rng.random() < 0.2)))
            for _ in range(rng.integers(0, 3)):
                rows.append((image, category, list(np.array(box) + rng.normal(0, 2, 4)), rng.random()))
    return data_of(*objects, num_images=num_images), found(*rows)


def by_mmdet(data, rows, mode):
    def boxes(of, **wanted):
        chosen = [row for row in of if all(row[key] == value for key, value in wanted.items())]
        xywh = np.array([row["bbox"] for row in chosen]).reshape(-1, 4)
        return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]), [row.get("score") for row in chosen]

    detections, truths = [], []
    for image in range(1, len(data["images"]) + 1):
        of_classes = [boxes(rows, image_id=image, category_id=category) for category in (1, 2)]
        detections.append([np.hstack([b, np.array(s, float).reshape(-1, 1)]) for b, s in of_classes])
        truth = {}
        for name, difficult in (("", 0), ("_ignore", 1)):
            both = [boxes(data["annotations"], image_id=image, category_id=c, difficult=difficult)[0] for c in (1, 2)]
            truth[f"bboxes{name}"] = np.vstack(both)
            truth[f"labels{name}"] = np.repeat([0, 1], [len(one) for one in both])
        truths.append(truth)
    return eval_map(detections, truths, iou_thr=0.5, eval_mode=mode, nproc=1, logger="silent")[0]


@pytest.mark.parametrize("seed", range(3))
def test_random_boxes_score_as_in_mmdet(seed):
    data, rows = drawn(seed)
    figures = scores(data, rows)
    assert figures["map50"] == pytest.approx(by_mmdet(data, rows, "11points"))
    assert figures["map50_area"] == pytest.approx(by_mmdet(data, rows, "area"))


def test_images_drawn_once_each_give_the_same_map():
    data, rows = drawn(0)
    evaluation = voc_evaluation(data, rows)
    assert map_of_draws(evaluation, np.ones(12, np.int64)) == pytest.approx(voc_averages(evaluation)["map"])


def test_the_interval_of_a_detector_and_itself_is_nothing():
    evaluation = voc_evaluation(*drawn(0))
    assert difference_interval(evaluation, evaluation) == (0.0, 0.0)
