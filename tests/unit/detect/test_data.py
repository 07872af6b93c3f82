import json
import shutil

import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from detect.annotations import read_annotations
from detect.data import CocoSet, check_coco, fingerprint

BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
TURNED = 6  # EXIF: the first row of the file is the right side of the picture


@pytest.fixture
def copied(scenes, tmp_path):
    """Return a copy of the generated set that a test may change."""
    shutil.copytree(scenes.annotations.parent, tmp_path / "scenes")
    return CocoSet(tmp_path / "scenes" / "instances.json", tmp_path / "scenes" / "images")


def test_a_generated_set_is_accepted(scenes, classes):
    assert check_coco(scenes) == classes == ("circle", "cross", "diamond", "ring", "square", "triangle")


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_photographs_of_cells_are_accepted(shared_data, split):
    bccd = shared_data / "bccd"
    coco = CocoSet(bccd / f"instances_{split}.json", bccd / "images")
    assert sorted(check_coco(coco)) == ["Platelets", "RBC", "WBC"]


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_coco_is_accepted_with_crowds_id_gaps_and_empty_images(shared_data, split):
    coco = CocoSet(shared_data / "coco_open" / f"instances_{split}.json", shared_data / "coco_open" / split)
    data = read_annotations(coco.annotations)
    assert sum(row["iscrowd"] for row in data["annotations"]) > 0
    assert max(category["id"] for category in data["categories"]) == 90
    assert {image["id"] for image in data["images"]} > {row["image_id"] for row in data["annotations"]}
    assert len(check_coco(coco)) == 80


def test_a_box_may_stick_out_by_a_rounded_pixel(write_coco, save_image):
    coco = write_coco(annotations=[{**BOX, "bbox": [-1, 0, 102, 51]}])
    assert check_coco(save_image(coco)) == ("cat",)


def test_a_missing_annotation_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file; expected a COCO annotation file"):
        check_coco(CocoSet(tmp_path / "none.json", tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.json: not JSON, got b'.*'; expected a COCO annotation file"):
        check_coco(CocoSet(tmp_path / "a.json", tmp_path))


def test_a_byte_order_mark_is_passed_over(write_coco, save_image):
    coco = save_image(write_coco())
    coco.annotations.write_text(coco.annotations.read_text(), "utf-8-sig")
    assert check_coco(coco) == ("cat",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"the file should be an object, got \[\]"),
        ({}, r"images is missing, got {}"),
        ({"images": {}}, r"images should be a valid array, got {}"),
        ({"images": [{"id": 1}]}, r"images\[0\]\.width is missing, got {'id': 1}"),
        ({"images": ["a.png"]}, r"images\[0\] should be an object, got 'a.png'"),
    ],
)
def test_json_that_is_not_coco_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"a\.json: not COCO format, {message}; expected unique ids, .*"):
        check_coco(CocoSet(tmp_path / "a.json", tmp_path))


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_the_missing_part_of_a_coco_file_is_named(write_coco, key):
    with pytest.raises(ValueError, match=f"not COCO format, {key} should be a valid array, got None; expected"):
        check_coco(write_coco(**{key: None}))


@pytest.mark.parametrize("field", ["id", "image_id", "category_id", "bbox"])
def test_boxes_without_a_required_field_are_refused(write_coco, field):
    row = {name: value for name, value in BOX.items() if name != field}
    with pytest.raises(
        ValueError, match=rf"not COCO format, annotations\[1\]\.{field} is missing, got {{.*}}; expected"
    ):
        check_coco(write_coco(annotations=[BOX, row]))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("images", {"file_name": 5}, r"images\[0\]\.file_name should be a valid string, got 5"),
        ("images", {"width": "100"}, r"images\[0\]\.width should be a valid integer, got '100'"),
        ("annotations", {"id": [1]}, r"annotations\[0\]\.id should be a valid integer, got \[1\]"),
        ("annotations", {"image_id": 7.5}, r"annotations\[0\]\.image_id should be a valid integer, got 7.5"),
        ("annotations", {"area": "big"}, r"annotations\[0\]\.area should be a valid number, got 'big'"),
        ("annotations", {"area": "5"}, r"annotations\[0\]\.area should be a valid number, got '5'"),
        ("annotations", {"iscrowd": 2}, r"annotations\[0\]\.iscrowd should be 0 or 1, got 2"),
        ("annotations", {"bbox": None}, r"annotations\[0\]\.bbox should be a valid array, got None"),
        ("annotations", {"bbox": [10, 20, 30]}, r"annotations\[0\]\.bbox List .* at least 4 .*, got \[10, 20, 30\]"),
        ("annotations", {"bbox": [1, float("nan"), 3, 4]}, r"bbox\[1\] should be a finite number, got nan"),
        ("annotations", {"bbox": [1, 2, "3", 4]}, r"bbox\[2\] should be a valid number, got '3'"),
        ("categories", {"name": 5}, r"categories\[0\]\.name should be a valid string, got 5"),
        ("categories", {"name": ""}, r"categories\[0\]\.name String should have at least 1 character, got ''"),
    ],
)
def test_a_field_of_another_type_is_refused_in_one_line(write_coco, key, change, message):
    (row,) = read_annotations(write_coco().annotations)[key]
    coco = write_coco(**{key: [{**row, **change}]})
    with pytest.raises(ValueError, match=f"a.json: not COCO format, .*{message}.*; expected .* four numbers") as caught:
        check_coco(coco)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_two_rows_with_one_id_are_refused(write_coco, key):
    (row,) = read_annotations(write_coco().annotations)[key]
    coco = write_coco(**{key: [row, row]})
    with pytest.raises(ValueError, match=f"not COCO format, {key} share an id, got {row['id']} twice; expected unique"):
        check_coco(coco)


