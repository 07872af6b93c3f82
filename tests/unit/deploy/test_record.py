import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from deploy import (
    OnnxRunner,
    Record,
    load_record,
    measure,
    random_inputs,
    record_from_measurement,
    rows_from_record,
    save_record,
    table_from_record,
)
from deploy.latency import Speedup, Transfers, latency_from_samples
from deploy.machine import _gpu_from_facts
from deploy.nvml import GpuLog, GpuSample
from deploy.record import Candidate, Conditions, Device, git_commit


def candidate(batch, macs, samples_ms, *, runtime="onnxruntime", **others):
    shared = {"runtime": runtime, "precision": "fp32", "batch": batch, "input_shapes": {"image": (batch, 3, 8, 8)}}
    return Candidate(**shared, macs=macs, latency=latency_from_samples(samples_ms), **others)


@pytest.fixture
def record():
    return Record(
        version=1,
        created="2026-01-02T03:04:05Z",
        device=Device(is_gpu=False, name="Some CPU", num_threads=1),
        versions={"python": "3.11.0"},
        git_commit="abc-dirty",
        conditions=Conditions(warmup=1, rounds=3),
        candidates={
            "dense": candidate(2, 900, [4.0, 8.0, 6.0], reference="dense"),
            "slim": candidate(2, 300, [4.0, 4.0, 4.0], reference="dense"),
        },
        speedups={"slim": Speedup(ratio=1.5, low=1.0, high=2.0)},
    )


@pytest.fixture
def gpu_record(record):
    sample = GpuSample(
        phase="measured",
        time_s=1.0,
        sm_clock_mhz=1980,
        memory_clock_mhz=None,
        power_w=301.5,
        temperature_c=None,
        throttled_by=("power limit",),
    )
    copies = Transfers(latency_from_samples([0.5]), latency_from_samples([0.25]))
    dense = candidate(8, None, [4.0], runtime="tensorrt", reference="dense", transfers=copies)
    on_gpu = {"device": Device(is_gpu=True, name="NVIDIA Test"), "gpu": GpuLog(samples=(sample,)), "speedups": {}}
    return record.model_copy(update={**on_gpu, "candidates": {"dense": dense}})


def test_the_first_line_of_a_table_names_the_cpu(record):
    # percentiles of 4 6 8: place 0.9 x 2 = 1.8 -> 6 + 0.8 x 2 = 7.6; place 1.98 -> 6 + 0.98 x 2 = 7.96
    # images: 2 / 6 ms = 333.3 a second, 2 / 4 ms = 500
    title = "| name | runtime | precision | batch | latency_ms, median | p90 | p99 | images_per_s "
    assert table_from_record(record) == (
        "measured on a CPU (Some CPU, 1 thread), not a GPU\n"
        "\n"
        "batch 2 (image 2x3x8x8), 3 rounds in alternating order after 1 of warm-up, "
        "2026-01-02, commit abc-dirty\n"
        "\n"
        f"{title}| speedup (95 % interval) | mac_reduction |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| dense | onnxruntime | fp32 | 2 | 6.000 | 7.600 | 7.960 | 333.33 | 1.00 | 1.00 |\n"
        "| slim | onnxruntime | fp32 | 2 | 4.000 | 4.000 | 4.000 | 500.00 | 1.50 (1.00 to 2.00) | 3.00 |\n"
    )


def test_table_of_a_gpu_has_its_copies_its_clocks_and_a_warning(gpu_record):
    lines = table_from_record(gpu_record).splitlines()
    assert lines[0] == "measured on NVIDIA Test"
    assert lines[4] == "SM clock 1980 to 1980 MHz, power 302 to 302 W"
    assert lines[6].startswith("GPU: clocks not steady, got throttling by power limit; ")
    assert " p99 | host to device | device to host | images_per_s |" in lines[8]
    assert lines[10] == "| dense | tensorrt | fp32 | 8 | 4.000 | 4.000 | 4.000 | 0.500 | 0.250 | 2000.00 | 1.00 |"


def test_rows_have_none_for_unknown_values(record):
    unknown = record.candidates["slim"].model_copy(update={"macs": None})
    rows = rows_from_record(record.model_copy(update={"candidates": record.candidates | {"slim": unknown}}))
    assert [row["mac_reduction"] for row in rows] == [1.0, None]
    assert [row["speedup"] for row in rows] == [1.0, 1.5]
    assert {row[key] for row in rows for key in ("host_to_device_ms", "device_to_host_ms")} == {None}


