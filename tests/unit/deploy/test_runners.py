import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from deploy import EngineRunner, ModuleRunner, OnnxRunner, engine_from_onnx, onnx_from_module, random_inputs
from deploy.runtimes.onnxruntime_cuda import CudaOnnxRunner


def test_session_and_module_agree(net, tensors, tmp_path):
    onnx_from_module(net, tensors, tmp_path / "net.onnx", ["scores", "labels"])
    session = OnnxRunner(tmp_path / "net.onnx", num_threads=1)
    inputs = random_inputs(session.inputs)
    expected = ModuleRunner(net.eval(), ["scores", "labels"]).run(inputs)
    outputs = session.run(inputs)
    assert list(outputs) == list(expected) == ["scores", "labels"]
    np.testing.assert_allclose(outputs["scores"], expected["scores"], rtol=1e-5)
    np.testing.assert_array_equal(outputs["labels"], expected["labels"])


def test_a_step_runs_the_module_once_and_measures_no_time():
    class Counts(nn.Module):
        num_calls = 0

        def forward(self, x):
            Counts.num_calls += 1
            assert not torch.is_grad_enabled()
            return x

    step = ModuleRunner(Counts(), ["y"]).prepare({"x": np.ones(2, np.float32)})
    assert [step(), step()] == [None, None]
    assert Counts.num_calls == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_module_compiles_before_it_is_timed_and_gives_the_same():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    inputs = {"x": np.array([-4, -1, 0, 1, 4], np.float32)}
    runner = ModuleRunner(nn.Hardswish(), ["y"], mode="compile")
    step = runner.prepare(inputs)
    assert (runner.runtime, step()) == ("torch_compile", None)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    # x relu6(x + 3) / 6: -1 x 2 / 6, 1 x 4 / 6, 4 x 6 / 6
    np.testing.assert_allclose(runner.run(inputs)["y"], [0, -1 / 3, 0, 2 / 3, 4], rtol=1e-6)


def test_torch_compile_without_a_compiler_is_a_one_line_error(conv_net):
    patch = {"cpp.cxx": (None, "no-such-compiler"), "force_disable_caches": True}
    with torch._inductor.config.patch(patch), pytest.raises(RuntimeError) as caught:
        ModuleRunner(conv_net, ["y"], mode="compile").prepare({"image": np.ones((1, 3, 9, 9), np.float32)})
    assert str(caught.value).startswith("torch_compile: cannot compile Sequential, got InvalidCxxCompiler: No working")
    assert "install a C++ compiler" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_onnx_runtime_without_cuda_names_the_package_to_install(onnx_files):
    with pytest.raises(RuntimeError, match=r"dense\.onnx: ONNX Runtime has no CUDA support, got .*onnxruntime-gpu"):
        CudaOnnxRunner(onnx_files[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"wrong input names, got \[\]; expected \['image'\]"),
        ({"x": np.ones(1)}, r"wrong input names, got \['x'\]; expected \['image'\]"),
        ({"image": np.ones((1, 3, 8, 8), np.float32)}, r"'image' has the wrong shape, got \(1, 3, 8, 8\); expected"),
        ({"image": np.ones((3, 16, 16), np.float32)}, r"'image' has the wrong shape, got \(3, 16, 16\); expected"),
        ({"image": np.ones((1, 3, 16, 16))}, "'image' has the wrong dtype, got float64; expected float32"),
    ],
)
def test_wrong_inputs_are_refused_before_running(onnx_files, inputs, message):
    runner = OnnxRunner(onnx_files[0])
    with pytest.raises(ValueError, match=f"dense.onnx: .*{message}"):
        runner.run(inputs)
    with pytest.raises(ValueError, match=f"dense.onnx: .*{message}"):
        runner.prepare(inputs)


def test_a_free_dimension_takes_any_size(one_node_file):
    runner = OnnxRunner(one_node_file("Relu", shape=("batch", 2)))
    outputs = runner.run({"x": np.array([[-1, 2], [3, -4], [5, 6]], np.float32)})
    np.testing.assert_array_equal(outputs["y"], [[0, 2], [3, 0], [5, 6]])


def test_an_operator_onnx_runtime_lacks_is_a_one_line_error(one_node_file, capfd):
    with pytest.raises(
        ValueError, match=r"one_node.onnx: ONNX Runtime cannot load it, got .*; expected standard"
    ) as caught:
        OnnxRunner(one_node_file("Special", domain="mmdeploy"))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_an_engine_without_a_gpu_is_refused_in_one_line(onnx_files, tmp_path):
    engine_from_onnx(onnx_files[0], tmp_path / "net.engine", compute_capabilities=("8.6",))
    with pytest.raises(RuntimeError, match=r"net\.engine: needs a GPU"):
        EngineRunner(tmp_path / "net.engine")


def test_a_failure_while_running_is_a_one_line_error(tmp_path):
    """An index out of range passes every earlier check."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    index = numpy_helper.from_array(np.array([9]), "index")
    graph = helper.make_graph([helper.make_node("Gather", ["x", "index"], ["y"], name="pick")], "g", [x], [y], [index])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "net.onnx")
    runner = OnnxRunner(tmp_path / "net.onnx")
    inputs = {"x": np.ones(4, np.float32)}
    for run in (lambda: runner.run(inputs), runner.prepare(inputs)):
        with pytest.raises(
            RuntimeError, match=r"^\S+net\.onnx: ONNX Runtime cannot run it, got .*; change the named node$"
        ):
            run()
