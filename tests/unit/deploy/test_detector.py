import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy import Detector
from deploy.fitting import read_image
from deploy.video import written_video
from detect import load_detector
from detect.predict import predict


def pixels(*shape, dtype=np.uint8):
    return np.zeros(shape, dtype)


def test_it_finds_what_mmdet_finds(detector, model, files):
    expected = list(predict(*load_detector(model), (read_image(file) for file in files), 0.1))
    found = detector(files, min_score=0.1)
    assert sum(map(len, expected)) > 10
    assert [[thing.name for thing in things] for things in found] == [[e.name for e in es] for es in expected]
    for things, es in zip(found, expected, strict=True):
        np.testing.assert_allclose([t.score for t in things], [e.score for e in es], atol=1e-4)
        np.testing.assert_allclose([t.box_xyxy for t in things], [e.box_xyxy for e in es], atol=0.05)


def test_files_pil_images_and_arrays_are_the_same(detector, files):
    opened = Image.open(files[0])
    from_file, from_name, from_pil, from_array = detector([files[0], str(files[0]), opened, np.asarray(opened)], 0.0)
    assert len(from_file) > 0
    assert from_file == from_name == from_pil == from_array


def test_grey_and_transparent_pil_images_are_made_rgb(detector, files):
    grey = Image.open(files[0]).convert("L")
    as_grey, as_rgb, as_rgba = detector([grey, grey.convert("RGB"), grey.convert("RGBA")], 0.0)
    assert as_grey == as_rgb == as_rgba


def test_any_number_of_images_is_taken(detector, files):
    one_by_one = [detector([file], 0.0)[0] for file in files]
    assert detector(files, 0.0) == one_by_one
    assert detector(files[:3], 0.0) == one_by_one[:3]
    assert detector([]) == []


def test_a_generator_is_taken(detector, files):
    assert detector(files[0].parent.glob(files[0].name), 0.0) == detector([files[0]], 0.0)
    assert detector((read_image(file) for file in files), 0.0) == detector(files, 0.0)


def test_a_batch_of_arrays_is_taken(detector, files):
    assert detector(np.stack([read_image(file) for file in files[:2]]), 0.0) == detector(files[:2], 0.0)


def test_boxes_are_in_pixels_of_the_image(detector, files):
    image = Image.open(files[0])
    # every pixel four times: scaled back, that is the same picture
    once, twice = detector([image, image.resize((256, 192), Image.Resampling.NEAREST)], 0.0)
    assert [thing.score for thing in once] == [thing.score for thing in twice]
    np.testing.assert_allclose(2 * np.array([t.box_xyxy for t in once]), [t.box_xyxy for t in twice], rtol=1e-6)


def test_the_best_come_first_and_low_scores_are_left_out(detector, files):
    (found,) = detector([files[0]], 0.0)
    scores = [thing.score for thing in found]
    assert scores == sorted(scores, reverse=True)
    least = scores[len(scores) // 2]
    assert detector([files[0]], least) == [[thing for thing in found if thing.score >= least]]


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (500, 1, 3)])
def test_images_of_a_pixel_and_lines_of_pixels_are_images(detector, shape):
    (found,) = detector([pixels(*shape)], 0.0)
    for thing in found:
        x0, y0, x1, y1 = thing.box_xyxy
        assert 0 <= x0 <= x1 <= shape[1] * 1.001
        assert 0 <= y0 <= y1 <= shape[0] * 1.001


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (pixels(60, 80), r"images\[1\]: not an RGB image, got uint8 of \(60, 80\); expected uint8 of height x width x"),
        (pixels(60, 80, 1), r"images\[1\]: not an RGB image, got uint8 of \(60, 80, 1\)"),
        (pixels(60, 80, 4), r"images\[1\]: not an RGB image, got uint8 of \(60, 80, 4\)"),
        (pixels(0, 80, 3), r"images\[1\]: not an RGB image, got uint8 of \(0, 80, 3\)"),
        (pixels(60, 80, 3, dtype=np.float32), r"images\[1\]: not an RGB image, got float32 of \(60, 80, 3\)"),
        (b"bytes", r"images\[1\]: not an image, got bytes; expected a path, a PIL image or an RGB array"),
    ],
)
def test_values_that_are_not_images_are_refused(detector, files, image, message):
    with pytest.raises(ValueError, match=message):
        detector([files[0], image])


