"""Reads damaged JSON files, and configs with damaged values."""

import hashlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, json_bytes, json_files, mutated, texts
from onnx import TensorProto, helper
from PIL import Image

from classify.config import ClassifierTraining
from command.config import config_file, read_config
from command.files import sha256_of
from deploy import EngineInfo
from deploy.deployment import Deployment, open_deployment
from deploy.engine import read_engine_info
from deploy.onnx_file import input_specs, output_specs
from deploy.record import load_record, rows_from_record, table_from_record
from detect.annotations import read_annotations
from detect.config import DetectorTraining
from detect.crops import crop_classes, num_crops
from detect.data import CocoSet, check_coco, fingerprint
from detect.voc import voc_images
from experiment.config import ExperimentConfig
from experiment.cuts import PruneConfig
from experiment.report import table_markdown, table_text, write_report
from experiment.results import read_results
from experiment.stages import Stage, StageStore
from prune.cut.spec import PruneSpec

RECORDS = Path(__file__).parents[2] / "benchmarks"
STAGE = Stage("train", {"lr": 0.1}, (), lambda folder, progress: {"map": 0.5, "rows": [1, 2]})
COCO = {
    "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 48}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 4, "bbox": [10, 20, 30, 15], "area": 450, "iscrowd": 0},
    ],
    "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
}
SPEC = {"version": 1, "layers": {"a.conv": {"kept_out": [0, 2], "kept_in": None, "num_out": 4, "num_in": 3}}}
SHAPES = {"image": (1, 3, 32, 64), "image_hw": (1, 2), "boxes_xyxy": (1, 5, 4), "scores": (1, 5), "labels": (1, 5)}


def read_record(path):
    record = load_record(path)
    return rows_from_record(record), table_from_record(record)


def read_report(path):
    results = read_results(path)
    return table_text(results), table_markdown(results), write_report(results, path.parent)


def read_coco(path):
    coco = CocoSet(path, path.parent)
    classes = check_coco(coco)
    assert len(classes) == len(crop_classes(read_annotations(path)["categories"]))
    return fingerprint(coco), num_crops(coco)


def read_spec(path):
    spec = PruneSpec.from_json(path.read_bytes())
    assert PruneSpec.from_json(spec.to_json()) == spec
    return spec.widths(), spec.under("a.")


def read_deployment(path):
    deployed = open_deployment(path.parent)
    return deployed.size_hw, deployed.network_hw, deployed.runner()


def read_engine(path):
    return read_engine_info(path.with_suffix("")), open_deployment(path.with_suffix(""))


def read_stage(path):
    store = StageStore(path.parents[1])
    store.check([STAGE])
    return store.figures(STAGE), store.wall_s(STAGE)


def write_detector(folder):
    """Write an ONNX file with the inputs and outputs of a detector, and both of its descriptions."""
    values = {name: helper.make_tensor_value_info(name, 1, shape) for name, shape in SHAPES.items()}
    values["labels"].type.tensor_type.elem_type = TensorProto.INT64
    made = [name for name in SHAPES if not name.startswith("image")]
    zeros = [
        helper.make_tensor(f"{name}_0", values[name].type.tensor_type.elem_type, shape, [0] * math.prod(shape))
        for name, shape in SHAPES.items()
        if name in made
    ]
    nodes = [helper.make_node("Identity", [f"{name}_0"], [name]) for name in made]
    inputs = [values[name] for name in SHAPES if name not in made]
    graph = helper.make_graph(nodes, "g", inputs, [values[name] for name in made], zeros)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    (folder / "model.engine").write_bytes(b"engine")
    specs = {"inputs": input_specs(model), "outputs": output_specs(model)}
    return specs, sha256_of(folder / "model.onnx")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return the valid content of each kind of file, its path in a folder with all other files, and its reader."""
    folder = tmp_path_factory.mktemp("files")
    Image.new("RGB", (64, 48), "red").save(folder / "a.png")
    specs, sha256 = write_detector(folder)
    deployment = Deployment(
        **specs,
        preprocessing="none",
        classes=("a", "b"),
        precision="fp32",
        versions={"onnx": "1"},
        sha256={"model.onnx": sha256},
        model="det.safetensors",
        model_sha256="0",
        parity={"max_error": 0.5},
        compared_on="nothing",
        config={"batch": 1},
        network_hw=(32, 64),
        nms_iterations=8,
    )
    engine = EngineInfo(
        backend="tensorrt",
        backend_version="10.9.0",
        compute_capabilities=("8.6",),
        precision="fp32",
        onnx_sha256=sha256,
        engine_sha256=sha256_of(folder / "model.engine"),
        **specs,
    )
    (folder / "deploy.json").write_text(deployment.model_dump_json())
    StageStore(folder).run(STAGE, lambda done, total: None)
    stage = StageStore(folder).folder(STAGE) / "stage.json"
    box = {"box_xyxy": [4, 20, 24, 40], "label": 1}
    results = json.loads((RECORDS / "photos-cpu/results.json").read_text())
    found = {row["name"]: [box | {"score": 0.9}] for row in results["rows"]}
    results["pictures"] = [{"file": "a.png", "size_hw": [48, 64], "truth": [box], "detections": found}]
    return {
        "record": (json.loads((RECORDS / "detector-speed-cpu.json").read_text()), folder / "record.json", read_record),
        "results": (results, folder / "results.json", read_report),
        "annotations": (COCO, folder / "coco.json", read_coco),
        "spec": (SPEC, folder / "spec.json", read_spec),
        "deployment": (json.loads(deployment.model_dump_json()), folder / "deploy.json", read_deployment),
        "engine": (json.loads(engine.model_dump_json()), folder / "model.engine.json", read_engine),
        "stage": (json.loads(stage.read_text()), stage, read_stage),
    }


KINDS = ["record", "results", "annotations", "spec", "deployment", "engine", "stage"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_valid_file_is_read(files, kind, safely):
    valid, path, read = files[kind]
    path.write_bytes(json_bytes(valid))
    assert safely(read, path) is not None


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_json_file_is_read_or_refused_in_one_line(files, kind, data, safely):
    valid, path, read = files[kind]
    before = json_bytes(valid)
    path.write_bytes(data.draw(json_files(valid)))
    try:
        safely(read, path)
    finally:
        path.write_bytes(before)


VOC = {
    "VOC2007/Annotations/a.xml": b"<annotation><size><width>64</width><height>48</height></size><object>"
    b"<name>red cell</name><difficult>0</difficult><bndbox><xmin>10</xmin><ymin>1</ymin><xmax>40</xmax>"
    b"<ymax>48</ymax></bndbox></object>"
    b"</annotation>",
    "VOC2007/ImageSets/Main/test.txt": b"a\n",
}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """A folder as VOC's, of one image."""
    folder = tmp_path_factory.mktemp("voc")
    for name, content in VOC.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)
    (folder / "VOC2007/JPEGImages").mkdir()
    Image.new("RGB", (64, 48), "red").save(folder / "VOC2007/JPEGImages/a.jpg")
    return folder


