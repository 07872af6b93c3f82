import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import helper, numpy_helper

from classify.synthetic import SHAPES
from command.files import sha256_of
from deploy import OnnxRunner


def _model_config():
    """Return Triton's schema; the package around it needs gRPC too."""
    package = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(package) / "grpc/model_config_pb2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCHEMA = _model_config()
TYPES = {"float32": SCHEMA.TYPE_FP32, "uint8": SCHEMA.TYPE_UINT8, "int64": SCHEMA.TYPE_INT64, "bool": SCHEMA.TYPE_BOOL}


def config_of(model):
    return text_format.Parse((model / "config.pbtxt").read_text(), SCHEMA.ModelConfig())


def tensors(specs):
    return [(name, TYPES[spec.dtype], list(spec.shape)) for name, spec in specs.items()]


def declared(fields):
    return [(field.name, field.data_type, list(field.dims)) for field in fields]


def with_graph(folder, inputs, outputs):
    """Write an ONNX file with these tensors that returns zeros, and update its `deploy.json`."""

    def values(tensors):
        kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for name, (dtype, _) in tensors.items()}
        return [helper.make_tensor_value_info(name, kinds[name], shape) for name, (_, shape) in tensors.items()]

    zeros = {name: numpy_helper.from_array(np.zeros(shape, dtype)) for name, (dtype, shape) in outputs.items()}
    nodes = [helper.make_node("Constant", [], [name], value=value) for name, value in zeros.items()]
    graph = helper.make_graph(nodes, "zeros", values(inputs), values(outputs))
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")
    description = json.loads((folder / "deploy.json").read_text())
    specs = {
        side: {name: {"shape": shape, "dtype": dtype} for name, (dtype, shape) in tensors.items()}
        for side, tensors in (("inputs", inputs), ("outputs", outputs))
    }
    sha256 = {"model.onnx": sha256_of(folder / "model.onnx")}
    (folder / "deploy.json").write_text(json.dumps({**description, **specs, "sha256": sha256}))


@pytest.fixture(scope="module")
def repository(deployed, invoke, tmp_path_factory):
    out = tmp_path_factory.mktemp("package") / "repository"
    invoke("deploy", "package", deployed, "--out", out, "--name", "shapes")
    return out


def test_a_repository_has_all_files_of_its_models(repository):
    written = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert written == {
        "shapes/config.pbtxt",
        "shapes/labels.txt",
        "shapes/1/model.onnx",
        "shapes/1/deploy.json",
        "shapes_images/config.pbtxt",
        "shapes_images/labels.txt",
        "shapes_images/README.md",
        "shapes_images/1/client.py",
        "shapes_images/1/model.py",
        "shapes_images/1/fitting.py",
    }


def test_the_graph_is_declared_with_the_batch_that_is_fixed_in_it(repository, deployed):
    config = config_of(repository / "shapes")
    runner = OnnxRunner(deployed / "model.onnx")
    assert (config.name, config.backend, config.max_batch_size) == ("shapes", "onnxruntime", 0)
    assert (repository / "shapes/1" / config.default_model_filename).read_bytes() == (
        deployed / "model.onnx"
    ).read_bytes()
    assert declared(config.input) == tensors(runner.inputs)
    assert declared(config.output) == tensors(runner.outputs)
    assert declared(config.input)[0] == ("image", SCHEMA.TYPE_FP32, [2, 3, 96, 128])
    assert not config.HasField("dynamic_batching")


def test_images_of_any_size_are_collected_into_that_batch(repository):
    config = config_of(repository / "shapes_images")
    assert (config.name, config.backend, config.max_batch_size) == ("shapes_images", "python", 2)
    assert (repository / "shapes_images/1" / config.default_model_filename).is_file()
    assert declared(config.input) == [
        ("image", SCHEMA.TYPE_UINT8, [-1, -1, 3]),
        ("encoded", SCHEMA.TYPE_UINT8, [-1]),
    ]
    assert all(field.optional and field.allow_ragged_batch for field in config.input)
    assert declared(config.output) == [
        ("boxes_xyxy", SCHEMA.TYPE_FP32, [100, 4]),
        ("scores", SCHEMA.TYPE_FP32, [100]),
        ("labels", SCHEMA.TYPE_INT64, [100]),
    ]
    assert list(config.dynamic_batching.preferred_batch_size) == [2]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    assert config.parameters["graph"].string_value == "shapes"
    assert [group.kind for group in config.instance_group] == [SCHEMA.ModelInstanceGroup.KIND_CPU]


