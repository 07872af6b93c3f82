import numpy as np
import pytest

from classify.accuracy import Predictions, accuracy, calibration, detailed_accuracy
from classify.accuracy_plot import accuracy_picture
from classify.accuracy_report import accuracy_tables, write_accuracy


def answers(labels, predicted, confidence=None, is_in_top5=None):
    arrays = (labels, predicted, confidence or [0.5] * len(labels), is_in_top5 or [True] * len(labels))
    return Predictions(*map(np.array, arrays))


def test_accuracy_is_a_share_of_the_images():
    assert accuracy(answers([0, 1, 2, 2], [0, 1, 2, 1], None, [True] * 3 + [False])) == {"top1": 0.75, "top5": 0.75}


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    found = answers([0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0.9, 0.92, 0.5, 0.52, 0.6])
    error, bins = calibration(found)
    full = {place: one for place, one in enumerate(bins) if one["num"]}
    assert full.keys() == {7, 8, 13}  # (7/15, 8/15] holds 0.5 and 0.52; (8/15, 9/15] 0.6; (13/15, 14/15] 0.9 and 0.92
    assert [(one["num"], one["accuracy"]) for one in full.values()] == [(2, 1.0), (1, 1.0), (2, 0.5)]
    assert [one["confidence"] for one in full.values()] == pytest.approx([0.51, 0.6, 0.91])
    assert error == pytest.approx(0.4 * 0.49 + 0.2 * 0.4 + 0.4 * 0.41)


def test_bins_are_of_equal_width_and_closed_above():
    error, bins = calibration(answers([0, 0, 0], [0, 0, 1], [1 / 15, 1.0, 0.0]))
    assert [one["num"] for one in bins] == [2, *[0] * 13, 1]
    assert [one["high"] for one in bins] == pytest.approx([i / 15 for i in range(1, 16)])
    assert [one["low"] for one in bins] == pytest.approx([i / 15 for i in range(15)])
    assert error == pytest.approx(2 / 3 * abs(0.5 - 1 / 30))
    assert (bins[1]["accuracy"], bins[1]["confidence"]) == (None, None)


def test_a_calibrated_classifier_has_no_error():
    assert calibration(answers([0] * 4, [0, 0, 0, 1], [0.75] * 4))[0] == 0


FIGURES = detailed_accuracy(answers([0, 0, 0, 1, 1, 2], [1, 1, 0, 0, 1, 0]), ("a", "b", "c", "d"))


def test_accuracy_by_class_is_of_the_images_of_that_class():
    assert FIGURES["per_class"] == {"a": 100 / 3, "b": 50.0, "c": 0.0, "d": None}
    assert FIGURES["num_images"] == 6


def test_confusions_come_most_frequent_first():
    assert FIGURES["confusions"] == [
        {"label": "a", "predicted": "b", "num": 2, "share": 2 / 3},
        {"label": "b", "predicted": "a", "num": 1, "share": 0.5},
        {"label": "c", "predicted": "a", "num": 1, "share": 1.0},
    ]


def test_tables_show_the_worst_first():
    classes, mistakes, bins = accuracy_tables(FIGURES)
    assert [str(cell) for cell in classes.columns[0].cells] == ["c", "a", "b"]
    assert [str(cell) for cell in mistakes.columns[2].cells] == ["2", "1", "1"]
    assert [str(cell) for cell in bins.columns[3].cells] == ["0.3333"]


def test_many_classes_are_cut_to_the_worst_and_it_is_said():
    figures = {**FIGURES, "per_class": {str(i): i / 10 for i in range(1000)}}
    classes = accuracy_tables(figures)[0]
    assert classes.title == "top-1 by class, the worst 20 of 1,000"
    assert classes.row_count == 20
    titles = [axes.get_title("left") for axes in accuracy_picture(figures, "net").axes]
    assert "The 40 worst of 1,000 classes; the dashed line is of all images" in titles


def test_the_picture_shows_every_bin_and_class():
    figure = accuracy_picture(FIGURES, "$net$")
    by_title = {axes.get_title("left"): axes for axes in figure.axes}
    bars = by_title["By class; the dashed line is of all images"].patches
    assert [bar.get_width() for bar in bars] == [50.0, 100 / 3, 0.0]
    accuracy_bar, gap = by_title["Expected calibration error 0.1667"].patches  # all answers are 0.5 sure
    assert (accuracy_bar.get_height(), gap.get_height()) == pytest.approx((1 / 3, 1 / 6))
    assert figure.get_suptitle() == "$net$: top-1 33.33 %, on 6 images"


def test_names_of_any_kind_are_drawn_and_shown(hostile, tmp_path):
    figures = detailed_accuracy(answers([0, 1], [1, 1]), (hostile, "b"))
    assert write_accuracy(figures, tmp_path, hostile).read_bytes().startswith(b"\x89PNG")
    assert all("\x1b" not in str(cell) for table in accuracy_tables(figures) for cell in table.columns[0].cells)
