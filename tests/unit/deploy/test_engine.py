import hashlib
import json
import sys

import numpy as np
import onnx
import pytest
import tensorrt_rtx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from command.errors import RequestError
from deploy import (
    TensorSpec,
    engine,
    engine_from_onnx,
    load_engine,
    onnx_from_module,
    quantized_onnx,
    read_engine_info,
)
from deploy.machine import Device


@pytest.fixture
def engine_path(onnx_files, tmp_path):
    engine_from_onnx(onnx_files[0], tmp_path / "net.engine", compute_capabilities=("8.6", "8.9"))
    return tmp_path / "net.engine"


def test_a_real_engine_and_its_sidecar_are_built(onnx_files, engine_path):
    info = read_engine_info(engine_path)
    assert info.backend == "tensorrt_rtx"
    assert info.backend_version == tensorrt_rtx.__version__
    assert info.compute_capabilities == ("8.6", "8.9")
    assert info.precision == "fp32"
    assert info.onnx_file == "dense.onnx"
    assert info.build_s > 0
    assert info.optimization_level == 3  # the backend's own
    assert info.onnx_sha256 == hashlib.sha256(onnx_files[0].read_bytes()).hexdigest()
    assert info.inputs == {"image": TensorSpec((1, 3, 16, 16), "float32")}
    assert info.outputs == {"scores": TensorSpec((1, 2, 12, 12), "float32")}
    assert sorted(path.name for path in engine_path.parent.iterdir()) == ["net.engine", "net.engine.json"]


def test_fp32_is_rounded_to_tf32_only_with_the_option(onnx_files, tmp_path):
    plans = [tmp_path / "exact.engine", tmp_path / "tf32.engine"]
    exact, rounded = (
        engine_from_onnx(onnx_files[0], plan, tf32=tf32) for plan, tf32 in zip(plans, (False, True), strict=True)
    )
    assert (exact.precision, rounded.precision) == ("fp32", "tf32")
    assert exact.engine_sha256 != rounded.engine_sha256


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_every_precision_and_batch_is_built(conv_net, tmp_path, precision, batch):
    source, image = tmp_path / "net.onnx", torch.rand(batch, 3, 16, 16)
    net = HalfInside(conv_net, DTYPES.get(precision, torch.float32))
    onnx_from_module(net, {"image": image}, source, ["scores"], tolerance=None, opset=22)  # of bfloat16 convolutions
    if precision == "int8":
        source = tmp_path / "int8.onnx"
        quantized_onnx(tmp_path / "net.onnx", source, [{"image": image.numpy()}], runtime="any")
    info = engine_from_onnx(source, tmp_path / "net.engine", compute_capabilities=("8.6",))
    assert info.precision == precision
    assert info.inputs["image"] == TensorSpec((batch, 3, 16, 16), "float32")
    assert info.outputs["scores"].shape == (batch, 8, 12, 12)
    assert read_engine_info(tmp_path / "net.engine") == info


class HalfInside(nn.Module):
    """A net in another precision with float32 inputs and outputs."""

    def __init__(self, net, dtype):
        super().__init__()
        self.net, self.dtype = net.to(dtype), dtype

    def forward(self, image):
        return self.net(image.to(self.dtype)).float()


def test_every_target_adds_code_to_the_plan(onnx_files, engine_path, tmp_path):
    engine_from_onnx(onnx_files[0], tmp_path / "one.engine", compute_capabilities=("8.6",), workspace_mib=64)
    assert (tmp_path / "one.engine").stat().st_size < engine_path.stat().st_size


def test_without_targets_the_backend_chooses(onnx_files, tmp_path):
    assert engine_from_onnx(onnx_files[1], tmp_path / "net.engine").compute_capabilities == ()


def test_an_unreadable_node_is_named_in_one_line(one_node_file, tmp_path):
    message = r"one_node.onnx: tensorrt_rtx cannot read node 'the_node' \(Unique\), got .*; rewrite it with other"
    with pytest.raises(ValueError, match=message):
        engine_from_onnx(one_node_file("Unique"), tmp_path / "net.engine")
    assert not (tmp_path / "net.engine").exists()


def test_a_net_that_cannot_be_built_is_a_one_line_error(one_node_file, tmp_path):
    path = one_node_file("MatMul", num_inputs=2, shape=(4, 4))  # TensorRT-RTX has no float32 MatMul for Turing
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx cannot build it, got .*Turing.*; change") as caught:
        engine_from_onnx(path, tmp_path / "net.engine", compute_capabilities=("7.5",))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.engine").exists()


@pytest.mark.parametrize("dtype", [TensorProto.DOUBLE, TensorProto.UINT16])
def test_a_type_that_no_engine_has_is_refused(tmp_path, dtype, capfd):
    x, y = (helper.make_tensor_value_info(name, dtype, (4,)) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "net.onnx")
    with pytest.raises(
        ValueError, match=r"net\.onnx: 'x' has a dtype that no engine supports, got .*; expected one of"
    ):
        engine_from_onnx(tmp_path / "net.onnx", tmp_path / "net.engine")
    assert capfd.readouterr().err == ""


def test_a_foreign_operator_is_named(one_node_file, tmp_path):
    with pytest.raises(ValueError, match=r"cannot read node 'the_node' \(Special\), got .*; rewrite it with other"):
        engine_from_onnx(one_node_file("Special", domain="mmdeploy"), tmp_path / "net.engine")