@pytest.mark.parametrize("name", ["shapes", "shapes_images"])
def test_labels_are_the_lines_of_their_file(repository, name):
    files = {field.name: field.label_filename for field in config_of(repository / name).output}
    assert files == {"boxes_xyxy": "", "scores": "", "labels": "labels.txt"}
    assert tuple((repository / name / files["labels"]).read_text().splitlines()) == SHAPES


def test_other_commands_open_the_packaged_file(repository, invoke, files, deployed, tmp_path):
    packaged, exported = (
        json.loads(invoke("detect", "predict", path, files[0], "--out", tmp_path / path.name, "--json").stdout)
        for path in (repository / "shapes/1", deployed)
    )
    assert packaged == exported


def test_a_graph_of_bytes_is_given_bytes(elsewhere, invoke, tmp_path):
    outputs = {
        "boxes_xyxy": ("float32", [1, 9, 4]),
        "scores": ("float32", [1, 9]),
        "labels": ("int64", [1, 9]),
        "nms_converged": ("bool", [1]),
    }
    with_graph(elsewhere, {"image": ("uint8", [1, 3, 96, 128]), "image_hw": ("float32", [1, 2])}, outputs)
    result = invoke("deploy", "package", elsewhere)
    config = config_of(tmp_path / "det.triton/det")
    assert declared(config.input)[0] == ("image", SCHEMA.TYPE_UINT8, [1, 3, 96, 128])
    assert declared(config.output) == [(name, TYPES[dtype], shape) for name, (dtype, shape) in outputs.items()]
    for file in ("client.py", "model.py"):
        assert 'DTYPE = (96, 128), 1, "uint8"' in (tmp_path / "det.triton/det_images/1" / file).read_text()
    assert f"wrote det, det_images to {tmp_path}/det.triton\nnext: tritonserver --model-rep" in result.stderr


def test_a_tensorrt_engine_becomes_the_model_that_is_called(elsewhere, with_engine, invoke, tmp_path):
    with_engine(elsewhere)
    invoke("deploy", "package", elsewhere)
    plan, onnx, images = (config_of(tmp_path / "det.triton" / name) for name in ("det_plan", "det", "det_images"))
    assert (plan.name, plan.backend, plan.max_batch_size) == ("det_plan", "tensorrt", 0)
    assert (tmp_path / "det.triton/det_plan/1" / plan.default_model_filename).read_bytes() == b"engine"
    assert plan.default_model_filename == "model.plan"
    assert (declared(plan.input), declared(plan.output)) == (declared(onnx.input), declared(onnx.output))
    assert images.parameters["graph"].string_value == "det_plan"


def test_a_tensorrt_rtx_engine_is_left_out_with_a_note(elsewhere, with_engine, invoke, tmp_path):
    with_engine(elsewhere, backend="tensorrt_rtx")
    result = invoke("deploy", "package", elsewhere)
    assert not (tmp_path / "det.triton/det_plan").exists()
    problem = f"{elsewhere}/model.engine: not for Triton, got an engine for tensorrt_rtx; build one with"
    note = f"note: not packaged: {problem}: espalier deploy build {elsewhere}/model.onnx --backend tensorrt\n"
    assert note in result.stderr


def test_of_several_engines_the_named_one_is_packaged(elsewhere, with_engine, invoke, tmp_path):
    for index in (1, 2, 3):
        with_engine(elsewhere, f"model-{index}.engine", content=f"engine {index}".encode())
    invoke("deploy", "package", elsewhere, "--engine", elsewhere / "model-2.engine")
    assert (tmp_path / "det.triton/det_plan/1/model.plan").read_bytes() == b"engine 2"


def test_an_engine_is_taken_from_any_folder(elsewhere, with_engine, invoke, tmp_path):
    with_engine(elsewhere)
    other = tmp_path / "engines"
    other.mkdir()
    for name in ("model.engine", "model.engine.json"):
        (elsewhere / name).rename(other / name)
    invoke("deploy", "package", elsewhere, "--engine", other / "model.engine")
    assert config_of(tmp_path / "det.triton/det_images").parameters["graph"].string_value == "det_plan"


