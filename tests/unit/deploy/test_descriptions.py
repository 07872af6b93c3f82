"""The JSON files beside deployed files, as damage or a stranger may leave them: each fault is one line."""

import json
import re

import onnx
import pytest

from classify.synthetic import SHAPES
from deploy import Detector, TensorSpec, load_record, read_engine_info
from deploy.deployment import Deployed, open_deployment
from deploy.onnx_file import classes_of, load_onnx
from deploy.runtimes.openvino import OpenVinoRunner

JUNK = {
    "empty": b"",
    "half": b'{"classes": [',
    "byte order mark": b"\xef\xbb\xbf{}",
    "not UTF-8": b'{"classes": ["\xff"]}',
    "UTF-16": "{}".encode("utf-16"),
    "lone surrogate": b'{"classes": ["\\ud800"]}',
    "nested": b"[" * 100_000,
    "null": b"null",
    "list": b"[]",
    "long number": b"1" * 100_000,
}


@pytest.mark.parametrize("kind", JUNK)
def test_junk_is_no_description(elsewhere, with_engine, kind):
    with_engine(elsewhere)
    for name in ("deploy.json", "model.engine.json", "record.json"):
        (elsewhere / name).write_bytes(JUNK[kind])
    for open_file, path in (
        (open_deployment, elsewhere),
        (read_engine_info, elsewhere / "model.engine"),
        (load_record, elsewhere / "record.json"),
    ):
        with pytest.raises(ValueError, match=r"\.json: not a readable (Deployment|EngineInfo|Record), got ") as caught:
            open_file(path)
        assert "\n" not in str(caught.value)


IMAGE = {"shape": [2, 3, 96, 128], "dtype": "float32"}


def with_tensor(side, name, **fields):
    return lambda text: {**text, side: {**text[side], name: {**text[side][name], **fields}}}


def without(field):
    return lambda text: {key: value for key, value in text.items() if key != field}


def updated(**fields):
    return lambda text: {**text, **fields}


REFUSED = {
    "no classes": (without("classes"), "classes: Field required"),
    "empty classes": (updated(classes=[]), "classes: "),
    "classes as text": (updated(classes="abc"), "classes: "),
    "a number as class": (updated(classes=[1]), "classes.0: "),
    "unknown field": (updated(run="rm"), "run: "),
    "unknown precision": (updated(precision="fp4"), "precision: "),
    "size in words": (with_tensor("inputs", "image", shape=["a", 3, 96, 128]), "inputs.image.shape.0: "),
    "infinite size": (with_tensor("inputs", "image", shape=[float("inf"), 3, 96, 128]), "inputs.image.shape.0: "),
    "negative size": (with_tensor("inputs", "image", shape=[-2, 3, 96, 128]), "tensor 'image': impossible shape"),
    "huge size": (with_tensor("inputs", "image", shape=[10**30, 3, 96, 128]), "tensor 'image': impossible shape"),
    "another type": (with_tensor("outputs", "labels", dtype="load"), "tensor 'labels': not of numbers, got load"),
    "no output": (updated(outputs={}), "not an Espalier detector, got inputs and outputs image, image_hw; expected"),
    "another size": (
        with_tensor("inputs", "image", shape=[2, 3, 96, 64]),
        "model.onnx: does not match its deploy.json",
    ),
    "free size": (
        with_tensor("inputs", "image", shape=[2, 3, None, 128]),
        "model.onnx: does not match its deploy.json",
    ),
    "another dtype": (with_tensor("inputs", "image", dtype="uint8"), "model.onnx: does not match its deploy.json"),
    "fewer classes": (updated(classes=SHAPES[:-1]), "got 'triangle' in its classes; expected None, export it again"),
    "a class more": (updated(classes=[*SHAPES, "cat"]), "got None in its classes; expected 'cat', export it again"),
    "another class": (updated(classes=["cat", *SHAPES[1:]]), "got 'circle' in its classes; expected 'cat'"),
    "another model": (updated(model="../../det.safetensors"), "model: Value error, leads out of the folder's parent"),
    "absolute model": (updated(model="/etc/hostname"), "model: Value error, leads out of the folder's parent"),
    "no network": (updated(network_hw=[0, -1]), "network_hw.0: "),
    "another hash": (updated(sha256={"model.onnx": "0"}), "model.onnx: changed since its export, got another sha256"),
}


CALLS = [(kind, name) for kind in REFUSED for name in ("predict", "package", "eval")]
CALLS.remove(("another hash", "eval"))  # which scores a changed file, and says so


