import json
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from deploy.fitting import read_image
from deploy.pictures import draw
from deploy.video import open_video, written_video

FPS = 12.5


@pytest.fixture(params=["model", "deployed"])
def either(request):
    """A model file, and the folder that was exported from it."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def video(files, tmp_path):
    """A video of the seven images."""
    path = tmp_path / "films" / "film.avi"
    path.parent.mkdir()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (128, 96))
    for file in files:
        writer.write(cv2.imread(str(file)))
    writer.release()
    return path


def predicted(invoke, *arguments):
    return json.loads(invoke("detect", "predict", *arguments, "--json", "--min-score", 0.1).stdout)


def test_every_image_gets_a_picture_of_what_is_in_it(invoke, either, files, tmp_path):
    result = invoke("detect", "predict", either, files[0].parent, "--out", tmp_path / "pictures", "--min-score", 0.1)
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [path.name for path in files]
    assert Image.open(pictures[0]).size == (128, 96)
    assert len(result.stdout.splitlines()) == len(pictures)
    assert f"wrote {len(pictures)} files to {tmp_path / 'pictures'}" in result.stderr


def test_a_picture_shows_the_image_and_its_boxes(invoke, detector, deployed, files, tmp_path):
    invoke("detect", "predict", deployed, files[0], "--out", tmp_path, "--min-score", 0.1)
    expected = draw(Image.open(files[0]).convert("RGB"), detector([files[0]], 0.1)[0])
    assert np.array_equal(read_image(tmp_path / files[0].name), np.asarray(expected))


def test_a_deployed_folder_gives_what_its_model_does(invoke, model, deployed, files, tmp_path):
    paths = (model, deployed, deployed / "model.onnx")
    ours, folders, onnxs = (predicted(invoke, path, *files, "--out", tmp_path / str(i)) for i, path in enumerate(paths))
    assert folders == onnxs
    assert [row["file"] for row in folders] == [str(file) for file in files]
    for row, expected in zip(folders, ours, strict=True):
        assert [thing["name"] for thing in row["found"]] == [thing["name"] for thing in expected["found"]]


@pytest.mark.parametrize(("name", "following"), [("model", "export"), ("deployed", "package")])
def test_the_next_command_goes_on_from_what_was_given(invoke, request, files, tmp_path, name, following):
    path = request.getfixturevalue(name)
    result = invoke("detect", "predict", path, files[0], "--out", tmp_path)
    assert result.stderr.endswith(f"next: espalier deploy {following} {path}\n")


def test_the_next_command_has_a_path_with_spaces_as_one_word(invoke, model, files, tmp_path):
    path = tmp_path / "my model.safetensors"
    shutil.copy(model, path)
    result = invoke("detect", "predict", path, files[0], "--out", tmp_path / "out")
    assert result.stderr.endswith(f"next: espalier deploy export '{path}'\n")


def test_a_video_gets_a_video_of_the_same_length_and_rate(invoke, either, video, tmp_path):
    result = invoke("detect", "predict", either, video, "--out", tmp_path / "out", "--min-score", 0.1)
    written = open_video(tmp_path / "out/film.mp4")
    frames = list(written.frames())
    assert (written.fps, len(frames), frames[0].shape) == (FPS, 7, (96, 128, 3))
    assert result.stdout.startswith(f"{video}: ")
    assert result.stdout.endswith(" in 7 frames\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.mp4"]


def test_detections_in_a_video_are_listed_by_frame(invoke, deployed, detector, video, files, tmp_path):
    film, image = predicted(invoke, deployed, video, files[0], "--out", tmp_path / "out")
    assert (film["file"], film["fps"], image["file"]) == (str(video), FPS, str(files[0]))
    expected = detector(list(open_video(video).frames()), 0.1)
    assert sum(map(len, expected)) > 0
    assert [[thing["score"] for thing in things] for things in film["frames"]] == [
        [thing.score for thing in things] for things in expected
    ]


def test_a_video_has_the_boxes_drawn(invoke, deployed, detector, video, tmp_path):
    invoke("detect", "predict", deployed, video, "--out", tmp_path / "out", "--min-score", 0.1)
    plain = list(open_video(video).frames())
    written = list(open_video(tmp_path / "out/film.mp4").frames())
    for frame, film, things in zip(plain, written, detector(plain, 0.1), strict=True):
        drawn = np.asarray(draw(Image.fromarray(frame), things))
        off_drawn, off_plain = (np.abs(film - picture.astype(int)).mean() for picture in (drawn, frame))
        assert len(things) > 0
        assert off_drawn < min(off_plain, 20)  # of 255: the codec loses some


@pytest.mark.parametrize("fps", [29.97, 25.0])
def test_videos_keep_their_rate_and_odd_sides_lose_a_pixel(tmp_path, fps):
    with written_video(tmp_path / "a.mp4", fps, (51, 33)) as write:
        for value in (0, 255, 0):
            write(np.full((51, 33, 3), value, np.uint8))
    film = open_video(tmp_path / "a.mp4")
    frames = list(film.frames())
    assert film.fps == pytest.approx(fps, abs=0.01)
    assert [frame.shape for frame in frames] == [(50, 32, 3)] * 3
    assert [frame.mean() > 128 for frame in frames] == [False, True, False]


def test_pictures_that_exist_are_kept(invoke, model, files, tmp_path):
    (tmp_path / files[0].name).touch()
    with pytest.raises(ValueError, match="exists already; give another --out, or --force"):
        invoke("detect", "predict", model, files[0], "--out", tmp_path)


def test_an_image_of_any_ending_gets_a_picture(invoke, deployed, files, tmp_path):
    renamed = shutil.copy(files[0], tmp_path / "b.data")
    rows = predicted(invoke, deployed, renamed, files[1], "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(["b.data.png", files[1].name])
    assert [row["file"] for row in rows] == [str(renamed), str(files[1])]
    assert Image.open(tmp_path / "out/b.data.png").format == "PNG"


@pytest.mark.parametrize("out", ["out", "there", "new/out"])
def test_a_failed_call_leaves_nothing_and_may_be_repeated(command, deployed, files, video, tmp_path, out):
    cut = tmp_path / "cut.png"
    cut.write_bytes(files[0].read_bytes()[:60])  # the header is in the first 33
    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    code, output, err = command("detect", "predict", deployed, *files, video, cut, "--out", tmp_path / out, "--json")
    assert (code, output) == (2, "")
    assert f"espalier: {cut}: cut short or damaged, got image file is truncated" in err
    assert sorted(tmp_path.rglob("*")) == before
    assert command("detect", "predict", deployed, *files, video, "--out", tmp_path / out)[0] == 0
    found = {path.name for path in (tmp_path / out).iterdir()}
    assert found == {*(file.name for file in files), "film.mp4"} | ({"notes.txt"} if out == "there" else set())


def test_force_replaces_the_pictures_alone(invoke, deployed, files, tmp_path):
    for name in (files[0].name, "notes.txt"):
        (tmp_path / name).write_text("mine")
    invoke("detect", "predict", deployed, files[0], "--out", tmp_path, "--force")
    assert Image.open(tmp_path / files[0].name).size == (128, 96)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_images_themselves_are_never_replaced(invoke, model, files):
    with pytest.raises(ValueError, match=r"would overwrite inputs, got .*; expected another folder"):
        invoke("detect", "predict", model, files[0], "--out", files[0].parent, "--force")


def broken_film(folder, video):
    (folder / "broken.mp4").write_bytes(b"no film")
    return [folder / "broken.mp4"]


def two_of_a_name(folder, video):
    shutil.copy(video, folder / "film.mkv")
    return [video, folder / "film.mkv"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (broken_film, "broken.mp4: does not decode; expected a video\n"),
        (two_of_a_name, "film.avi; expected each name once\n"),
        (lambda folder, video: [folder / "none.mp4"], "none.mp4: no such file; expected an image, a video or a folder"),
    ],
)
def test_a_wrong_video_is_a_one_line_error(command, model, video, tmp_path, inputs, message):
    code, out, err = command("detect", "predict", model, *inputs(tmp_path, video), "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("espalier: ") == 1
    assert not (tmp_path / "out").exists()
