import json

import pytest
from typer.testing import CliRunner

from deploy import load_record, read_engine_info
from deploy.cli import app


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_bench_prints_the_records_table_and_what_to_do_next(onnx_files, tmp_path):
    result = invoke("bench", *onnx_files, "--rounds", 4, "--warmup", 1, "--out", tmp_path / "r.json")
    record = load_record(tmp_path / "r.json")
    assert result.exit_code == 0
    assert record.reference == str(onnx_files[0])
    assert record.conditions.rounds == 4
    assert result.stdout.startswith("measured on a CPU (")
    assert result.stdout.endswith(f"wrote {tmp_path / 'r.json'}\nnext: espalier deploy build {onnx_files[1]}\n")


def test_json_leaves_figures_alone_on_standard_output(onnx_files, tmp_path):
    result = invoke("bench", *onnx_files, "--rounds", 4, "--json", "--out", tmp_path / "r.json")
    figures = json.loads(result.stdout)
    assert [row["name"] for row in figures["rows"]] == [str(path) for path in onnx_files]
    assert figures["is_gpu"] is False
    assert "next: " in result.stderr


def test_the_record_has_a_name_of_its_own_by_default(onnx_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("bench", onnx_files[0], "--rounds", 1)
    assert [path.name.startswith("latency-20") for path in tmp_path.iterdir()] == [True]


def test_a_file_twice_is_refused(onnx_files):
    with pytest.raises(ValueError, match=r"bench: a file twice, got .*; expected each file once"):
        invoke("bench", onnx_files[0], onnx_files[0])


def test_files_with_other_inputs_are_refused(onnx_files, one_node_file):
    with pytest.raises(ValueError, match=r"one_node.onnx: wrong input names, got \['image'\]; expected \['x'\]"):
        invoke("bench", onnx_files[0], one_node_file("Relu"))


def test_build_writes_an_engine_and_what_to_do_next(onnx_files, tmp_path):
    out = tmp_path / "net.engine"
    result = invoke("build", onnx_files[0], "--compute-capability", "8.6", "--compute-capability", "8.9", "--out", out)
    assert read_engine_info(out).compute_capabilities == ("8.6", "8.9")
    assert result.stdout == f"wrote {out}\nnext, on a GPU: espalier deploy bench {out}\n"


def test_build_puts_the_engine_beside_the_file_by_default(onnx_files):
    invoke("build", onnx_files[1])
    assert read_engine_info(onnx_files[1].with_suffix(".engine")).compute_capabilities == ()
