import csv
import io

import numpy as np
import pytest

from deploy import Found
from deploy.found import arrays_of, coco_results, table_rows

CAT, DOG = Found("cat", 0.9, (10.0, 20.0, 40.0, 35.0), 0), Found("dog", 0.5, (0.0, 1.0, 2.0, 4.0), 1)


def test_rows_for_coco_have_the_ids_of_the_annotation_file():
    assert coco_results([[CAT, DOG], [], [DOG]], image_ids=[7, 8, 2**60], category_ids=[3, 90]) == [
        {"image_id": 7, "category_id": 3, "bbox": [10.0, 20.0, 30.0, 15.0], "score": 0.9},
        {"image_id": 7, "category_id": 90, "bbox": [0.0, 1.0, 2.0, 3.0], "score": 0.5},
        {"image_id": 2**60, "category_id": 90, "bbox": [0.0, 1.0, 2.0, 3.0], "score": 0.5},
    ]


@pytest.mark.parametrize(
    ("image_ids", "category_ids", "message"),
    [([1], [3, 4], "image_ids: wrong number, got 1; expected 2"), ([1, 2], [3], "category_ids: .* got 1; expected 2")],
)
def test_too_few_ids_are_refused(image_ids, category_ids, message):
    with pytest.raises(ValueError, match=message):
        coco_results([[CAT], [DOG]], image_ids, category_ids)


def test_a_table_has_a_row_per_object():
    rows = table_rows([[CAT], [DOG]], ["a.jpg", "b.jpg"])
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    assert file.getvalue().splitlines() == [
        "image,name,label,score,x0,y0,x1,y1",
        "a.jpg,cat,0,0.9,10.0,20.0,40.0,35.0",
        "b.jpg,dog,1,0.5,0.0,1.0,2.0,4.0",
    ]


def test_arrays_have_the_shapes_that_supervision_expects():
    arrays = arrays_of([CAT, DOG])
    assert arrays["xyxy"].tolist() == [[10, 20, 40, 35], [0, 1, 2, 4]]
    assert arrays["class_id"].tolist() == [0, 1]
    assert np.allclose(arrays["confidence"], [0.9, 0.5])
    assert arrays["data"]["class_name"].tolist() == ["cat", "dog"]
    assert arrays_of([])["xyxy"].shape == (0, 4)
