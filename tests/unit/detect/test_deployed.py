import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from classify.synthetic import SHAPES
from command.files import sha256_of
from deploy import OnnxRunner
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.annotations import read_annotations
from detect.data import CocoSet
from detect.deployed import Evaluated
from detect.evaluate import evaluate_detector
from detect.synthetic import write_scenes
from experiment.cli import app
from experiment.measuring import detected_rows

SETTINGS = DetectorSettings(
    (96, 128), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16, anchor_scale=4
)
KEYS = [
    *("map", "map50", "metric", "num_images", "precision", "runtime", "device"),
    *("framework_map", "framework_map50", "difference", "difference_interval"),
    *("num_unsettled", "file_sha256"),
]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def evaluated(deployed, coco, *options):
    """Return the figures and standard error of `deploy eval --json`."""
    result = invoke("deploy", "eval", deployed, coco.annotations, coco.images, "--json", *options)
    assert result.exit_code == 0
    return json.loads(result.stdout), result.stderr


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Seven scenes, which no batch of two divides."""
    return write_scenes(tmp_path_factory.mktemp("scenes"), 7, (96, 128), seed=0)


@pytest.fixture(scope="module")
def model(model, tmp_path_factory):
    """A copy of the detector's file; the exports of this module are written beside it."""
    return Path(shutil.copy(model, tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def expected(model, scenes, tmp_path_factory):
    return evaluate_detector(*load_detector(model), scenes, tmp_path_factory.mktemp("expected"))


@pytest.fixture(scope="module")
def deployed(model):
    """The folder that `deploy export` writes beside the model."""
    invoke("deploy", "export", model)
    return model.with_suffix(".deploy")


@pytest.fixture
def elsewhere(deployed, tmp_path):
    """A copy of that folder, without the model beside it."""
    return shutil.copytree(deployed, tmp_path / "copy")


def with_classifier_scores_gone(path):
    """Take the weights of the last layer, of as many rows as there are classes and background, out of the file."""
    graph = onnx.load(path)
    rows = len(SHAPES) + 1
    last = [w for w in graph.graph.initializer if sorted(w.dims) == sorted((rows, SETTINGS.head_channels))]
    assert len(last) == 1
    last[0].CopyFrom(numpy_helper.from_array(np.zeros(tuple(last[0].dims), np.float32), last[0].name))
    onnx.save(graph, path)


def test_the_deployed_file_scores_as_its_model(deployed, scenes, expected):
    figures, err = evaluated(deployed, scenes)
    assert list(figures) == KEYS
    assert expected["map"] > 0.02
    assert (figures["framework_map"], figures["framework_map50"]) == (expected["map"], expected["map50"])
    assert figures["map"] == pytest.approx(expected["map"], abs=1e-6)
    assert figures["map50"] == pytest.approx(expected["map50"], abs=1e-6)
    assert figures["difference"] == figures["map"] - figures["framework_map"]
    assert (figures["num_images"], figures["precision"], figures["runtime"]) == (7, "fp32", "onnxruntime")
    assert "warning:" not in err
    assert err.endswith(f"evaluated {deployed}/model.onnx\nnext: espalier deploy bench {deployed}/model.onnx\n")


def test_a_file_is_scored_in_the_runtime_that_is_named(deployed, scenes, expected):
    pytest.importorskip("openvino")
    figures, err = evaluated(deployed, scenes, "--runtime", "openvino")
    assert (figures["runtime"], figures["device"]) == ("openvino", "cpu")
    assert figures["map"] == pytest.approx(expected["map"], abs=1e-4)
    assert "the file in openvino done in" in err
    assert err.endswith(f"next: espalier deploy bench {deployed}/model.onnx --runtime openvino\n")


def test_progress_is_on_standard_error(deployed, scenes):
    _, err = evaluated(deployed, scenes)
    assert "[1/2] the file in onnxruntime done in" in err
    assert "[2/2] its model file in PyTorch done in" in err
    assert "left" in err


def test_the_table_shows_both(deployed, scenes, expected):
    out = invoke("deploy", "eval", deployed / "model.onnx", scenes.annotations, scenes.images).stdout
    assert "onnxruntime, fp32" in out
    assert out.count(f"{expected['map']:.4f}") == 2
    assert "7 images" in out


def test_without_its_model_a_file_is_scored_alone(elsewhere, scenes, expected):
    figures, err = evaluated(elsewhere, scenes)
    assert figures["map"] == pytest.approx(expected["map"], abs=1e-6)
    assert [figures[key] for key in KEYS[7:11]] == [None] * 4
    assert "beside the folder; to compare, add --model det.safetensors\n" in err


def test_another_model_of_the_same_name_is_not_compared(elsewhere, model, scenes):
    net, card = new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=1)
    save_detector(elsewhere.parent / model.name, net, card)
    assert evaluated(elsewhere, scenes)[0]["framework_map"] is None


def test_the_model_of_a_stage_is_found_beside_the_exports(elsewhere, model, scenes, expected):
    stage = elsewhere.parent / "train_detector-0123"
    stage.mkdir()
    shutil.copy(model, stage / "model.safetensors")
    description = json.loads((elsewhere / "deploy.json").read_text())
    (elsewhere / "deploy.json").write_text(json.dumps({**description, "model": f"{stage.name}/model.safetensors"}))
    assert evaluated(elsewhere, scenes)[0]["framework_map"] == expected["map"]


def test_a_graph_with_other_weights_gives_a_warning(elsewhere, model, scenes, expected):
    with_classifier_scores_gone(elsewhere / "model.onnx")
    figures, err = evaluated(elsewhere, scenes, "--model", model)
    assert figures["difference"] < -0.001
    assert f"warning: {elsewhere}/model.onnx: mAP is {-100 * figures['difference']:.2f} points below that of " in err
    assert f"expected {expected['map']:.4f} within 0.1 points" in err
    assert "changed since its export" in err


def evaluation(difference, interval):
    figures = {"map": 0.5 + difference, "framework_map": 0.5, "precision": "int8", "difference": difference}
    return Evaluated(Path("m.onnx"), Path("m.safetensors"), {**figures, "difference_interval": interval}, ())


@pytest.mark.parametrize(
    ("difference", "interval", "warning", "remark"),
    [
        (-0.02, (-0.03, -0.01), r"warning: m\.onnx: mAP is 2\.00 points below that of m\.safetensors, got 0\.48", None),
        (
            -0.02,
            (-0.05, 0.01),
            None,
            r"note: .* 2\.00 points below .*: no more than the choice of images .* -5.00 to \+1",
        ),
        (0.02, (0.01, 0.03), None, r"note: .* 2\.00 points above .*: more than the choice of images"),
        (0.02, (-0.01, 0.03), None, r"note: .* 2\.00 points above .*: no more than the choice of images"),
        (-0.0009, (-0.001, -0.0008), None, None),
    ],
)
def test_only_a_loss_that_images_do_not_account_for_is_a_warning(difference, interval, warning, remark):
    found = evaluation(difference, interval)
    for text, expected in ((found.warning, warning), (found.remark, remark)):
        assert (text is None) == (expected is None)
        assert expected is None or re.match(expected, text)


def test_images_with_more_objects_than_the_file_finds_are_told(deployed, scenes, tmp_path):
    data = json.loads(scenes.annotations.read_text())
    image_id = data["images"][2]["id"]
    extra = [{**data["annotations"][0], "id": 10_000 + i, "image_id": image_id} for i in range(101)]
    data["annotations"] = [row for row in data["annotations"] if row["image_id"] != image_id] + extra
    (tmp_path / "many.json").write_text(json.dumps(data))
    _, err = evaluated(deployed, CocoSet(tmp_path / "many.json", scenes.images))
    assert f"note: 1 images have more than 100 objects, first image {image_id} with 101" in err


def test_a_batch_gets_the_same_as_one_image_at_a_time(deployed, model, scenes, tmp_path):
    invoke("deploy", "export", model, "--set", "batch=2", "--out", tmp_path / "two")
    ticks = []
    two, one = (
        detected_rows(runner.run, runner.inputs["image"], scenes, lambda *tick: ticks.append(tick))
        for runner in (OnnxRunner(folder / "model.onnx") for folder in (tmp_path / "two", deployed))
    )
    assert ticks == [(i + 1, 7) for i in range(7)] * 2
    assert [row["image_id"] for row in two] == [row["image_id"] for row in one]
    for name in ("score", "bbox"):
        np.testing.assert_allclose([row[name] for row in two], [row[name] for row in one], atol=1e-3)
    assert evaluated(tmp_path / "two", scenes, "--model", model)[0]["difference"] == pytest.approx(0, abs=1e-6)


def test_a_limit_takes_the_first_images_for_both(deployed, model, scenes, tmp_path):
    data = read_annotations(scenes.annotations)
    rows = [row for row in data["annotations"] if row["image_id"] < 2]
    first = {**data, "images": data["images"][:2], "annotations": rows}
    (tmp_path / "first.json").write_text(json.dumps(first))
    figures, _ = evaluated(deployed, scenes, "--limit", 2)
    of_first, _ = evaluated(deployed, type(scenes)(tmp_path / "first.json", scenes.images))
    assert figures == of_first
    assert figures["num_images"] == 2


def test_portrait_images_in_a_landscape_shape_give_a_note(deployed, tmp_path):
    standing = write_scenes(tmp_path / "standing", 2, (128, 96), seed=3)
    figures, err = evaluated(deployed, standing)
    assert figures["num_images"] == 2
    assert "note: 2 of 2 images are portrait, the export is landscape (96 x 128): PyTorch rotates its input" in err


def as_is(folder, scenes):
    return scenes


def without_model(folder, scenes):
    (folder / "model.onnx").unlink()
    return scenes


def without_description(folder, scenes):
    (folder / "deploy.json").unlink()
    return scenes


def of_no_onnx(folder, scenes):
    (folder / "model.onnx").write_bytes(b"no ONNX file")
    return scenes


def of_broken_description(folder, scenes):
    (folder / "deploy.json").write_text('{"inputs": 3}')
    return scenes


def of_another_description(folder, scenes):
    description = json.loads((folder / "deploy.json").read_text())
    description["inputs"]["image"]["shape"][0] = 4
    (folder / "deploy.json").write_text(json.dumps(description))
    return scenes


def of_a_classifier(folder, scenes):
    arch = Architecture("resnet18", 3, 8)
    card = ModelCard("classifier", arch, ("a", "b", "c"), Preprocessing((32, 32)))
    save_model(folder / "net.safetensors", build_classifier(arch), card)
    invoke("deploy", "export", folder / "net.safetensors", "--out", folder, "--force")
    return scenes


def without_annotations(folder, scenes):
    return type(scenes)(folder / "none.json", scenes.images)


def _changed(folder, scenes, change):
    data = read_annotations(scenes.annotations)
    change(data)
    (folder / "set.json").write_text(json.dumps(data))
    return type(scenes)(folder / "set.json", scenes.images)


def with_another_class(folder, scenes):
    return _changed(folder, scenes, lambda data: data["categories"][1].update(name="zebra"))


def with_a_class_more(folder, scenes):
    return _changed(folder, scenes, lambda data: data["categories"].append({"id": 99, "name": "zebra"}))


def with_a_cut_image(folder, scenes):
    images = shutil.copytree(scenes.images, folder / "images")
    data = (images / "00001.png").read_bytes()
    (images / "00001.png").write_bytes(data[:40])  # the header still has the size
    return type(scenes)(scenes.annotations, images)


def with_no_image(folder, scenes):
    images = shutil.copytree(scenes.images, folder / "images")
    (images / "00001.png").write_text("none")
    return type(scenes)(scenes.annotations, images)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (without_model, "model.onnx: no such file; expected a folder that espalier deploy export wrote"),
        (without_description, "deploy.json: no such file; expected a folder that espalier deploy export wrote"),
        (of_no_onnx, "model.onnx: not an ONNX file"),
        (of_broken_description, "deploy.json: not a readable Deployment, got inputs: "),
        (of_another_description, "model.onnx: does not match its deploy.json, got "),
        (of_a_classifier, "model.onnx: not an Espalier detector, got inputs and outputs image, scores; expected"),
        (without_annotations, "none.json: no such file; expected a COCO annotation file"),
        (with_another_class, f"got zebra as number 2 of {len(SHAPES)}; expected {SHAPES[1]}, {len(SHAPES)} in all"),
        (with_a_class_more, f"as number {len(SHAPES) + 1} of {len(SHAPES) + 1}; expected none, {len(SHAPES)} in all"),
        (with_a_cut_image, "00001.png: does not decode, got 40 bytes of another kind"),
        (with_no_image, "00001.png: does not decode, got 4 bytes of another kind"),
    ],
)
def test_a_wrong_request_is_a_one_line_error(command, elsewhere, scenes, broken, message):
    coco = broken(elsewhere, scenes)
    code, out, err = command("deploy", "eval", elsewhere, coco.annotations, coco.images)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("espalier: ")
    assert message in last
    assert err.count("espalier: ") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.safetensors", "no such file; expected a model file"), ("other.safetensors", "not the model that ")],
)
def test_a_wrong_model_is_a_one_line_error(command, deployed, scenes, tmp_path, name, message):
    net, card = new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=1)
    save_detector(tmp_path / "other.safetensors", net, card)
    arguments = (deployed, scenes.annotations, scenes.images, "--model", tmp_path / name)
    code, out, err = command("deploy", "eval", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{name}: {message}" in err


def test_a_limit_without_boxes_is_a_one_line_error(command, deployed, scenes, tmp_path):
    data = read_annotations(scenes.annotations)
    rows = [row for row in data["annotations"] if row["image_id"] > 0]
    (tmp_path / "set.json").write_text(json.dumps({**data, "annotations": rows}))
    code, out, err = command("deploy", "eval", deployed, tmp_path / "set.json", scenes.images, "--limit", 1)
    assert (code, out) == (2, "")
    assert err == "espalier: --limit 1: no boxes in these images, got 1 images; expected more images\n"


def test_an_export_records_its_model_file(deployed, model):
    description = json.loads((deployed / "deploy.json").read_text())
    assert (description["model"], description["model_sha256"]) == (model.name, sha256_of(model))
