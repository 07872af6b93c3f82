import json
from dataclasses import replace

import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope
from PIL import Image

from classify.backbones import Architecture
from command.notes import note
from detect import DetectorSettings, new_detector
from detect.annotations import annotations_in, read_annotations
from detect.crops import write_crops
from detect.data import check_coco
from detect.evaluate import coco_map, evaluate_detector
from detect.train import coco_loader, train_detector

BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
FLAT = {**BOX, "id": 2, "bbox": [29.65, 38.33, 1.03, 0.0], "area": 0.0}  # as COCO train2017 has two
SCALE = 1.28  # of a picture 100 wide in a detector of 128 x 128
HASHES = (16_045_690_984_503_098_046, 9_223_372_036_854_775_809, 4)


@pytest.fixture
def checked(write_coco, capsys):
    """Check a set of black images, 100 x 50; return it and what was printed."""

    def check(strict=False, **changes):
        note.cache_clear()
        coco = write_coco(**changes)
        for image in read_annotations(coco.annotations)["images"]:
            path = coco.images / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (100, 50)).save(path)
        check_coco(coco, strict)
        return coco, capsys.readouterr().err

    return check


@pytest.fixture
def loaded(tiny):
    """Return what mmdet's data set holds of a set with these classes."""

    def load(coco, classes):
        with DefaultScope.overwrite_default_scope("mmdet"):
            return DATASETS.build(coco_loader(replace(tiny()[1], classes=classes), coco)["dataset"])

    return load


def images(*ids):
    return [{"id": i, "file_name": f"{place}.png", "width": 100, "height": 50} for place, i in enumerate(ids)]


