import sys

import numpy as np
import pytest

from command.errors import RequestError
from deploy import OnnxRunner, engine_from_onnx, onnx_from_module, quantized_onnx, random_inputs, runner_for
from deploy.runtimes.openvino import OpenVinoRunner


@pytest.fixture(autouse=True)
def _needs_openvino(request):
    if "missing" not in request.node.name:
        pytest.importorskip("openvino")


@pytest.mark.parametrize("hint", ["f32", "bf16"])
def test_openvino_gives_what_onnx_runtime_gives(net, tensors, tmp_path, hint):
    onnx_from_module(net, tensors, tmp_path / "net.onnx", ["scores", "labels"])
    session, openvino = OnnxRunner(tmp_path / "net.onnx"), OpenVinoRunner(tmp_path / "net.onnx", precision_hint=hint)
    inputs = random_inputs(session.inputs)
    expected, outputs = session.run(inputs), openvino.run(inputs)
    assert list(outputs) == ["scores", "labels"]
    limit = 1e-5 if openvino.precision == "fp32" else 2e-2
    np.testing.assert_allclose(outputs["scores"], expected["scores"], rtol=limit)
    assert outputs["labels"].dtype == np.int64
    assert openvino.prepare(inputs)() is None


def test_outputs_are_not_changed_by_the_next_run(onnx_files):
    runner = OpenVinoRunner(onnx_files[0])
    first = random_inputs(runner.inputs, seed=0)
    outputs = runner.run(first)["scores"]
    kept = outputs.copy()
    runner.run(random_inputs(runner.inputs, seed=1))
    np.testing.assert_array_equal(outputs, kept)


def test_the_precision_is_what_really_runs(onnx_files, tmp_path):
    openvino = pytest.importorskip("openvino")
    can_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert OpenVinoRunner(onnx_files[0]).precision == "fp32"
    hinted = OpenVinoRunner(onnx_files[0], precision_hint="bf16")
    assert hinted.precision == ("bf16" if can_bf16 else "fp32")
    quantized_onnx(onnx_files[0], tmp_path / "q.onnx", [random_inputs(hinted.inputs)], runtime="onnxruntime")
    assert OpenVinoRunner(tmp_path / "q.onnx").precision == "int8"


def test_threads_are_as_requested(onnx_files):
    assert runner_for(onnx_files[0], "openvino", num_threads=1).num_threads == 1


def test_an_operator_openvino_lacks_is_a_one_line_error(one_node_file):
    with pytest.raises(
        ValueError, match=r"one_node\.onnx: OpenVINO cannot load it, got No conversion rule .*Special; ex"
    ):
        OpenVinoRunner(one_node_file("Special", domain="mmdeploy"))


def test_wrong_inputs_are_refused(onnx_files):
    with pytest.raises(ValueError, match=r"dense\.onnx: wrong input names, got \['x'\]; expected \['image'\]"):
        OpenVinoRunner(onnx_files[0]).run({"x": np.ones(1)})


def test_missing_openvino_names_the_package_to_install(onnx_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(RequestError, match=r'openvino is not installed; .*: pip install "espalier\[openvino\]"'):
        OpenVinoRunner(onnx_files[0])


def test_a_file_is_opened_in_the_runtime_of_its_kind_by_default(onnx_files):
    assert isinstance(runner_for(onnx_files[0]), OnnxRunner)
    assert isinstance(runner_for(onnx_files[0], "openvino_bf16"), OpenVinoRunner)


def test_an_engine_opens_only_in_the_runtime_that_built_it(onnx_files, tmp_path):
    engine_from_onnx(onnx_files[1], tmp_path / "net.engine", compute_capabilities=("8.6",))
    with pytest.raises(
        ValueError, match=r"net\.engine: not for tensorrt, got an engine for tensorrt_rtx; build an eng"
    ):
        runner_for(tmp_path / "net.engine", "tensorrt")
    with pytest.raises(ValueError, match=r"net\.engine: not for openvino, got \.engine; expected an ONNX file"):
        runner_for(tmp_path / "net.engine", "openvino")


def test_a_missing_file_is_a_one_line_error_in_every_runtime(tmp_path):
    for runtime in ("onnxruntime", "openvino", "onnxruntime_cuda"):
        with pytest.raises(FileNotFoundError, match=r"gone\.onnx: no such file"):
            runner_for(tmp_path / "gone.onnx", runtime)
