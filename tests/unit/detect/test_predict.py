from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deploy.detector import Found
from deploy.fitting import read_image
from deploy.pictures import draw, input_files, picture_name
from detect.predict import predict


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (80, 60), "gray").save(path)
    return path


def write_film(path):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5.0, (32, 24))
    writer.write(np.zeros((24, 32, 3), np.uint8))
    writer.release()


def pictures(scenes):
    return (read_image(file) for file in input_files([scenes.images]))


def test_a_folder_gives_its_images_in_order(tmp_path, photo):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("no image")
    assert input_files([tmp_path]) == [tmp_path / "a.JPG", photo]


def test_an_image_may_have_any_name(photo):
    renamed = photo.rename(photo.with_suffix(".data"))
    assert input_files([renamed]) == [renamed]


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("a.JPG", "a.JPG"),
        ("a.gif", "a.gif.png"),
        ("b.data", "b.data.png"),
        ("frame.001", "frame.001.png"),
        ("photo", "photo.png"),
        ("a.ras", "a.ras.png"),  # a format that is read and not written
        ("film.webm", "film.mp4"),
    ],
)
def test_images_of_a_format_that_is_not_written_become_png(name, picture):
    assert picture_name(Path(name)) == picture


def test_an_unreadable_image_is_refused(tmp_path, photo):
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"broken.jpg: does not decode, got 8 bytes of another kind"):
        input_files([tmp_path])


def test_a_missing_image_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"none.jpg: no such file; expected an image, a video or a folder of them"
    ):
        input_files([tmp_path / "none.jpg"])


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no images, got none; expected files ending in .bmp"):
        input_files([tmp_path])


def test_two_images_of_one_name_are_refused(tmp_path, photo):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/photo.png"
    other.write_bytes(photo.read_bytes())
    with pytest.raises(
        ValueError, match=r"other/photo.png: same name as another input, got .*; expected each name once"
    ):
        input_files([photo, other])


def test_videos_in_a_folder_are_found_and_written_as_mpeg4(tmp_path, photo):
    write_film(tmp_path / "film.avi")
    assert input_files([tmp_path]) == [tmp_path / "film.avi", photo]
    assert [picture_name(file) for file in (tmp_path / "film.avi", photo)] == ["film.mp4", "photo.png"]


def test_a_broken_video_is_refused(tmp_path):
    (tmp_path / "film.avi").write_text("no film")
    with pytest.raises(ValueError, match=r"film.avi: does not decode; expected a video"):
        input_files([tmp_path])


def test_boxes_are_mmdets_own(trained, scenes, found_by):
    expected = found_by(*trained)
    found = next(predict(*trained, pictures(scenes), 0.0))
    assert len(found) == len(expected["scores"])
    np.testing.assert_allclose([thing.score for thing in found], expected["scores"], atol=1e-6)
    np.testing.assert_allclose([thing.box_xyxy for thing in found], expected["bboxes"], atol=1e-4)
    assert [thing.name for thing in found] == [trained[1].classes[label] for label in expected["labels"]]


def test_boxes_below_the_least_score_are_left_out(trained, scenes):
    found = next(predict(*trained, pictures(scenes), 0.0))
    middle = found[len(found) // 2].score
    assert next(predict(*trained, pictures(scenes), middle)) == [thing for thing in found if thing.score >= middle]


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
