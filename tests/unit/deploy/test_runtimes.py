"""A deployed file in every runtime: what `eval`, `predict` and `Detector` do with `--runtime` and with engines."""

import json

import numpy as np
import pytest
import torch

from command.files import sha256_of
from deploy import Detector, deployment, runner_for
from deploy.fitting import fit_image, read_image
from detect.export import module_from_file

pytestmark = pytest.mark.slow


def evaluated(invoke, deployed, scenes, *options):
    return json.loads(invoke("deploy", "eval", deployed, scenes.annotations, scenes.images, "--json", *options).stdout)


@pytest.fixture(scope="module")
def single(model, invoke, tmp_path_factory):
    """The folder that is exported for single images."""
    folder = tmp_path_factory.mktemp("single") / "d"
    invoke("deploy", "export", model, "--out", folder)
    return folder


def test_openvino_finds_what_onnx_runtime_finds(deployed, detector, files):
    pytest.importorskip("openvino")
    found, expected = Detector.load(deployed, "openvino")(files, 0.1), detector(files, 0.1)
    assert sum(map(len, expected)) > 10
    for things, es in zip(found, expected, strict=True):
        assert [thing.name for thing in things] == [e.name for e in es]
        np.testing.assert_allclose([t.score for t in things], [e.score for e in es], atol=1e-4)
        np.testing.assert_allclose([t.box_xyxy for t in things], [e.box_xyxy for e in es], atol=0.05)


def test_images_are_drawn_in_the_named_runtime(deployed, files, invoke, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    opened = []

    def opening(*arguments):
        runner = runner_for(*arguments)
        opened.append(runner.runtime)
        return runner

    monkeypatch.setattr(deployment, "runner_for", opening)
    rows = [
        json.loads(invoke("detect", "predict", deployed, files[0], "--out", tmp_path / name, "--json", *options).stdout)
        for name, options in (("default", ()), ("openvino", ("--runtime", "openvino")))
    ]
    assert [thing["name"] for thing in rows[0][0]["found"]] == [thing["name"] for thing in rows[1][0]["found"]]
    assert opened == ["onnxruntime", "openvino"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="running an engine needs an NVIDIA GPU")
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt_graph", "tensorrt_rtx", "tensorrt_rtx_graph"])
def test_an_engine_is_scored_beside_its_model(elsewhere, model, scenes, invoke, runtime):
    backend = runtime.removesuffix("_graph")
    pytest.importorskip(backend)
    invoke("deploy", "build", elsewhere / "model.onnx", "--backend", backend)
    figures = evaluated(invoke, elsewhere / "model.engine", scenes, "--runtime", runtime, "--model", model)
    assert figures["runtime"] == runtime
    assert figures["map"] == pytest.approx(figures["framework_map"], abs=0.005)


def of_another_version(folder, with_engine):
    with_engine(folder, backend="tensorrt_rtx", backend_version="0.9")


def of_this_version(folder, with_engine):
    trt = pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("here is a GPU")
    with_engine(folder, backend="tensorrt_rtx", backend_version=trt.__version__)


def of_another_network(folder, with_engine):
    with_engine(folder, outputs={})


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (of_another_version, "model.engine: built by another version, got tensorrt_rtx 0.9; expected the installed"),
        (of_this_version, "model.engine: needs a GPU, got a machine without CUDA; use the ONNX file instead"),
        (
            of_another_network,
            "model.engine: not an Espalier detector, got inputs and outputs image, image_hw; expected",
        ),
    ],
)
def test_an_engine_that_cannot_be_scored_is_a_one_line_error(command, elsewhere, with_engine, scenes, engine, message):
    engine(elsewhere, with_engine)
    code, out, err = command("deploy", "eval", elsewhere / "model.engine", scenes.annotations, scenes.images)
    assert (code, out, err.count("\n")) == (1 if "needs a GPU" in message else 2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvno", "runtime: unknown, got 'openvno'; expected openvino"),
        ("tensorrt", "model.onnx: not for tensorrt, got .onnx; build an engine first"),
    ],
)
def test_a_runtime_that_does_not_fit_is_a_one_line_error(command, deployed, scenes, name, message):
    for arguments in (
        ("deploy", "eval", deployed, scenes.annotations, scenes.images),
        ("detect", "predict", deployed, scenes.images),
    ):
        code, out, err = command(*arguments, "--runtime", name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def with_another_onnx_file(folder, with_engine):
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes() + b"\x32\x00")  # one empty field more
    return folder


def with_an_engine_of_another_file(folder, with_engine):
    with_engine(folder, onnx_sha256="0123456789abcdef")
    return folder / "model.engine"


@pytest.mark.parametrize("broken", [with_another_onnx_file, with_an_engine_of_another_file])
def test_a_changed_file_or_a_foreign_engine_is_refused(elsewhere, with_engine, broken):
    with pytest.raises(
        ValueError, match=r"changed since its export, got another sha256 than in its deploy\.json; export it again"
    ):
        Detector.load(broken(elsewhere, with_engine))


@pytest.mark.parametrize("runtime", ["torch", "torch_compile"])
def test_a_model_file_is_measured_in_pytorch_beside_its_export(model, single, invoke, tmp_path, runtime):
    files = (model, single / "model.onnx")
    options = ("--runtime", runtime, "--rounds", 2, "--warmup", 1, "--json", "--out", tmp_path / "record.json")
    rows = json.loads(invoke("deploy", "bench", *files, *options).stdout)["rows"]
    assert [row["runtime"] for row in rows] == [runtime, "onnxruntime"]
    assert [row["file_sha256"] for row in rows] == [sha256_of(file) for file in files]


def test_a_model_file_in_pytorch_gives_what_its_export_gives(model, single, files):
    torch_runner, onnx_runner = runner_for(model, open_model=module_from_file), runner_for(single / "model.onnx")
    assert (torch_runner.inputs, torch_runner.outputs) == (onnx_runner.inputs, onnx_runner.outputs)
    inputs, _ = fit_image(read_image(files[0]), (96, 128))
    expected = onnx_runner.run(inputs)
    for name, array in torch_runner.run(inputs).items():
        np.testing.assert_allclose(array, expected[name], atol=1e-2)


def test_runtime_is_refused_for_a_model_file(command, model, files, tmp_path):
    code, out, err = command("detect", "predict", model, files[0], "--runtime", "openvino", "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert "--runtime openvino: not used with a model file, got " in err
    assert not (tmp_path / "out").exists()
