import numpy as np
import pytest
from PIL import Image

from detect.predict import Found, draw, image_files, predict


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "gray").save(path)
    return path


def test_a_folder_stands_for_its_images_in_order(tmp_path, photo):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    assert image_files([tmp_path]) == [tmp_path / "a.JPG", photo]


def test_an_image_may_have_any_name(photo):
    renamed = photo.rename(photo.with_suffix(".data"))
    assert image_files([renamed]) == [renamed]


def test_an_unreadable_image_is_refused(tmp_path, photo):
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"broken.jpg: does not decode; expected an image"):
        image_files([tmp_path])


def test_a_missing_image_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.jpg: no such file; expected an image or a folder of images"):
        image_files([tmp_path / "none.jpg"])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no images; expected files ending in .bmp"):
        image_files([tmp_path])


def test_two_images_of_one_name_are_refused(tmp_path, photo):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/photo.png"
    other.write_bytes(photo.read_bytes())
    with pytest.raises(ValueError, match=r"other/photo.png: same name as .*; expected each name once"):
        image_files([photo, other])


def test_an_image_cut_short_is_refused(tiny, tmp_path):
    path = tmp_path / "short.png"
    Image.new("RGB", (80, 60)).save(path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"short.png: does not decode; expected an image"):
        next(predict(*tiny(), [path], 0.0))


def test_boxes_are_mmdets_own(trained, scenes, found_by):
    expected = found_by(*trained)
    _, found = next(predict(*trained, image_files([scenes.images]), 0.0))
    assert len(found) == len(expected["scores"])
    np.testing.assert_allclose([thing.score for thing in found], expected["scores"], atol=1e-6)
    np.testing.assert_allclose([thing.box_xyxy for thing in found], expected["bboxes"], atol=1e-4)
    assert [thing.name for thing in found] == [trained[1].classes[label] for label in expected["labels"]]


def test_boxes_below_the_least_score_are_left_out(trained, scenes):
    files = image_files([scenes.images])
    _, found = next(predict(*trained, files, 0.0))
    middle = found[len(found) // 2].score
    assert next(predict(*trained, files, middle))[1] == [thing for thing in found if thing.score >= middle]


def test_the_image_keeps_its_colours(tiny, tmp_path):
    Image.new("RGB", (80, 60), (250, 20, 10)).save(tmp_path / "red.png")
    image, _ = next(predict(*tiny(), [tmp_path / "red.png"], 0.0))
    assert image.size == (80, 60)
    assert image.getpixel((5, 5)) == (250, 20, 10)


def test_drawing_changes_the_boxs_edge_and_not_the_given_image():
    image = Image.new("RGB", (100, 80), "gray")
    picture = draw(image, [Found("cat", 0.9, (20.0, 10.0, 90.0, 70.0))])
    assert picture.getpixel((90, 40)) != image.getpixel((90, 40))
    assert picture.getpixel((50, 60)) == image.getpixel((50, 60))
    assert image.getcolors() == [(8000, (128, 128, 128))]


def test_a_class_has_the_same_colour_in_every_picture():
    image = Image.new("RGB", (100, 80), "gray")
    cat, dog = Found("cat", 0.9, (20.0, 10.0, 90.0, 70.0)), Found("dog", 0.8, (5.0, 10.0, 90.0, 70.0))
    assert draw(image, [cat]).getpixel((20, 60)) == draw(image, [cat, dog]).getpixel((20, 60))
