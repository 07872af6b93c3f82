import hashlib
import json
import sys

import pytest
import tensorrt_rtx

from deploy import TensorSpec, engine_from_onnx, load_engine, read_engine_info


@pytest.fixture
def engine_path(onnx_files, tmp_path):
    engine_from_onnx(onnx_files[0], tmp_path / "net.engine", compute_capabilities=("8.6", "8.9"))
    return tmp_path / "net.engine"


def test_a_real_engine_and_its_sidecar_are_built(onnx_files, engine_path):
    info = read_engine_info(engine_path)
    assert info.backend == "tensorrt_rtx"
    assert info.backend_version == tensorrt_rtx.__version__
    assert info.compute_capabilities == ("8.6", "8.9")
    assert info.precision == "float32"
    assert info.onnx_sha256 == hashlib.sha256(onnx_files[0].read_bytes()).hexdigest()
    assert info.inputs == {"image": TensorSpec((1, 3, 16, 16), "float32")}
    assert info.outputs == {"scores": TensorSpec((1, 2, 12, 12), "float32")}
    assert sorted(path.name for path in engine_path.parent.iterdir()) == ["net.engine", "net.engine.json"]


def test_every_target_adds_code_to_the_plan(onnx_files, engine_path, tmp_path):
    engine_from_onnx(onnx_files[0], tmp_path / "one.engine", compute_capabilities=("8.6",), workspace_mib=64)
    assert (tmp_path / "one.engine").stat().st_size < engine_path.stat().st_size


def test_without_targets_the_backend_chooses(onnx_files, tmp_path):
    assert engine_from_onnx(onnx_files[1], tmp_path / "net.engine").compute_capabilities == ()


def test_an_unreadable_node_is_named_in_one_line(one_node_file, tmp_path):
    message = r"one_node.onnx: tensorrt_rtx cannot read node 'the_node' \(Unique\), got .*; write it with other"
    with pytest.raises(RuntimeError, match=message):
        engine_from_onnx(one_node_file("Unique"), tmp_path / "net.engine")
    assert not (tmp_path / "net.engine").exists()


def test_a_net_that_cannot_be_built_says_why_in_one_line(one_node_file, tmp_path):
    path = one_node_file("MatMul", num_inputs=2, shape=(4, 4))  # TensorRT-RTX has no float32 MatMul for Turing
    with pytest.raises(RuntimeError, match=r"tensorrt_rtx cannot build it, got .*Turing.*; change") as caught:
        engine_from_onnx(path, tmp_path / "net.engine", compute_capabilities=("7.5",))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "net.engine").exists()


def test_a_free_dimension_is_refused(one_node_file, tmp_path):
    with pytest.raises(ValueError, match=r"tensor 'x': a free dimension, got \(None, 4\); expected fixed sizes"):
        engine_from_onnx(one_node_file("Relu", shape=("batch", 4)), tmp_path / "net.engine")


def test_an_unknown_compute_capability_is_refused_with_the_known_ones(onnx_files, tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot build for it, got 9\.0; expected one of 7\.5, 8\.0, 8\.6, 8\.9, 12\.0"
    ):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", compute_capabilities=("9.0",))


def test_a_missing_backend_says_what_to_install(onnx_files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(RuntimeError, match=r'tensorrt is not installed; .*: pip install -e "\.\[tensorrt\]"'):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", backend="tensorrt")


def test_an_unknown_backend_is_refused(onnx_files, tmp_path):
    with pytest.raises(ValueError, match="backend: unknown, got 'os'; expected one of tensorrt, tensorrt_rtx"):
        engine_from_onnx(onnx_files[0], tmp_path / "net.engine", backend="os")


def test_an_engine_of_another_version_says_how_to_rebuild(engine_path):
    sidecar = engine_path.with_name("net.engine.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"backend_version": "1.2.3"}))
    with pytest.raises(
        ValueError, match=r"got tensorrt_rtx 1\.2\.3; expected the installed .*, rebuild it with: espal"
    ):
        load_engine(engine_path)


def test_an_engine_that_is_not_its_sidecars_is_refused(engine_path):
    engine_path.write_bytes(b"another")
    with pytest.raises(ValueError, match=r"net\.engine: not the engine its sidecar describes"):
        read_engine_info(engine_path)


def test_an_engine_without_its_sidecar_is_refused(engine_path):
    engine_path.with_name("net.engine.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"net\.engine.json: no such file; rebuild it with"):
        read_engine_info(engine_path)