def test_fields_that_nothing_reads_are_left_out(write_coco):
    coco = write_coco(annotations=[{**BOX, "segmentation": "anything"}], info=5)
    data = read_annotations(coco.annotations)
    assert data["annotations"] == [BOX]
    assert all(isinstance(side, int) for side in data["annotations"][0]["bbox"])
    assert set(data) == {"images", "annotations", "categories"}


def test_a_missing_image_folder_is_refused(write_coco, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder; expected the images of .*a\.json"):
        check_coco(CocoSet(write_coco().annotations, tmp_path / "nowhere"))


def test_missing_images_are_counted_and_the_first_is_named(copied):
    for name in ("00002.png", "00005.png"):
        (copied.images / name).unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.png: no such image, 2 of the 8 images in .* are missing"):
        check_coco(copied)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_an_image_that_does_not_decode_is_refused(write_coco, content):
    coco = write_coco()
    (coco.images / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png: does not decode, got .*; expected a complete"):
        check_coco(coco)


def test_an_image_of_another_size_than_stated_is_refused(write_coco, save_image):
    coco = save_image(write_coco(), (50, 100))
    with pytest.raises(ValueError, match=r"a\.png: wrong size \(w, h\), got \(50, 100\); expected \(100, 50\), as in"):
        check_coco(coco)


@pytest.mark.parametrize("size_wh", [(100, 50), (50, 100)])
def test_a_rotated_photograph_has_the_size_that_mmdet_loads(write_coco, size_wh):
    coco = write_coco(images=[{"id": 7, "file_name": "a.jpg", "width": 50, "height": 100}])
    exif = Image.Exif()
    exif[0x0112] = TURNED if size_wh == (100, 50) else 1
    Image.new("RGB", size_wh).save(coco.images / "a.jpg", exif=exif)
    assert check_coco(coco) == ("cat",)
    assert LoadImageFromFile()({"img_path": str(coco.images / "a.jpg")})["img"].shape == (100, 50, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [80, 20, 30, 15]}, r"annotation 1: box outside its image, got \[80.*\]; expected within 100 x 50"),
        ({"bbox": [-2, 20, 30, 15]}, r"annotation 1: box outside its image, got \[-2"),
        ({"bbox": [10, 40, 30, 12]}, r"annotation 1: box outside its image, got \[10"),
        ({"bbox": [10, 20, 0, 15]}, "has no boxes, got 0 crowds and 1 boxes under 1 px; expected at least one box"),
        ({"bbox": [10, 20, 30, -1]}, r"annotation 1: not a box, got .*; expected width and height of at least 0"),
        ({"category_id": 9}, "annotation 1: unknown category_id, got 9; expected the id of a category"),
        ({"image_id": 8}, "annotation 1: unknown image_id, got 8; expected the id of an image"),
        ({"iscrowd": 1}, "has no boxes, got 1 crowds and 0 boxes under 1 px; expected at least one box"),
    ],
)
def test_a_wrong_box_is_refused_in_one_line(write_coco, save_image, change, message):
    coco = save_image(write_coco(annotations=[{**BOX, **change}]))
    with pytest.raises(ValueError, match=message) as caught:
        check_coco(coco)
    assert "\n" not in str(caught.value)


def test_a_set_without_images_is_refused(write_coco):
    with pytest.raises(ValueError, match="has no images, got an empty list; expected at least one"):
        check_coco(write_coco(images=[]))


def test_a_fingerprint_is_the_same_for_the_same_content_elsewhere(scenes, copied):
    assert fingerprint(copied) == fingerprint(copied) == fingerprint(scenes)


def test_a_fingerprint_changes_with_an_annotation(copied):
    before = fingerprint(copied)
    data = read_annotations(copied.annotations)
    data["annotations"][0]["bbox"][0] += 1
    copied.annotations.write_text(json.dumps(data))
    assert fingerprint(copied) != before


def test_a_fingerprint_changes_with_the_content_of_an_image(copied):
    before = fingerprint(copied)
    with (copied.images / "00003.png").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(copied) != before
