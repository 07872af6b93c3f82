import csv
import io
import json

import pytest

from deploy import load_record
from deploy.comparing import compared_rows


def samples(median):
    return [median * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02)]


@pytest.fixture(scope="module")
def measured(invoke, onnx_files, tmp_path_factory):
    """A record of two networks, as JSON."""
    path = tmp_path_factory.mktemp("records") / "r.json"
    invoke("deploy", "bench", *onnx_files, "--rounds", 5, "--warmup", 0, "--out", path)
    return path.read_text()


@pytest.fixture
def record(measured, tmp_path):
    """Write that record with other times and names: {file name: median in ms}."""

    def write(name, times, folder="models", shape=None):
        data = json.loads(measured)
        template = next(iter(data["candidates"].values()))
        data["candidates"] = {
            f"/{folder}/{file}": {
                **template,
                "reference": f"/{folder}/{next(iter(times))}",
                "input_shapes": shape or template["input_shapes"],
                "latency": {**template["latency"], "samples_ms": samples(ms), "median_ms": ms},
            }
            for file, ms in times.items()
        }
        data["speedups"] = {}
        (tmp_path / name).write_text(json.dumps(data))
        return tmp_path / name

    return write


def test_records_of_two_machines_are_matched_by_the_names_of_their_files(record):
    one = load_record(record("a.json", {"dense.onnx": 10.0, "slim.onnx": 4.0, "other.onnx": 1.0}))
    other = load_record(record("b.json", {"slim.onnx": 4.01, "dense.onnx": 5.0}, folder="elsewhere"))
    rows = compared_rows(one, other)
    assert [(row["name"], row["first_ms"], row["second_ms"]) for row in rows] == [
        ("dense.onnx", 10.0, 5.0),
        ("slim.onnx", 4.0, 4.01),
    ]
    assert [row["verdict"] for row in rows] == ["B is faster", "no difference is shown"]
    assert rows[0]["ratio"] == pytest.approx(2.0)
    assert 1.9 < rows[0]["low"] < 2.0 < rows[0]["high"] < 2.1  # 0.98 / 1.02 to 1.02 / 0.98 of it at most


def test_deployed_folders_are_told_apart_by_their_names(record):
    times = {"dense.deploy/model.onnx": 3.0, "slim.deploy/model.onnx": 1.0, "slim.deploy/model.engine": 0.5}
    rows = compared_rows(*(load_record(record(name, times)) for name in ("a.json", "b.json")))
    assert [row["name"] for row in rows] == ["dense.deploy", "slim.deploy", "slim.deploy/model.engine"]


def test_a_folder_and_the_file_in_it_are_one_network(record):
    one = load_record(record("a.json", {"net.deploy": 4.0}))
    other = load_record(record("b.json", {"net.deploy/model.onnx": 2.0}, folder="elsewhere"))
    assert [(row["name"], row["ratio"]) for row in compared_rows(one, other)] == [("net.deploy", 2.0)]


def test_the_command_prints_both_devices_and_a_row_per_network(invoke, record):
    paths = record("a.json", {"net.onnx": 4.0, "first.onnx": 1.0}), record("b.json", {"net.onnx": 8.0})
    out = invoke("deploy", "bench", "compare", *paths).stdout
    assert out.startswith("A: measured on a CPU (")
    assert "\nB: measured on a CPU (" in out
    assert "in one record only: first.onnx" in out
    assert "| net.onnx | 4.000 | 8.000 | 0.50 (" in out
    assert "A is faster |" in out
    assert json.loads(invoke("deploy", "bench", "compare", *paths, "--json").stdout)[0]["verdict"] == "A is faster"


def test_the_comparison_is_printed_as_csv_and_for_latex(invoke, record):
    paths = record("a.json", {"my_net.onnx": 4.0}), record("b.json", {"my_net.onnx": 8.0})
    (row,) = csv.DictReader(io.StringIO(invoke("deploy", "bench", "compare", *paths, "--csv").stdout))
    assert (row["name"], row["first_ms"], row["ratio"]) == ("my_net.onnx", "4.0", "0.5")
    lines = invoke("deploy", "bench", "compare", *paths, "--latex").stdout.splitlines()
    assert lines[0].startswith("% A: measured on a CPU (")
    assert lines[2:5] == [
        r"\begin{tabular}{lrrrl}",
        r"\toprule",
        r"name & A, ms & B, ms & A / B (95 \% interval) & verdict \\",
    ]
    assert lines[6].startswith(r"my\_net.onnx & 4.000 & 8.000 & 0.50 (")


@pytest.mark.parametrize(
    ("times", "shape", "message"),
    [
        ({"y.onnx": 1.0}, None, r"records: no network is in both, got x\.onnx and y\.onnx; expected"),
        (
            {"x.onnx": 1.0},
            {"image": [1, 3, 8, 8]},
            r"x\.onnx: other inputs in the second record, got {'image': \(1, 3, 8",
        ),
    ],
)
def test_records_that_cannot_be_compared_are_refused(invoke, record, times, shape, message):
    paths = record("a.json", {"x.onnx": 1.0}), record("b.json", times, shape=shape)
    with pytest.raises(ValueError, match=message):
        invoke("deploy", "bench", "compare", *paths)


def test_one_record_is_no_comparison(invoke, record):
    with pytest.raises(ValueError, match=r"bench compare: not two records, got 1; expected A\.json B\.json"):
        invoke("deploy", "bench", "compare", record("a.json", {"x.onnx": 1.0}))