@pytest.mark.parametrize(("kind", "name"), CALLS)
def test_a_wrong_description_ends_in_one_line(command, elsewhere, files, scenes, tmp_path, kind, name):
    change, message = REFUSED[kind]
    path = elsewhere / "deploy.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    given = {
        "predict": ("detect", "predict", elsewhere, files[0], "--out", tmp_path / "out"),
        "package": ("deploy", "package", elsewhere),
        "eval": ("deploy", "eval", elsewhere, scenes.annotations, scenes.images),
    }
    code, out, err = command(*given[name])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "message"),
    [
        ("image", (2, 96, 128), "float32", r"got image of shape \(2, 96, 128\); expected \('batch', 3, 'height'"),
        ("image", (2, 4, 96, 128), "float32", r"got image of shape \(2, 4, 96, 128\); expected"),
        ("image", (2, 3, None, 128), "float32", "'image': has a free dimension, got"),
        ("image_hw", (2, 3), "float32", r"got image_hw of shape \(2, 3\); expected \(2, 2\)"),
        ("scores", (1, 100), "float32", r"got scores of shape \(1, 100\); expected \(2, 100\)"),
        ("labels", (2, 100), "float32", "got labels in float32; expected int64"),
    ],
)
def test_a_graph_that_is_no_detector_is_refused(deployed, name, shape, dtype, message):
    known = open_deployment(deployed)
    specs = {**known.inputs, **known.outputs, name: TensorSpec(shape, dtype)}
    inputs, outputs = ({key: specs[key] for key in side} for side in (known.inputs, known.outputs))
    description = known.deployment.model_copy(update={"inputs": inputs, "outputs": outputs})
    with pytest.raises(ValueError, match=message):
        Deployed(known.file, description).check_graph(inputs, outputs, None)


def test_a_file_exported_before_it_had_its_classes_is_accepted(elsewhere, renamed, files, invoke):
    renamed(elsewhere, [name.upper() for name in SHAPES], in_file=False)
    found = Detector.load(elsewhere)(files, 0.1)
    assert {thing.name for things in found for thing in things} <= {name.upper() for name in SHAPES}
    invoke("deploy", "package", elsewhere)


def test_an_exported_file_holds_its_classes_in_every_runtime(deployed, detector):
    path = deployed / "model.onnx"
    assert [entry.key for entry in onnx.load(path).metadata_props] == ["espalier_classes"]
    assert classes_of(path, load_onnx(path)) == OpenVinoRunner(path).classes == detector.classes == SHAPES


@pytest.mark.parametrize("text", ["", "{", "1", '["a", 1]', "[" * 100_000, '{"a": 1}'])
def test_damaged_classes_in_a_file_are_refused(elsewhere, text):
    model = onnx.load(elsewhere / "model.onnx")
    onnx.helper.set_model_props(model, {"espalier_classes": text})
    with pytest.raises(ValueError, match=r"model\.onnx: espalier_classes in its metadata is damaged"):
        classes_of("model.onnx", model)


SIDECARS = {
    "another backend": ({"backend": "os"}, "backend: Input should be 'tensorrt' or 'tensorrt_rtx'"),
    "a path": ({"onnx_file": "../model.onnx"}, "onnx_file: "),
    "another type": ({"outputs": {"y": {"shape": [1], "dtype": "load"}}}, "tensor 'y': not of numbers, got load"),
    "negative size": ({"outputs": {"y": {"shape": [-1], "dtype": "int8"}}}, "tensor 'y': impossible shape, got (-1,)"),
    "no hash": ({"engine_sha256": None}, "engine_sha256: "),
    "unknown field": ({"run": "rm"}, "run: "),
    "endless": ({"build_s": float("nan")}, "build_s: "),
}


@pytest.mark.parametrize("kind", SIDECARS)
def test_a_wrong_sidecar_is_refused(elsewhere, with_engine, kind):
    fields, message = SIDECARS[kind]
    with_engine(elsewhere)
    path = elsewhere / "model.engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_engine_info(elsewhere / "model.engine")


@pytest.mark.parametrize("kind", ["empty", "half", "longer"])
def test_a_damaged_engine_ends_in_one_line(command, elsewhere, with_engine, kind):
    with_engine(elsewhere, content=b"some engine")
    contents = {"empty": b"", "half": b"some", "longer": b"some engine and more"}
    (elsewhere / "model.engine").write_bytes(contents[kind])
    code, out, err = command("deploy", "bench", elsewhere / "model.engine", "--rounds", 1)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "model.engine: does not match its sidecar, got another sha256; rebuild it with" in err
