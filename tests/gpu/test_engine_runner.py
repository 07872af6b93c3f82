import numpy as np
import pytest
import torch
from torch import nn

from deploy import EngineRunner, OnnxRunner, engine_from_onnx, onnx_from_module, random_inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="running an engine needs an NVIDIA GPU")


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_gives_what_onnx_runtime_gives_and_has_a_time(backend, cuda_graph, tmp_path):
    pytest.importorskip(backend)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 3))
    onnx_from_module(net, {"image": torch.rand(1, 3, 32, 32)}, tmp_path / "net.onnx", ["scores"])
    engine_from_onnx(tmp_path / "net.onnx", tmp_path / "net.engine", backend=backend)
    engine, session = EngineRunner(tmp_path / "net.engine", cuda_graph=cuda_graph), OnnxRunner(tmp_path / "net.onnx")
    for seed in (0, 1):  # a recorded graph must read the inputs it is given, not those it was recorded with
        inputs = random_inputs(session.inputs, seed)
        expected = session.run(inputs)["scores"]
        limit = 1e-3 * abs(expected).max()
        np.testing.assert_allclose(engine.run(inputs)["scores"], expected, atol=limit)
    times = engine.prepare(inputs)()
    assert min(times.latency_ms, times.host_to_device_ms, times.device_to_host_ms) > 0