def test_nan_in_a_weight_is_refused(onnx_files, tmp_path):
    model = onnx.load(onnx_files[1])
    weight = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=rf"net\.onnx: weight '{weight.name}' is not finite, got NaN"):
        engine_from_onnx(tmp_path / "net.onnx", tmp_path / "net.engine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workspace_mib": 0}, "workspace_mib: too small, got 0; expected at least 1"),
        ({"optimization_level": 6}, "optimization_level: out of range, got 6; expected 0 to 5"),
        ({"timing_cache": "a.cache"}, "timing_cache: not used with tensorrt_rtx, .*, got a.cache; drop this option"),
    ],
)
def test_wrong_options_are_refused(onnx_files, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tensorrt_on_a_cpu(monkeypatch):
    """TensorRT-RTX under TensorRT's name: the two modules share one API, and a timing cache needs no GPU in it."""
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_rtx)
    yield
    engine._logger.cache_clear()


@pytest.mark.usefixtures("tensorrt_on_a_cpu")
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_a_timing_cache_is_written_and_reused(onnx_files, tmp_path):
    for _ in range(2):
        cache = tmp_path / "made" / "net.cache"
        engine_from_onnx(onnx_files[1], tmp_path / "net.engine", backend="tensorrt", timing_cache=cache)
    assert [path.name for path in cache.parent.iterdir()] == ["net.cache"]
    assert cache.stat().st_size > 0


def test_a_timing_cache_of_another_gpu_is_refused(tmp_path):
    class Config:
        def create_timing_cache(self, known):
            assert known == b"times"
            return "cache"

        def set_timing_cache(self, cache, ignore_mismatch):
            return ignore_mismatch

    (tmp_path / "net.cache").write_bytes(b"times")
    with pytest.raises(ValueError, match=r"net\.cache: not for this GPU and version, got .*; give a new file name"):
        engine._use_timing_cache(Config(), "tensorrt", tmp_path / "net.cache")


@pytest.mark.usefixtures("tensorrt_on_a_cpu")
def test_tensorrt_without_a_gpu_is_a_one_line_error(onnx_files, tmp_path, monkeypatch):
    def null_pointer(logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(tensorrt_rtx, "Builder", null_pointer)
    with pytest.raises(RuntimeError, match=r"tensorrt: cannot start, got .*; use a machine with an NVIDIA GPU"):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", backend="tensorrt")


def test_a_free_dimension_is_refused(one_node_file, tmp_path):
    with pytest.raises(ValueError, match=r"tensor 'x': has a free dimension, got \(None, 4\); export it"):
        engine_from_onnx(one_node_file("Relu", shape=("batch", 4)), tmp_path / "net.engine")


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(onnx_files, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot build for it, got 9\.0; expected one of 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"
    ):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", compute_capabilities=("9.0",))


def test_a_missing_backend_names_the_package_to_install(onnx_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        RequestError, match=r'tensorrt is not installed; engines need it: pip install "espalier\[tensorrt\]"'
    ):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", backend="tensorrt")


def test_an_unknown_backend_is_refused(onnx_files, tmp_path):
    with pytest.raises(ValueError, match="backend: unknown, got 'os'; expected one of tensorrt, tensorrt_rtx"):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", backend="os")


def test_an_engine_of_another_version_is_refused(engine_path):
    sidecar = engine_path.with_name("net.engine.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"backend_version": "1.2.3"}))
    with pytest.raises(
        ValueError, match=r"got tensorrt_rtx 1\.2\.3; expected the installed .*, rebuild it with: espal"
    ):
        load_engine(engine_path)


@pytest.mark.usefixtures("tensorrt_on_a_cpu")
def test_an_engine_that_tensorrt_built_on_another_gpu_is_refused(engine_path, monkeypatch):
    """Pretend that there is a GPU."""
    sidecar = engine_path.with_name("net.engine.json")
    fields = {"backend": "tensorrt", "gpu": "NVIDIA L4"}
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | fields))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engine, "current_gpu", lambda: Device(is_gpu=True, name="NVIDIA A100"))
    with pytest.raises(ValueError, match="built for another GPU, got NVIDIA L4; expected NVIDIA A100, rebuild it with"):
        load_engine(engine_path)


def test_an_engine_of_a_changed_source_is_refused(onnx_files, engine_path):
    beside = engine_path.with_name("dense.onnx")
    beside.write_bytes(onnx_files[0].read_bytes())
    engine._refuse_stale(engine_path, read_engine_info(engine_path))
    beside.write_bytes(onnx_files[1].read_bytes())
    with pytest.raises(ValueError, match=r"net\.engine: outdated, got a .*dense\.onnx that was changed"):
        load_engine(engine_path)


def test_a_sidecar_of_an_earlier_version_is_read(engine_path):
    sidecar = engine_path.with_name("net.engine.json")
    new = ("onnx_file", "build_s", "gpu", "driver", "optimization_level", "workspace_mib")
    old = {key: value for key, value in json.loads(sidecar.read_text()).items() if key not in new}
    sidecar.write_text(json.dumps(old))
    assert read_engine_info(engine_path).build_s is None


def test_an_engine_that_does_not_match_its_sidecar_is_refused(engine_path):
    engine_path.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"net\.engine: does not match its sidecar"):
        read_engine_info(engine_path)


def test_an_engine_without_its_sidecar_is_refused(engine_path):
    engine_path.with_name("net.engine.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.engine.json: no such file; rebuild it with"):
        read_engine_info(engine_path)


def test_a_timing_cache_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="not a file, got a folder, pipe or device; give a new file name, it is created"
    ):
        engine._use_timing_cache(None, "tensorrt", tmp_path)