@pytest.mark.parametrize("image", ["photo.jpg", Image.new("RGB", (8, 8)), pixels(60, 80, 3)])
def test_a_single_image_is_refused(detector, image):
    with pytest.raises(ValueError, match=r"images: a single image, got .*; expected a list of images"):
        detector(image)


def test_a_missing_file_is_refused_before_anything_is_run(detector, files):
    with pytest.raises(FileNotFoundError, match=r"none.jpg: no such file; expected an image"):
        detector([files[0], "none.jpg"])


def test_a_file_that_does_not_decode_is_refused(detector, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    with pytest.raises(ValueError, match=r"broken.jpg: does not decode; expected an image"):
        detector([tmp_path / "broken.jpg"])


def test_a_folder_without_a_deployment_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model.onnx: no such file; expected a folder that espalier deploy"):
        Detector.load(tmp_path)


def test_importing_the_package_loads_no_torch():
    code = "import sys; from espalier import Detector; assert not {'torch', 'mmdet'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_taken_in_the_order_of_names(detector, files):
    assert detector(files[0].parent, 0.0) == detector(files, 0.0)
    assert detector(str(files[0].parent), 0.0) == detector(files, 0.0)


def test_several_threads_find_what_one_finds(detector, files):
    expected = detector(files, 0.0)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: detector(files, 0.0), range(8)))
    assert found == [expected] * 8


def test_a_closed_detector_has_let_go_of_its_network(deployed, files):
    with Detector.load(deployed) as detector:
        network = weakref.ref(detector._runner)
        assert network() is not None
        detector(files[:1])
    gc.collect()
    assert network() is None


@pytest.mark.parametrize("use", ["call", "empty", "stream"])
def test_a_closed_detector_says_so_in_one_line(deployed, files, use):
    detector = Detector.load(deployed)
    detector.close()
    detector.close()  # closing again changes nothing
    with pytest.raises(ValueError, match=r"model\.onnx: the detector is closed; load it again with Detector\.load$"):
        list(detector.stream(files) if use == "stream" else detector([] if use == "empty" else files))
    assert detector.classes


def test_a_detector_closed_while_it_streams_ends_the_stream(deployed, files):
    detector = Detector.load(deployed)
    found = detector.stream(files, 0.0)
    next(found)
    detector.close()
    with pytest.raises(ValueError, match="the detector is closed"):
        list(found)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads the process's memory as Linux shows it")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_memory_does_not_grow_with_detectors_that_are_closed(deployed, files, runtime):
    pytest.importorskip(runtime)
    code = f"""
import resource
from pathlib import Path
from deploy import Detector

def used_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

for i in range(16):
    with Detector.load({str(deployed)!r}, {runtime!r}) as detector:
        detector([{str(files[0])!r}])
    if i == 3:
        before = used_mib()
print(used_mib() - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(grown) < 30  # 12 that stay would take at least 84


@pytest.mark.parametrize("min_score", [-0.1, 1.5, float("nan")])
def test_a_score_that_no_box_can_have_is_refused(detector, files, min_score):
    with pytest.raises(ValueError, match=r"min_score: out of range, got .*; expected at least 0 and at most 1"):
        detector(files[:1], min_score)


def test_the_label_is_the_place_of_the_name(detector, files):
    things = [thing for things in detector(files, 0.0) for thing in things]
    assert {detector.classes[thing.label] == thing.name for thing in things} == {True}


def test_a_film_is_watched_frame_by_frame(detector, files, tmp_path):
    frames = [read_image(file) for file in files[:3]]
    with written_video(tmp_path / "film.mp4", 10.0, frames[0].shape[:2]) as write:
        for frame in frames:
            write(frame)
    watched = list(detector.watch(tmp_path / "film.mp4", 0.0))
    assert [found for _, found in watched] == detector([frame for frame, _ in watched], 0.0)
    assert len(watched) == 3
    assert np.abs(watched[0][0].astype(int) - frames[0]).mean() < 20  # compressed


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("none.mp4", FileNotFoundError, r"none\.mp4: no such file; expected a film"),
        ("http://127.0.0.1:9/stream", ValueError, "does not open; expected a film, a camera's number or a stream's"),
    ],
)
def test_what_does_not_open_is_named(detector, source, error, message):
    with pytest.raises(error, match=message):
        next(detector.watch(source))
