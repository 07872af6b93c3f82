import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from classify.augmentation import centre_crops
from classify.data import check_folder, image_folder
from detect.annotations import read_annotations
from detect.crops import check_crops, crop_classes, num_crops, write_crops
from detect.data import check_coco

BOX = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0}
TWO = [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}]
TURNED = 6  # EXIF: the first row of the file is the right side of the picture


def test_crops_are_an_image_folder_of_every_object(scenes, classes, tmp_path):
    num = write_crops(scenes, tmp_path)
    assert num == len(read_annotations(scenes.annotations)["annotations"])
    assert len(list(tmp_path.glob("*/*.png"))) == num
    assert tuple(sorted(folder.name for folder in tmp_path.iterdir())) == classes


def test_crowds_and_tiny_boxes_give_no_crops(write_coco, save_image, tmp_path):
    changes = [{"bbox": [0, 0, *size]} for size in ([12, 12], [11, 40], [40, 11])] + [{"iscrowd": 1}]
    rows = [{**BOX, "id": i, **change} for i, change in enumerate(changes)]
    coco = save_image(write_coco(annotations=rows, categories=TWO))
    assert num_crops(coco) == 1
    assert write_crops(coco, tmp_path / "crops") == 1
    assert [path.name for path in (tmp_path / "crops" / "cat").iterdir()] == ["0000000.png"]


def test_a_class_without_crops_keeps_its_label(write_coco, save_image, tmp_path):
    categories = [{"id": 3, "name": "b"}, {"id": 4, "name": "a"}]
    coco = save_image(write_coco(categories=categories))
    for split in ("train", "val"):
        write_crops(coco, tmp_path / "crops" / split)
    check_folder(tmp_path / "crops")
    assert [label for _, label in image_folder(tmp_path / "crops", "val", centre_crops(16))] == [1]


def test_a_set_of_tiny_objects_has_no_crops(write_coco):
    assert num_crops(write_coco(annotations=[{**BOX, "bbox": [0, 0, 40, 11]}])) == 0


def test_a_crop_is_a_square_a_quarter_wider_than_its_box(write_coco, save_image, tmp_path):
    pixels = np.arange(50 * 100 * 3).reshape(50, 100, 3).astype(np.uint8)
    # 16 x 12 at (40, 20) has its centre at (48, 26); 1.25 x 16 = 20, hence 38..58 and 16..36
    coco = save_image(write_coco(annotations=[{**BOX, "bbox": [40, 20, 16, 12]}]), pixels=pixels)
    write_crops(coco, tmp_path / "crops")
    crop = np.asarray(Image.open(tmp_path / "crops" / "cat" / "0000000.png"))
    assert np.array_equal(crop, pixels[16:36, 38:58])


def test_a_crop_at_the_border_is_black_outside_the_image(write_coco, save_image, tmp_path):
    white = np.full((50, 100, 3), 255, np.uint8)
    # 16 x 16 at (0, 0): 1.25 x 16 = 20, hence -2..18, two black rows and columns
    write_crops(save_image(write_coco(annotations=[{**BOX, "bbox": [0, 0, 16, 16]}]), pixels=white), tmp_path / "crops")
    crop = np.asarray(Image.open(tmp_path / "crops" / "cat" / "0000000.png"))
    assert not crop[:2].any()
    assert not crop[:, :2].any()
    assert (crop[2:, 2:] == 255).all()


def test_no_two_categories_share_a_folder_of_crops():
    rows = [{"id": 1, "name": "a_b 2"}, {"id": 3, "name": "a/b"}, {"id": 2, "name": "a_b"}]
    assert crop_classes(rows) == {1: "a_b 2", 3: "a_b", 2: "a_b 2 2"}


