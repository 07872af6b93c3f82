import numpy as np
import pytest
import torch
from torch import nn

from deploy import (
    ModuleRunner,
    OnnxRunner,
    measure,
    onnx_from_module,
    random_inputs,
    record_from_measurement,
    runner_for,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="running on a GPU needs an NVIDIA GPU")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()


@pytest.fixture
def onnx_file(net, tmp_path):
    onnx_from_module(net, {"image": torch.rand(1, 3, 32, 32)}, tmp_path / "net.onnx", ["scores"])
    return tmp_path / "net.onnx"


def check(runner, onnx_file):
    """Compare with the CPU, and check that all three parts of a pass took time."""
    session = OnnxRunner(onnx_file)
    inputs = random_inputs(session.inputs)
    expected = session.run(inputs)["scores"]
    np.testing.assert_allclose(runner.run(inputs)["scores"], expected, atol=1e-3 * abs(expected).max())
    times = runner.prepare(inputs)()
    assert min(times.latency_ms, times.host_to_device_ms, times.device_to_host_ms) > 0


@pytest.mark.parametrize("mode", ["eager", "compile", "cuda_graph"])
def test_a_module_on_a_gpu_is_timed_in_three_parts(net, onnx_file, mode):
    check(ModuleRunner(net.cuda(), ["scores"], device="cuda:0", mode=mode), onnx_file)


def test_a_cuda_graph_reads_the_inputs_it_is_given(net, onnx_file):
    runner, session = ModuleRunner(net.cuda(), ["scores"], device="cuda:0", mode="cuda_graph"), OnnxRunner(onnx_file)
    for seed in (0, 1):
        inputs = random_inputs(session.inputs, seed)
        expected = session.run(inputs)["scores"]
        np.testing.assert_allclose(runner.run(inputs)["scores"], expected, atol=1e-3 * abs(expected).max())


def test_onnx_runtime_on_a_gpu_is_timed_in_three_parts(onnx_file):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has no CUDA support")
    check(runner_for(onnx_file, "onnxruntime_cuda"), onnx_file)


def test_clocks_and_power_are_recorded(net):
    pytest.importorskip("pynvml")
    runners = {"net": ModuleRunner(net.cuda(), ["scores"], device="cuda:0")}
    inputs = {"image": np.random.default_rng(0).random((8, 3, 64, 64), np.float32)}
    record = record_from_measurement(measure(runners, inputs, rounds=50), runners, inputs)
    phases = [sample.phase for sample in record.gpu.samples]
    assert (phases[0], phases[-1]) == ("before", "after")
    assert record.gpu.samples[-1].sm_clock_mhz > 0
    assert record.candidates["net"].transfers.host_to_device.median_ms > 0
