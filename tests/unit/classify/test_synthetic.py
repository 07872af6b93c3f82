from collections import Counter

import numpy as np
import pytest

from classify.augmentation import centre_crops
from classify.data import check_folder, class_names, image_folder
from classify.synthetic import SHAPES, background, draw_shape, write_shapes


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("one", 3), ("again", 3), ("other", 4)):
        write_shapes(tmp_path / name, 6, 6, 24, seed)
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert one == again
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)


def test_every_class_is_in_both_splits_equally_often(shapes):
    counts = Counter((path.parts[-3], path.parts[-2]) for path in shapes.rglob("*.png"))
    assert counts == {(split, shape): num for split, num in (("train", 6), ("val", 2)) for shape in SHAPES}


def test_labels_are_the_order_of_the_shapes(shapes):
    check_folder(shapes)
    assert class_names(shapes) == SHAPES
    assert [label for _, label in image_folder(shapes, "val", centre_crops(32))] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("shape", SHAPES)
def test_shape_fills_its_box_and_nothing_else(shape):
    rng = np.random.default_rng(0)
    image = background(rng, (40, 50))
    before = np.asarray(image).copy()
    draw_shape(image, shape, (10, 5, 31, 26), rng)
    rows, columns = np.nonzero((np.asarray(image) != before).any(2))
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (10, 5, 31, 26)


@pytest.mark.parametrize("size_hw", [(8, 8), (30, 50)])
def test_background_has_the_requested_size(size_hw):
    assert np.asarray(background(np.random.default_rng(0), size_hw)).shape == (*size_hw, 3)