def test_macs_are_compared_within_a_batch(record):
    more = {
        "dense-8": candidate(8, 3600, [24.0], reference="dense-8"),
        "slim-8": candidate(8, 1800, [8.0], reference="dense-8"),
    }
    both = record.model_copy(update={"candidates": {**record.candidates, **more}})
    assert [row["mac_reduction"] for row in rows_from_record(both)] == [1, 3, 1, 2]
    assert "batch 2 (image 2x3x8x8), batch 8 (image 8x3x8x8), 3 rounds" in table_from_record(both)


def test_saved_and_loaded_is_the_same(record, gpu_record, tmp_path):
    for one in (record, gpu_record):
        save_record(one, tmp_path / "deep" / "record.json")
        assert load_record(tmp_path / "deep" / "record.json") == one
    assert os.listdir(tmp_path / "deep") == ["record.json"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": 2}, "version: Input should be 1"),
        ({"extra": 1}, "extra: Extra"),
        ({"created": "x"}, "created: "),
        ({"candidates": {}}, "file: Value error, no candidates"),
        ({"speedups": {"fast": {"ratio": 1, "low": 1, "high": 1}}}, "file: Value error, unknown candidate 'fast'"),
        ({"speedups": {"slim": {"ratio": float("nan"), "low": 1, "high": 1}}}, "speedups.slim.ratio: "),
        ({"speedups": {"slim": {"ratio": 1, "low": 1, "high": float("inf")}}}, "speedups.slim.high: "),
    ],
)
def test_another_version_or_a_malformed_record_is_refused(record, tmp_path, change, fault):
    (tmp_path / "r.json").write_text(json.dumps(record.model_dump(mode="json") | change))
    with pytest.raises(
        ValueError, match=rf"r\.json: not a readable Record, got {fault}.*; expected a record of"
    ) as caught:
        load_record(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"reference": "none"}, "file: Value error, unknown candidate 'none'"),
        ({"batch": 0}, "candidates.slim.batch: "),
        ({"latency": None}, "candidates.slim.latency: "),
    ],
)
def test_a_record_of_an_impossible_candidate_is_refused(record, tmp_path, change, fault):
    content = record.model_dump(mode="json")
    content["candidates"]["slim"].update(change)
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"r\.json: not a readable Record, got {fault}"):
        load_record(tmp_path / "r.json")


def test_a_record_without_time_is_refused(record, tmp_path):
    content = record.model_dump(mode="json")
    content["candidates"]["slim"]["latency"]["median_ms"] = 0
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="no time of 'slim'; expected a record of version 1"):
        load_record(tmp_path / "r.json")


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"r\.json: not a readable Record, got file: Invalid JSON"):
        load_record(tmp_path / "r.json")


def test_a_record_of_real_sessions_holds_its_conditions(onnx_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runners = {path.stem: OnnxRunner(path) for path in onnx_files}
    inputs = random_inputs(runners["dense"].inputs)
    record = record_from_measurement(
        measure(runners, inputs, warmup=1, rounds=5), runners, inputs, macs={"dense": 8}, config={"a": [1]}
    )
    assert not record.is_gpu
    assert record.device.num_threads == 1
    assert record.versions["torch"] == torch.__version__.partition("+")[0]
    assert record.versions["tensorrt-rtx"]
    assert record.conditions == Conditions(warmup=1, rounds=5, config={"a": [1]})
    assert record.candidates["slim"].input_shapes == {"image": (1, 3, 16, 16)}
    assert [(one.batch, one.reference) for one in record.candidates.values()] == [(1, "dense"), (1, "dense")]
    assert record.gpu is None
    assert [len(candidate.latency.samples_ms) for candidate in record.candidates.values()] == [5, 5]
    assert [candidate.macs for candidate in record.candidates.values()] == [8, None]
    save_record(record, "r.json")
    assert load_record("r.json") == record


def test_the_commit_is_that_of_the_code_wherever_the_command_runs(tmp_path, monkeypatch):
    root = Path(__file__).parents[3]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    monkeypatch.chdir(tmp_path)
    expected = head.stdout.strip() if head.returncode == 0 else "None"
    assert str(git_commit()).removesuffix("-dirty") == expected


def test_gpu_facts_are_read_and_unknown_ones_left_out():
    device = _gpu_from_facts("NVIDIA Test", "570.10, 1980, 2619, [N/A], 68.25")
    assert device == Device(
        is_gpu=True, name="NVIDIA Test", driver="570.10", sm_clock_mhz=1980, memory_clock_mhz=2619, power_draw_w=68.25
    )
    assert _gpu_from_facts("NVIDIA Test", None) == Device(is_gpu=True, name="NVIDIA Test")
