import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deploy import engine_from_onnx
from deploy.explain import node_times
from deploy.explain.node_times import EngineProfiler, OnnxProfiler
from deploy.runtimes.tensorrt import EngineRunner

IMAGE = {"image": np.ones((1, 3, 16, 16), np.float32)}


def watched(profiler, inputs, rounds, warmup=0):
    step = profiler.prepare(inputs)
    for _ in range(warmup + rounds):
        step()
    return profiler.node_times(rounds)


def event(name, dur_us, operator="Conv"):
    typed = [{"float": [1, 3]}]
    args = {"op_name": operator, "node_index": "0", "input_type_shape": typed, "output_type_shape": typed}
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": dur_us, "args": args}


RUN_OVER = {"cat": "Session", "name": "model_run", "dur": 1}


@pytest.fixture
def logged(onnx_files, tmp_path, monkeypatch):
    """Return a profiler whose session logged these events."""

    def with_events(events):
        log = tmp_path / "log.json"
        log.write_text(json.dumps(events))
        profiler = OnnxProfiler(onnx_files[0])
        monkeypatch.setattr(profiler, "_session", SimpleNamespace(end_profiling=lambda: str(log)))
        return profiler

    return with_events


def test_every_node_has_its_operator_shapes_and_time(onnx_files):
    times = watched(OnnxProfiler(onnx_files[0]), IMAGE, rounds=3, warmup=1)
    convolutions = [time for time in times if "Conv" in time.operator]
    assert len(convolutions) == 2
    assert all(time.time_ms > 0 for time in convolutions)
    assert convolutions[0].input_shapes[:2] == ((1, 3, 16, 16), (32, 3, 3, 3))
    assert convolutions[0].output_shapes == ((1, 32, 14, 14),)


def test_the_log_leaves_no_file(onnx_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profiler = OnnxProfiler(onnx_files[0])
    folder = Path(profiler._folder.name)
    assert watched(profiler, IMAGE, rounds=1)
    assert not folder.exists()
    assert list(tmp_path.iterdir()) == []


def test_times_are_medians_of_the_last_runs_and_repeated_nodes_add_up(logged):
    runs = [[event("a", 900), event("b", 900)]]  # warm-up
    runs += [[event("a", 4000), event("b", 1000), event("b", 500)], [event("a", 8000), event("b", 100)]]
    runs += [[event("a", 5000), event("b", 200, "Gemm")]]
    times = logged([one for run in runs for one in [*run, RUN_OVER]]).node_times(3)
    assert [(time.name, time.operator, time.time_ms) for time in times] == [("a", "Conv", 5.0), ("b", "Conv", 0.2)]
    assert times[0].input_shapes == ((1, 3),)


def test_a_log_that_lost_rounds_is_refused(logged):
    with pytest.raises(
        RuntimeError, match=r"dense.onnx: profile is incomplete, got 1 of 2 rounds; measure fewer rounds"
    ):
        logged([event("a", 1), RUN_OVER]).node_times(2)


def test_wrong_inputs_are_refused(onnx_files):
    with pytest.raises(ValueError, match=r"wrong input names, got \['x'\]"):
        OnnxProfiler(onnx_files[0]).prepare({"x": IMAGE["image"]})


class FakeContext:
    """An execution context that reports two layers to its profiler, the first slower in every run."""

    profiler, num_runs = None, 0

    def execute_async_v3(self, stream):
        self.num_runs += 1
        self.profiler.report_layer_time("conv1 + relu1", float(self.num_runs))
        self.profiler.report_layer_time("Reformatting CopyNode for Output Tensor 0 to conv1", 0.25)
        return True


@pytest.fixture
def fake_engine(monkeypatch):
    def opened(self, path):
        self.runtime, self.file = "fake_trt", path
        self._context, self._stream = FakeContext(), SimpleNamespace(cuda_stream=0)

    class NeedsInit:
        def __init__(self):
            self.has_init = True

    monkeypatch.setitem(sys.modules, "fake_trt", SimpleNamespace(IProfiler=NeedsInit))
    monkeypatch.setattr(EngineRunner, "__init__", opened)
    monkeypatch.setattr(EngineRunner, "prepare", lambda self, inputs: self._launch)


def test_layers_of_an_engine_have_the_times_its_profiler_received(fake_engine):
    conv, copied = watched(EngineProfiler("net.engine"), {}, rounds=3, warmup=2)
    assert (conv.name, conv.operator, conv.time_ms) == ("conv1 + relu1", "", 4.0)  # of rounds 3, 4 and 5
    assert (copied.operator, copied.time_ms) == ("Reformat", 0.25)


def test_the_profiler_of_tensorrt_is_initialized(fake_engine):
    profiler = EngineProfiler("net.engine")
    assert profiler._context.profiler.has_init


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
def test_an_engine_without_a_gpu_is_refused_in_one_line(onnx_files, tmp_path):
    engine_from_onnx(onnx_files[0], tmp_path / "net.engine", compute_capabilities=("8.6",))
    with pytest.raises(RuntimeError, match=r"net\.engine: needs a GPU"):
        EngineProfiler(tmp_path / "net.engine")


def test_tensorrt_rtx_has_the_profiler_interface_used_here():
    trt = pytest.importorskip("tensorrt_rtx")
    log = node_times._layer_log(trt)
    log.passes.append({})
    log.report_layer_time("conv1", 0.5)
    log.report_layer_time("conv1", 0.25)
    assert isinstance(log, trt.IProfiler)
    assert log.passes == [{"conv1": 0.75}]
