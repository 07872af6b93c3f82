import pytest
import torch

from classify.backbones import Architecture
from classify.synthetic import SHAPES
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.annotations import read_annotations
from detect.data import CocoSet
from detect.synthetic import write_scenes

SETTINGS = DetectorSettings((96, 128), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16)


def sets(*overrides):
    return [part for text in overrides for part in ("--set", text)]


def calibration(coco):
    return sets("precision=int8", f"pictures.annotations={coco.annotations}", f"pictures.images={coco.images}")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), 2, (96, 128), seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "det.safetensors"
    save_detector(path, *new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=0))
    return path


def spoilt(model, path, name, value):
    """Write the model again with one weight of another value."""
    detector, card = load_detector(model)
    detector.get_parameter(name).data.view(-1)[0] = value
    save_detector(path, detector, card)
    return path


@pytest.mark.parametrize(
    ("value", "overrides", "message"),
    [
        (
            float("nan"),
            (),
            "weight neck.lateral_convs.0.conv.weight is not finite, got NaN or infinity; expected numbers",
        ),
        (
            float("inf"),
            ("precision=fp16",),
            "weight neck.lateral_convs.0.conv.weight is not finite, got NaN or infinity",
        ),
        (
            float("nan"),
            ("precision=bf16",),
            "weight neck.lateral_convs.0.conv.weight is not finite, got NaN or infinity",
        ),
        (
            1e5,
            ("precision=fp16",),
            "in fp16: weight neck.lateral_convs.0.conv.weight is not finite, got NaN or infinity",
        ),
    ],
)
def test_weights_that_are_not_finite_are_refused(model, tmp_path, command, value, overrides, message):
    path = spoilt(model, tmp_path / "bad.safetensors", "neck.lateral_convs.0.conv.weight", value)
    code, out, err = command("deploy", "export", path, *sets(*overrides))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "bad.deploy").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("precision=int8",), "--set: pictures: int8 needs calibration images, got none; expected pictures=dict("),
        (("precision=int8", "pictures.images=x"), "--set: pictures.annotations: Field required"),
        (("int8.method=entropy",), "--set: int8: not used with another precision, got fp32; drop this key"),
        (("precision=fp8",), "--set: precision: Input should be 'fp32', 'fp16', 'bf16' or 'int8', got 'fp8'"),
        (("precison=fp16",), "--set: unknown key precison; nearest valid ones: precision"),
        (("input_hw=[0,64]",), "--set: input_hw.0: Input should be greater than or equal to 1, got 0"),
        (("batch=0",), "--set: batch: Input should be greater than or equal to 1, got 0"),
        (("size_hw=[96,100]",), "size_hw: not divisible by the strides, got (96, 100); expected multiples of 32"),
        (
            ("precision=int8", "pictures.annotations=none.json", "pictures.images=none"),
            "none.json: no such file; expected a COCO annotation file",
        ),
        (
            ("precision=int8", "pictures.annotations=a", "pictures.images=b", "int8.method=best"),
            "--set: int8.method: unknown, got 'best'; expected one of entropy, minmax, percentile",
        ),
    ],
)
def test_a_wrong_request_is_a_one_line_error(model, tmp_path, command, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command("deploy", "export", model, "--out", tmp_path / "d", *sets(*overrides))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_calibration_picture_is_named(model, scenes, tmp_path, command):
    (tmp_path / "images").mkdir()
    coco = CocoSet(scenes.annotations, tmp_path / "images")
    first = read_annotations(scenes.annotations)["images"][0]["file_name"]
    code, _, err = command("deploy", "export", model, "--out", tmp_path / "d", *calibration(coco))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{first}: no such image" in err
    assert not (tmp_path / "d").exists()


def test_a_missing_config_is_named(model, tmp_path, command):
    code, _, err = command("deploy", "export", model, "--out", tmp_path / "d", "--config", "none.py")
    missing = "none.py: no such file or config; expected a Python file or a name, espalier configs lists the names"
    assert (code, err) == (2, f"espalier: {missing}\n")


@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("runtime=openvino", "'openvino'"),
        ("size_hw=[64,64]", "(64, 64)"),
        ("input_hw=[64,64]", "(64, 64)"),
        ("debug=True", "True"),
        ("nms_iterations=9", "9"),
    ],
)
def test_detector_settings_are_refused_for_a_classifier(classifier, tmp_path, command, override, got):
    code, _, err = command("deploy", "export", classifier, "--out", tmp_path / "d", *sets(override))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{override.partition('=')[0]}: for detectors only, got {got} for the classifier {classifier}" in err


def test_int8_is_refused_for_a_classifier(classifier, scenes, tmp_path, command):
    code, _, err = command("deploy", "export", classifier, "--out", tmp_path / "d", *calibration(scenes))
    assert (code, err.count("espalier: ")) == (2, 1)
    assert "precision: for detectors only, got 'int8' for " in err


def test_a_checkpoint_without_mmdets_config_is_refused(tmp_path, command):
    torch.save({"state_dict": {}}, tmp_path / "net.pth")
    code, _, err = command("deploy", "export", tmp_path / "net.pth")
    assert (code, err.count("\n")) == (2, 1)
    assert "net.pth: not an espalier model file" in err


def test_a_missing_config_of_mmdet_is_named(tmp_path, command):
    code, _, err = command("deploy", "export", tmp_path / "net.pth", "--mmdet", tmp_path / "none.py")
    assert (code, err) == (2, f"espalier: {tmp_path}/none.py: no such file; expected a config of mmdet\n")
