from types import SimpleNamespace

import pytest

from deploy import OnnxRunner
from deploy.explain import roofline
from deploy.explain.roofline import measure_roofline


def test_the_ceilings_follow_from_the_fastest_times(onnx_files, monkeypatch):
    fastest_ms, measured = {"MatMul": 20.0, "Neg": 10.0}, {}

    def fake_measure(runners, inputs, **_):
        ((name, runner),) = runners.items()
        measured[name] = runner.num_threads, [array.shape for array in inputs.values()]
        return SimpleNamespace(latencies={name: SimpleNamespace(min_ms=fastest_ms[name])})

    monkeypatch.setattr(roofline, "measure", fake_measure)
    found = measure_roofline(OnnxRunner(onnx_files[0], num_threads=2))
    assert measured == {"MatMul": (2, [(1024, 1024)] * 2), "Neg": (2, [(2**24,)])}
    assert found.macs_per_s == pytest.approx(1024**3 / 0.020)
    assert found.bytes_per_s == pytest.approx(2 * 4 * 2**24 / 0.010)  # read and written, 4 bytes each
    assert found.macs_per_byte == pytest.approx(1024**3 / 0.020 / (8 * 2**24 / 0.010))
    assert (found.precision, found.matrix_side) == ("fp32", 1024)


def test_a_cpu_has_ceilings_of_a_cpu(onnx_files):
    found = measure_roofline(OnnxRunner(onnx_files[0]))
    assert 1e8 < found.macs_per_s < 1e13
    assert 1e8 < found.bytes_per_s < 1e13
