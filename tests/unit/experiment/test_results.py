import json
import os
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from command.errors import RequestError
from experiment.report import write_report
from experiment.results import read_results, set_aside


@pytest.fixture
def refused(command, tmp_path):
    """Write a `results.json`, which `espalier report` must refuse; return its one line after the file's name."""

    def run(content):
        (tmp_path / "results.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        code, out, err = command("report", tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert not (tmp_path / "report.html").exists()
        return err.removeprefix(f"espalier: {tmp_path}/results.json: ")

    return run


def changed(results, place, value):
    """Return the results with another value at a place such as `rows.1.map`."""
    *parents, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    inner = results
    for part in parents:
        inner = inner[part]
    inner[last] = value
    return results


def png(width, height, data=b""):
    """Return a PNG that states a size, whatever its data."""
    parts = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": data, b"IEND": b""}
    chunks = (struct.pack(">I", len(p)) + t + p + struct.pack(">I", zlib.crc32(t + p)) for t, p in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_results_are_read_as_they_were_written(pictured, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(pictured))
    read = read_results(tmp_path / "results.json")
    assert read == pictured  # without what earlier versions did not keep
    assert list(read["rows"][0]) == list(pictured["rows"][0])


def test_keys_of_a_later_version_are_kept(results, tmp_path):
    results["rows"][0]["energy_j"] = -1.5
    (tmp_path / "results.json").write_text(json.dumps(results | {"num_threads": 1}))
    read = read_results(tmp_path / "results.json")
    assert (read["num_threads"], read["rows"][0]["energy_j"]) == (1, -1.5)


def test_a_control_s_row_is_read(results, tmp_path):
    control = results["rows"][0] | {"name": "dense_longer", "ordering": "dense_longer"}
    (tmp_path / "results.json").write_text(json.dumps(results | {"rows": [*results["rows"], control]}))
    assert read_results(tmp_path / "results.json")["rows"][-1] == control


def test_a_control_alone_is_no_reference(refused, results):
    assert "no dense row" in refused(changed(results, "rows.0.ordering", "dense_longer"))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", '{"a": "é"}'.encode("latin-1"), b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "cut short", "not utf-8", "deeply nested", "huge number"],
)
def test_a_file_that_is_no_json_is_refused(refused, content):
    assert refused(content).startswith("not a readable Results, got file: ")


def test_another_json_file_is_refused(refused):
    assert refused([]).startswith("not a readable Results, got file: Input should be an object")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("version", 2),
        ("config", [1]),
        ("created", None),
        ("dataset.classes", "abc"),
        ("latency.rounds", "5"),
        ("rows", []),
        ("rows.1", {}),
        ("rows.1.map", "0.5"),
        ("rows.1.map", float("nan")),
        ("rows.1.map50", 1.5),
        ("rows.1.latency_ms", float("inf")),
        ("rows.1.latency_ms", 1e308),
        ("rows.1.speedup", 0),
        ("rows.1.macs", 0),
        ("rows.1.macs", 10**400),
        ("rows.1.ordering", "other"),
        ("rows.1.budget", "[red]"),
        ("rows.1.train_epochs", {"a": 0.5}),
        ("rows.1.train_lr", {"a": 0.0}),
        ("rows.1.train_lr", {"a": "0.1"}),
        ("rows.1.more", [1]),
        ("rows.1.map_small", "0.5"),
        ("rows.1.train_macs", -1),
        ("rows.1.train_macs", 1e15),
        ("draws", {"dense": [0.5]}),
        ("widths", {"dense": {"conv1": -1}}),
        ("weights", {"dense": {"conv1": {"widest": 0.0, "counts": [1], "std": 0.1, "num": 1, "num_zeros": 0}}}),
        ("weights", {"dense": {"conv1": {"widest": 1.0, "counts": [], "std": 0.1, "num": 1, "num_zeros": 0}}}),
        ("rows.0.stages", "train_classifier"),
        ("latency.record", "../outside.json"),
        ("draws", {"dense": [0.5, 0.5], "other": [0.5, 0.5, 0.5]}),
        ("draws", {"dense": [0.5, 1.5]}),
        ("per_class", {"dense": {"RBC": 2}}),
        ("latency.throttled_rounds", "0"),
        ("rows.1.model", "//example.org/model"),
        ("rows.1.onnx", "../../model.onnx"),
        ("rows.0.prune_ratio", 0.5),
        ("pictures.0.size_hw", ["a", 64]),
        ("pictures.0.truth.0.box_xyxy", [1, 2]),
        ("pictures.0.truth.0.label", 3),
        ("pictures.0.truth.0.label", -1),
        ("pictures.0.detections.dense.0.score", "x"),
    ],
)
def test_a_wrong_value_is_refused_by_its_place(refused, pictured, place, value):
    line = refused(changed(pictured, place, value))
    named = line.removeprefix("not a readable Results, got ").partition(": ")[0]
    assert named in {"rows", "pictures"} or named.startswith(place)
    assert place.startswith(named) or named.startswith(place)


def test_a_missing_key_is_named(refused, results):
    del results["rows"][2]["macs"]
    line = "not a readable Results, got rows.2.macs: Field required; expected a finished run, made by espalier run\n"
    assert refused(results) == line


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "//host/a.png", "https://example.org/a.png", "a/../../a.png", "a" * 300]
)
def test_a_picture_s_path_that_no_run_writes_is_refused(refused, pictured, path):
    assert "pictures.0.file: " in refused(changed(pictured, "pictures.0.file", path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"root:x:0:0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n(%pipe%touch ran) run\n",
        png(64, 48),
        png(50_000, 50_000),
        png(1, 1, zlib.compress(bytes(4))),
    ],
    ids=["empty", "text", "program", "cut short", "too many pixels", "another size"],
)
def test_a_picture_s_file_that_is_not_the_picture_is_refused(refused, pictured, tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert refused(pictured).startswith(f"pictures.0.file: {tmp_path}/a.png: ")


def test_a_pipe_is_not_waited_for(refused, pictured, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    line = refused(changed(pictured, "pictures.0.file", "pipe"))
    assert line == f"pictures.0.file: {tmp_path}/pipe: not a file; expected an image\n"


def test_nothing_of_a_picture_but_its_pixels_is_in_the_page(pictured, tmp_path):
    plain = write_report(pictured, tmp_path).read_text()
    about = PngInfo()
    about.add_text("Comment", "where it was taken")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png", pnginfo=about)
    assert write_report(pictured, tmp_path).read_text() == plain


def test_what_is_set_aside_is_of_one_run(tmp_path):
    for name, text in (("results.json", "A"), ("differences.csv", "A")):
        (tmp_path / name).write_text(text)
    set_aside(tmp_path)
    (tmp_path / "results.json").write_text("B")
    set_aside(tmp_path)
    assert [(path.name, path.read_text()) for path in (tmp_path / "earlier").iterdir()] == [("results.json", "B")]


def test_a_folder_in_the_place_of_a_moved_report_is_refused(tmp_path):
    (tmp_path / "earlier/results.json").mkdir(parents=True)
    (tmp_path / "results.json").write_text("A")
    with pytest.raises(RequestError, match=r"earlier/results.json: a folder where a report was moved to"):
        set_aside(tmp_path)
    assert (tmp_path / "results.json").read_text() == "A"