def perfect(coco):
    rows = read_annotations(coco.annotations)["annotations"]
    return [{key: row[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for row in rows]


def test_boxes_of_height_0_are_counted_and_the_first_is_named(checked):
    _, told = checked(annotations=[BOX, FLAT, {**FLAT, "id": 3}])
    assert told.count("\n") == 1
    assert "a.json: 2 boxes under 1 px wide or high cannot be learnt, first annotation 2 with [29.65, 38.33" in told


def test_mmdet_learns_what_is_not_told_to_be_left_out(checked, loaded):
    thin = {**BOX, "id": 4, "bbox": [10, 20, 0.9, 15]}
    coco, told = checked(annotations=[BOX, FLAT, {**BOX, "id": 3, "bbox": [10, 20, 1, 15]}, thin])
    assert "2 boxes under 1 px" in told
    boxes = loaded(coco, ("cat",))[0]["data_samples"].gt_instances.bboxes.tensor
    assert (boxes / SCALE).tolist() == [pytest.approx([10, 20, 40, 35]), pytest.approx([10, 20, 11, 35])]


@pytest.mark.parametrize("area", [0, None, "missing", -3.0])
def test_a_missing_area_is_taken_from_the_box(checked, loaded, area):
    row = {**BOX, "area": area}
    if area == "missing":
        del row["area"]
    coco, told = checked(annotations=[row])
    assert "1 annotations have no area, first 1: their boxes' is taken" in told
    assert read_annotations(coco.annotations)["annotations"] == [BOX]
    assert len(loaded(coco, ("cat",))[0]["data_samples"].gt_instances) == 1
    assert coco_map(coco.annotations, perfect(coco))["map"] == pytest.approx(1)


def test_an_area_of_its_own_stays(checked):
    coco, told = checked(annotations=[{**BOX, "area": 7.5}])  # of a mask
    assert read_annotations(coco.annotations)["annotations"][0]["area"] == 7.5
    assert told == ""


def test_ignored_annotations_are_crowds(checked, loaded):
    coco, told = checked(annotations=[BOX, {**BOX, "id": 2, "ignore": 1}])
    assert "1 annotations say `ignore`, first 2: they are taken for crowds" in told
    sample = loaded(coco, ("cat",))[0]["data_samples"]
    assert (len(sample.gt_instances), len(sample.ignored_instances)) == (1, 1)


def test_crowds_and_images_without_boxes_are_told(checked):
    _, told = checked(images=images(7, 8), annotations=[BOX, {**BOX, "id": 2, "iscrowd": 1}])
    assert "1 crowd: neither learnt nor missed; 1 image without boxes: not trained on" in told


def test_a_sound_set_says_nothing(checked):
    assert checked()[1] == ""


def test_a_strict_check_refuses_what_it_would_repair(checked):
    with pytest.raises(ValueError, match=r"a\.json: 1 box under 1 px .*; expected a set without faults, or data.str"):
        checked(strict=True, annotations=[BOX, FLAT])


def test_two_categories_of_one_name_are_told_apart(checked, loaded, tmp_path):
    categories = [{"id": 3, "name": "car"}, {"id": 5, "name": "car"}, {"id": 4, "name": "car 3"}]
    coco, told = checked(categories=categories, annotations=[BOX, {**BOX, "id": 2, "category_id": 5}])
    assert "categories share a name: they are called car 3 3, car 5" in told
    assert [row["name"] for row in read_annotations(coco.annotations)["categories"]] == ["car 3 3", "car 5", "car 3"]
    data = loaded(coco, ("car 3 3", "car 5", "car 3"))
    assert data[0]["data_samples"].gt_instances.labels.tolist() == [0, 1]
    write_crops(coco, tmp_path / "crops")
    assert sorted(path.parent.name for path in (tmp_path / "crops").rglob("*.png")) == ["car 3 3", "car 5"]


def test_ids_too_long_for_numpy_are_scored_and_keep_their_order(checked):
    boxes = [{**BOX, "id": HASHES[i], "image_id": HASHES[i], "category_id": HASHES[i]} for i in range(3)]
    categories = [{"id": i, "name": f"class {i}"} for i in HASHES]
    coco, _ = checked(images=images(*HASHES), annotations=boxes, categories=categories)
    assert coco_map(coco.annotations, perfect(coco))["map"] == pytest.approx(1)
    assert coco_map(coco.annotations, perfect(coco)[:2])["map"] == pytest.approx(2 / 3)
    swapped = [{**row, "image_id": HASHES[0]} for row in perfect(coco)]
    assert coco_map(coco.annotations, swapped)["map"] == pytest.approx(1 / 3)


def test_mmdet_loads_images_whose_ids_are_hashes(checked, loaded):
    boxes = [{**BOX, "id": i, "image_id": HASHES[i], "bbox": [i, 20, 30, 15]} for i in range(3)]
    data = loaded(checked(images=images(*HASHES), annotations=boxes)[0], ("cat",))
    lefts = [data[i]["data_samples"].gt_instances.bboxes.tensor[0, 0].item() / SCALE for i in range(3)]
    assert lefts == pytest.approx([0, 1, 2])


def test_training_and_evaluation_take_such_a_set(checked, tiny, schedule, tmp_path):
    boxes = [{**BOX, "id": i, "image_id": HASHES[i % 3], "area": 0} for i in range(6)]
    coco, _ = checked(images=images(*HASHES), annotations=[*boxes, {**FLAT, "id": 9, "image_id": 4}])
    detector, card = new_detector(
        Architecture("resnet18", 1, 8), ("cat",), DetectorSettings(**tiny()[1].settings), seed=0
    )
    train_detector(detector, card, coco, schedule, tmp_path / "train", seed=0)
    assert set(evaluate_detector(detector, card, coco, tmp_path / "eval")) == {"map", "map50", "map75"}


def test_what_was_repaired_is_in_words(write_coco):
    assert annotations_in(write_coco().annotations).repairs == ()
    assert json.loads(write_coco().annotations.read_text())["annotations"][0] == BOX


def test_texts_as_ids_are_numbered_and_scored(checked, loaded):
    rows = [{**BOX, "id": "a1", "image_id": "2007_27"}, {**BOX, "id": "b", "image_id": "8"}]
    coco, told = checked(images=images("8", "2007_27"), annotations=rows)
    assert "ids of images are texts: they are numbered in their order" in told
    found = read_annotations(coco.annotations)
    assert [row["id"] for row in found["images"]] == [1, 2]
    assert [(row["id"], row["image_id"]) for row in found["annotations"]] == [(1, 2), (2, 1)]
    assert coco_map(coco.annotations, perfect(coco))["map"] == pytest.approx(1)


def test_a_reference_written_as_text_finds_its_number(checked):
    coco, _ = checked(annotations=[{**BOX, "image_id": "7", "category_id": "3"}])
    assert read_annotations(coco.annotations)["annotations"][0] == {**BOX, "image_id": 1, "category_id": 1}


def test_lvis_names_its_images_by_their_address(checked):
    image = {
        "id": 7,
        "width": 100,
        "height": 50,
        "coco_url": "http://images.cocodataset.org/train2017/000000000007.jpg",
    }
    coco, told = checked(images=[image])
    assert read_annotations(coco.annotations)["images"][0]["file_name"] == "train2017/000000000007.jpg"
    assert "1 images have no file name: that in coco_url is taken" in told
    with pytest.raises(ValueError, match=r"a\.json: not COCO format, image 7 has no file_name; expected"):
        checked(images=[{"id": 7, "width": 100, "height": 50}])


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(90.0, [17.5, 12.5, 15, 30]), (-270, [17.5, 12.5, 15, 30]), (180, [10, 20, 30, 15]), (0.0, [10, 20, 30, 15])],
)
def test_a_box_that_cvat_rotated_is_that_around_it(checked, degrees, expected):
    row = {**BOX, "attributes": {"occluded": False, "rotation": degrees}}
    coco, told = checked(annotations=[row])
    assert read_annotations(coco.annotations)["annotations"][0]["bbox"] == pytest.approx(expected)
    assert ("1 boxes are rotated, first 1: those around them are taken" in told) == (degrees != 0)


def test_a_rotated_box_ends_with_its_image(checked):
    row = {**BOX, "bbox": [0, 10, 60, 30], "attributes": {"rotation": 90}}  # 30 wide, from -5 to 55
    assert read_annotations(checked(annotations=[row])[0].annotations)["annotations"][0]["bbox"] == pytest.approx(
        [15, 0, 30, 50]
    )


def test_crowds_may_be_true_or_false(checked):
    _, told = checked(annotations=[{**BOX, "iscrowd": False}, {**BOX, "id": 2, "iscrowd": True}])
    assert "1 crowd: neither learnt nor missed" in told


def test_a_category_that_no_box_has_is_told(checked):
    # Roboflow writes one for the whole set
    _, told = checked(categories=[{"id": 0, "name": "animals", "supercategory": "none"}, {"id": 3, "name": "cat"}])
    assert "no boxes of animals" in told


def test_windows_names_are_explained(write_coco):
    coco = write_coco(images=[{"id": 7, "file_name": "images\\a.png", "width": 100, "height": 50}])
    with pytest.raises(FileNotFoundError, match=r"no such image, 1 of the 1 .* all of them, with / in place of"):
        check_coco(coco)