@pytest.mark.parametrize(("kind", "is_turned"), [("JPEG", True), ("PNG", True), ("WEBP", False)])
def test_boxes_and_crops_are_of_the_image_that_mmdet_loads(write_coco, kind, is_turned, tmp_path):
    size_wh = (50, 100) if is_turned else (100, 50)
    boxes = [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 40, 40], "area": 1600, "iscrowd": 0}]
    row = {"id": 7, "file_name": "a.img", "width": size_wh[0], "height": size_wh[1]}
    coco = write_coco(images=[row], annotations=boxes)
    exif = Image.Exif()
    exif[0x0112] = TURNED
    picture = Image.new("RGB", (100, 50))
    picture.paste((255, 255, 255), (0, 0, 50, 50))
    picture.save(coco.images / "a.img", kind, exif=exif)
    check_coco(coco)
    loaded = LoadImageFromFile()({"img_path": str(coco.images / "a.img")})["img"]
    assert loaded.shape == (size_wh[1], size_wh[0], 3)
    write_crops(coco, tmp_path / "crops")
    crop = np.asarray(Image.open(next((tmp_path / "crops/cat").rglob("*.png"))))
    assert np.abs(crop[5:45, 5:45].astype(int) - loaded[:40, :40]).max() < 20  # JPEG loses some


def test_a_single_class_gets_squares_of_background_beside_it(write_coco, save_image, tmp_path):
    pixels = np.full((50, 100, 3), 200, np.uint8)
    pixels[12:28, 22:38] = 0
    coco = save_image(write_coco(annotations=[{**BOX, "bbox": [22, 12, 16, 16]}]), pixels=pixels)
    check_crops(coco)
    assert num_crops(coco) == write_crops(coco, tmp_path / "crops") == 2
    (cat,), (background,) = ([*(tmp_path / "crops" / name).iterdir()] for name in ("cat", "background"))
    assert Image.open(background).size == Image.open(cat).size == (20, 20)
    assert (np.asarray(Image.open(background)) == 200).all()
    assert crop_classes([{"id": 3, "name": "cat"}]) == {3: "cat", None: "background"}


def test_the_squares_of_background_are_the_same_every_time(write_coco, save_image, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (50, 100, 3), dtype=np.uint8)
    coco = save_image(write_coco(annotations=[{**BOX, "bbox": [20, 10, 20, 20]}]), pixels=noise)
    for name in "ab":
        write_crops(coco, tmp_path / name)
    one, other = (np.asarray(Image.open(next((tmp_path / name / "background").iterdir()))) for name in "ab")
    assert np.array_equal(one, other)


def test_a_single_class_called_background_is_told_apart():
    assert crop_classes([{"id": 3, "name": "background"}]) == {3: "background", None: "background background"}


def test_a_single_class_that_fills_its_images_is_refused(write_coco, save_image):
    coco = save_image(write_coco(annotations=[{**BOX, "bbox": [0, 0, 100, 50]}]))
    with pytest.raises(ValueError, match=r"a\.json: one class alone teaches nothing, and its boxes leave no room"):
        check_crops(coco)


def test_a_set_of_tiny_objects_is_refused(write_coco, save_image):
    coco = save_image(write_coco(annotations=[{**BOX, "bbox": [0, 0, 11, 11]}]))
    with pytest.raises(ValueError, match=r"a\.json: no object is large enough to be cut out; give an image folder"):
        check_crops(coco)


def test_several_classes_get_no_background(write_coco, save_image):
    coco = save_image(write_coco(categories=TWO))
    assert num_crops(coco) == 1


def test_background_comes_from_empty_images_where_objects_leave_no_room(write_coco, save_image, tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in (7, 8)]
    coco = write_coco(images=images, annotations=[{**BOX, "bbox": [0, 0, 100, 50]}])
    save_image(coco, name="7.png")
    save_image(coco, name="8.png", pixels=np.full((50, 100, 3), 200, np.uint8))
    check_crops(coco)
    assert write_crops(coco, tmp_path / "crops") == 2
    (background,) = (tmp_path / "crops/background").iterdir()
    assert (np.asarray(Image.open(background)) == 200).all()