def test_the_engine_that_fits_is_packaged_and_others_are_reported(elsewhere, with_engine, invoke, tmp_path):
    (elsewhere / "bare.engine").write_bytes(b"engine")
    with_engine(elsewhere, "other.engine", onnx_sha256="0123456789abcdef")
    with_engine(elsewhere, "rtx.engine", backend="tensorrt_rtx")
    with_engine(elsewhere, "fits.engine", content=b"this one")
    result = invoke("deploy", "package", elsewhere)
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: not packaged: ")]
    problems = ("bare.engine.json: no such file;", "other.engine: not built from model.onnx", "rtx.engine: not for Tr")
    for note, problem in zip(notes, problems, strict=True):
        assert problem in note
    assert (tmp_path / "det.triton/det_plan/1/model.plan").read_bytes() == b"this one"


def test_a_second_detector_leaves_the_first_as_it_was(elsewhere, invoke, tmp_path):
    out = tmp_path / "repository"
    invoke("deploy", "package", elsewhere, "--out", out, "--name", "first")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    invoke("deploy", "package", elsewhere, "--out", out, "--name", "second", "--force")
    assert {path: path.read_bytes() for path in before} == before
    for name in ("first", "second"):
        assert f'MODEL = "{name}"\n' in (out / f"{name}_images/1/client.py").read_text()
        assert (out / f"{name}_images/README.md").read_text().startswith(f"# {name}\n")
    assert {path.name for path in out.iterdir()} == {"first", "first_images", "second", "second_images"}


def test_a_file_in_the_current_folder_is_packaged_beside_the_folder(elsewhere, invoke, tmp_path, monkeypatch):
    monkeypatch.chdir(elsewhere)
    invoke("deploy", "package", "model.onnx")
    assert config_of(tmp_path / "det.triton/det").name == "det"


def test_force_replaces_models_of_the_name_and_leaves_others(elsewhere, with_engine, invoke, tmp_path):
    out = tmp_path / "repository"
    (out / "others").mkdir(parents=True)
    with_engine(elsewhere)
    invoke("deploy", "package", elsewhere, "--out", out, "--force")
    (elsewhere / "model.engine").unlink()
    invoke("deploy", "package", elsewhere, "--out", out, "--force")
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"others", "det", "det_images"}
    assert config_of(out / "det_images").parameters["graph"].string_value == "det"
    assert {path.name for path in tmp_path.iterdir()} == {"det.deploy", "repository"}


def empty_folder(folder, with_engine):
    shutil.rmtree(folder)
    folder.mkdir()


def of_a_classifier(folder, with_engine):
    with_graph(folder, {"image": ("float32", [1, 3, 32, 32])}, {"scores": ("float32", [1, 3])})


def existing_repository(folder, with_engine):
    folder.with_suffix(".triton").mkdir()


def two_engines(folder, with_engine):
    with_engine(folder, "a.engine")
    with_engine(folder, "b.engine")


def engine_of_another_file(folder, with_engine):
    with_engine(folder, onnx_sha256="0123456789abcdef")


def engine_of_another_backend(folder, with_engine):
    with_engine(folder, backend="tensorrt_rtx")


def engine_without_sidecar(folder, with_engine):
    (folder / "model.engine").write_bytes(b"engine")


CHOSEN = ("--engine", "det.deploy/model.engine")


@pytest.mark.parametrize(
    ("broken", "options", "message"),
    [
        (empty_folder, (), "model.onnx: no such file; expected a folder that espalier deploy export wrote"),
        (of_a_classifier, (), "model.onnx: not an Espalier detector, got inputs and outputs image, scores; expected"),
        (existing_repository, (), "det.triton: exists already; give another --out, or --force to replace it"),
        (lambda *_: None, ("--name", "a/b"), "--name: not a valid model name, got 'a/b'; expected letters, digits"),
        (lambda *_: None, ("--name", ".."), "--name: not a valid model name, got '..'; expected letters, digits"),
        (two_engines, (), "det.deploy: several engines, got a.engine, b.engine; choose one with --engine"),
        (engine_of_another_file, CHOSEN, "model.engine: not built from model.onnx, got an engine for sha256 0123"),
        (engine_of_another_backend, CHOSEN, "model.engine: not for Triton, got an engine for tensorrt_rtx; build one"),
        (engine_without_sidecar, CHOSEN, "model.engine.json: no such file; rebuild it with: espalier deploy build"),
        (lambda *_: None, CHOSEN, "model.engine: no such file; rebuild it with: espalier deploy build"),
    ],
)
def test_a_wrong_request_is_a_one_line_error(command, elsewhere, with_engine, broken, options, message, monkeypatch):
    monkeypatch.chdir(elsewhere.parent)
    broken(elsewhere, with_engine)
    before = sorted(elsewhere.parent.iterdir())
    code, out, err = command("deploy", "package", elsewhere, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert sorted(elsewhere.parent.iterdir()) == before