def read_voc(image_set):
    coco = CocoSet(image_set, voc_images(image_set))
    return check_coco(coco), fingerprint(coco), num_crops(coco)


@pytest.mark.parametrize("name", VOC)
@given(data=st.data())
def test_voc_file_is_read_or_refused_in_one_line(voc, name, data, safely):
    image_set = voc / "VOC2007/ImageSets/Main/test.txt"
    (voc / name).write_bytes(data.draw(damaged(VOC[name])))
    try:
        safely(read_voc, image_set)
    finally:
        (voc / name).write_bytes(VOC[name])


def sealed(record):
    """Return a stage's record with its own hash, as one would who changes it."""
    content = json.dumps({key: value for key, value in record.items() if key != "sha256"}, sort_keys=True)
    return record | {"sha256": hashlib.sha256(content.encode()).hexdigest()}


@given(data=st.data())
def test_stage_record_with_the_right_hash_is_read_or_refused(files, data, safely):
    valid, path, read = files["stage"]
    record = data.draw(mutated(valid))
    path.write_bytes(json_bytes(sealed(record) if isinstance(record, dict) else record))
    try:
        safely(read, path)
    finally:
        path.write_bytes(json_bytes(valid))


CONFIGS = {
    "resnet18_shapes": ClassifierTraining,
    "faster_rcnn_scenes": DetectorTraining,
    "quickstart": ExperimentConfig,
    "l1_half": PruneConfig,
}
PARTS = ["seed", "data", "schedule", "start", "type", "milestones", "0", "\u00b2", "_delete_", "_base_", "__class__"]
LITERALS = ["[" * 999, "(" * 9_999, "-" * 9_999 + "1", "9" * 5_000, "{'_delete_': True}", "{(): 1}", "{[]: 1}", "{1}"]
keys = st.lists(st.sampled_from(PARTS) | texts, max_size=3).map(".".join) | st.just("a." * 3_000)
literals = texts | st.sampled_from(LITERALS) | mutated({"a": [1, (2.5, b"x"), "b"], 3: None}).map(repr)


@pytest.mark.parametrize("config", [None, *CONFIGS])
@given(key=keys, value=literals)
def test_override_is_taken_or_refused_in_one_line(config, key, value, safely):
    safely(read_config, config, [f"{key}={value}"], CONFIGS.get(config, ClassifierTraining))


@pytest.mark.parametrize("config", CONFIGS)
@given(data=st.data())
def test_damaged_config_is_read_or_refused_in_one_line(config, data, tmp_path, safely):
    (tmp_path / "config.py").write_bytes(data.draw(damaged(config_file(config).read_bytes())))
    safely(read_config, tmp_path / "config.py", [], CONFIGS[config])
