import csv
import hashlib
import io
import json
import re
import shlex
import shutil

import pytest
import torch

from deploy import load_record, onnx_from_module, read_engine_info


def test_bench_prints_the_records_table_and_what_to_do_next(invoke, onnx_files, tmp_path):
    result = invoke("deploy", "bench", *onnx_files, "--rounds", 4, "--warmup", 1, "--out", tmp_path / "r.json")
    record = load_record(tmp_path / "r.json")
    assert result.exit_code == 0
    assert record.reference == str(onnx_files[0])
    assert record.conditions.rounds == 4
    assert result.stdout.startswith("measured on a CPU (")
    assert result.stderr.endswith(f"wrote {tmp_path / 'r.json'}\nnext: espalier deploy build {onnx_files[1]}\n")


@pytest.fixture
def next_after_bench(invoke, tmp_path):
    """Measure files and return the words of the command that is printed."""

    def run(*arguments):
        result = invoke("deploy", "bench", *arguments, "--rounds", 2, "--out", tmp_path / "r.json", "--force")
        return shlex.split(result.stderr.splitlines()[-1].removeprefix("next: espalier "))

    return run


def test_after_bench_comes_the_step_that_a_file_lacks(next_after_bench, onnx_files, tmp_path):
    copies = [shutil.copy(path, tmp_path / f"my {path.name}") for path in onnx_files]
    assert next_after_bench(*copies) == ["deploy", "build", str(copies[1])]
    copies[1].with_suffix(".engine").touch()
    assert next_after_bench(*copies) == ["deploy", "build", str(copies[0])]
    copies[0].with_suffix(".engine").touch()
    again = ["--runtime", "onnxruntime", "--threads", "1", "--rounds", "20"]
    assert next_after_bench(*copies, "--runtime", "onnxruntime") == ["deploy", "bench", *map(str, copies), *again]


def test_json_prints_only_figures_on_standard_output(invoke, onnx_files, tmp_path):
    result = invoke("deploy", "bench", *onnx_files, "--rounds", 4, "--json", "--out", tmp_path / "r.json")
    figures = json.loads(result.stdout)
    assert [row["name"] for row in figures["rows"]] == [str(path) for path in onnx_files]
    assert figures["is_gpu"] is False
    assert "next: " in result.stderr


def test_csv_prints_a_row_per_file(invoke, onnx_files, tmp_path):
    result = invoke("deploy", "bench", *onnx_files, "--rounds", 4, "--csv", "--out", tmp_path / "r.json")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["name"] for row in rows] == [str(path) for path in onnx_files]
    expected = load_record(tmp_path / "r.json").candidates[str(onnx_files[1])].latency.median_ms
    assert float(rows[1]["latency_ms"]) == expected


def test_latex_prints_the_table_with_the_device_as_a_comment(invoke, onnx_files, tmp_path):
    result = invoke("deploy", "bench", *onnx_files, "--rounds", 4, "--latex", "--out", tmp_path / "r.json")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("% measured on a CPU (")
    assert lines[1].startswith("% batch 1 (image 1x3x16x16), 4 rounds")
    assert lines[2:4] == [r"\begin{tabular}{lllrrrrrr}", r"\toprule"]
    assert lines[4].startswith(r"name & runtime & precision & batch & latency\_ms, median & p90 ")
    median_ms = load_record(tmp_path / "r.json").candidates[str(onnx_files[1])].latency.median_ms
    assert f" & onnxruntime & fp32 & 1 & {median_ms:.3f} & " in lines[7]
    assert lines[-1] == r"\end{tabular}"


def test_folders_and_files_are_measured_together_by_the_names_given(invoke, deployed, model, tmp_path):
    other = shutil.copy(deployed / "model.onnx", tmp_path / "other.onnx")
    options = ["--rounds", 2, "--warmup", 0, "--json", "--out", tmp_path / "r.json"]
    result = invoke("deploy", "bench", f"{deployed}/", other, model, *options)
    rows = json.loads(result.stdout)["rows"]
    assert [(row["name"], row["runtime"]) for row in rows] == [
        (f"{deployed} (onnxruntime)", "onnxruntime"),
        (f"{other} (onnxruntime)", "onnxruntime"),
        (f"{model} (torch)", "torch"),
    ]
    assert rows[0]["file_sha256"] == rows[1]["file_sha256"]
    assert [row["batch"] for row in rows] == [2, 2, 1]
    assert load_record(tmp_path / "r.json").conditions.config["models"] == [str(deployed), str(other), str(model)]


def test_a_folder_alone_has_its_own_name_and_is_built_next(invoke, deployed, tmp_path):
    result = invoke("deploy", "bench", deployed, "--rounds", 1, "--warmup", 0, "--out", tmp_path / "r.json")
    assert list(load_record(tmp_path / "r.json").candidates) == [str(deployed)]
    assert f"next: espalier deploy build {deployed}/model.onnx\n" in result.stderr


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "no such file; expected a folder that espalier deploy export wrote, an ONNX file, an engine or a model"),
        ({}, "/model.onnx: no such file; expected a folder that espalier deploy export wrote"),
        ({"deploy.json": b"{}"}, "/model.onnx: no such file; expected a folder"),
        ({"model.onnx": b"junk"}, "/model.onnx: not an ONNX file, got bytes that do not parse"),
        (b"junk", "not an ONNX file, got bytes that do not parse; expected an ONNX file"),
    ],
)
def test_what_is_no_network_is_refused_before_anything_runs(command, onnx_files, tmp_path, content, fault):
    path = tmp_path / "net"
    if isinstance(content, dict):
        path.mkdir()
        for name, data in content.items():
            (path / name).write_bytes(data)
    elif content:
        path.write_bytes(content)
    code, out, err = command("deploy", "bench", onnx_files[0], path, "--out", tmp_path / "r.json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(path) in err
    assert fault in err
    assert not (tmp_path / "r.json").exists()


def test_a_folder_and_the_file_in_it_are_one_file(invoke, deployed):
    with pytest.raises(ValueError, match=r"bench: a file is given twice, got .*model\.onnx .*model\.onnx; expected"):
        invoke("deploy", "bench", deployed, deployed / "model.onnx")


def test_the_record_has_a_name_of_its_own_by_default(invoke, onnx_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("deploy", "bench", onnx_files[0], "--rounds", 1)
    assert [path.name.startswith("latency-20") for path in tmp_path.iterdir()] == [True]


def test_a_file_twice_is_refused(invoke, onnx_files):
    with pytest.raises(ValueError, match=r"bench: a file is given twice, got .*; expected each file once"):
        invoke("deploy", "bench", onnx_files[0], onnx_files[0])


def test_files_with_other_inputs_are_refused(invoke, onnx_files, one_node_file):
    message = (
        r"one_node.onnx: inputs differ from the first file's, got {'x': \(\)}; expected {'image': \(3, 16, 16\)}, any"
    )
    with pytest.raises(ValueError, match=message):
        invoke("deploy", "bench", onnx_files[0], one_node_file("Relu"))


def test_every_file_is_measured_in_every_runtime(invoke, onnx_files, tmp_path):
    pytest.importorskip("openvino")
    runtimes = ["--runtime", "onnxruntime", "--runtime", "openvino"]
    result = invoke("deploy", "bench", *onnx_files, *runtimes, "--rounds", 2, "--json", "--out", tmp_path / "r.json")
    rows = json.loads(result.stdout)["rows"]
    dense, slim = onnx_files
    assert [row["name"] for row in rows] == [
        f"{dense} (onnxruntime)",
        f"{dense} (openvino)",
        f"{slim} (onnxruntime)",
        f"{slim} (openvino)",
    ]
    assert [row["runtime"] for row in rows] == ["onnxruntime", "openvino"] * 2
    assert rows[1]["speedup_low"] is not None
    assert load_record(tmp_path / "r.json").conditions.config["runtimes"] == ["onnxruntime", "openvino"]


def test_files_are_compared_with_the_first_of_their_own_batch(invoke, conv_net, tmp_path):
    files = [tmp_path / f"{name}.onnx" for name in ("one", "eight", "eight_again")]
    for path, batch in zip(files, (1, 8, 8), strict=True):
        onnx_from_module(conv_net, {"image": torch.rand(batch, 3, 16, 16)}, path, ["scores"])
    result = invoke("deploy", "bench", *files, "--rounds", 2, "--json", "--out", tmp_path / "r.json")
    rows = json.loads(result.stdout)["rows"]
    assert [row["batch"] for row in rows] == [1, 8, 8]
    assert [row["speedup_low"] is None for row in rows] == [
        True,
        True,
        False,
    ]  # the first of its batch is the reference
    assert rows[1]["images_per_s"] == pytest.approx(8000 / rows[1]["latency_ms"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--runtime", "onnxruntim"], "runtime: unknown, got 'onnxruntim'; expected onnxruntime or onnxruntime_cuda"),
        (["--runtime", "tensorrt"], "tensorrt: cannot run any of the files, got .*; build an engine first: espalier"),
        (["--runtime", "openvino", "--runtime", "openvino"], "bench: a runtime is given twice, got openvino openvino"),
    ],
)
def test_runtimes_that_fit_no_file_are_refused(invoke, onnx_files, options, message):
    with pytest.raises(ValueError, match=message):
        invoke("deploy", "bench", onnx_files[0], *options)


def test_build_writes_an_engine_and_what_to_do_next(invoke, onnx_files, tmp_path):
    out = tmp_path / "net.engine"
    result = invoke(
        "deploy", "build", onnx_files[0], "--compute-capability", "8.6", "--compute-capability", "8.9", "--out", out
    )
    assert read_engine_info(out).compute_capabilities == ("8.6", "8.9")
    wrote, following = result.stdout.splitlines()
    assert re.fullmatch(rf"wrote {out}: fp32, \d+\.\d MiB, built in \d+\.\d s", wrote)
    assert following == f"next, on a GPU: espalier deploy bench {out}"


def test_repeated_builds_are_engines_of_their_own(invoke, onnx_files, tmp_path):
    options = ["--repeat", 2, "--optimization-level", 1, "--workspace-mib", 64, "--out", tmp_path / "net.engine"]
    result = invoke("deploy", "build", onnx_files[1], "--compute-capability", "8.6", *options)
    engines = [tmp_path / "net-1.engine", tmp_path / "net-2.engine"]
    infos = [read_engine_info(engine) for engine in engines]
    assert [(info.optimization_level, info.workspace_mib) for info in infos] == [(1, 64)] * 2
    assert result.stdout.endswith(f"next, on a GPU: espalier deploy bench {engines[0]} {engines[1]}\n")
    with pytest.raises(ValueError, match=r"net-1\.engine: exists already; give another --out, or --force"):
        invoke("deploy", "build", onnx_files[1], *options)


def test_build_puts_the_engine_beside_the_file_by_default(invoke, onnx_files, tmp_path):
    file = tmp_path / "my net.onnx"
    shutil.copy(onnx_files[1], file)
    result = invoke("deploy", "build", file)
    assert read_engine_info(file.with_suffix(".engine")).compute_capabilities == ()
    assert result.stdout.endswith(f"next, on a GPU: espalier deploy bench '{file.with_suffix('.engine')}'\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "net.plan"], r"--out net\.plan: not an engine file, got \.plan; expected \.engine"),
        (["--out", "net"], r"--out net: not an engine file, got no suffix; expected \.engine"),
        (
            ["--repeat", 2, "--timing-cache", "c"],
            r"--repeat 2: all engines would get the first one's kernels, got --timing-cache c",
        ),
    ],
)
def test_invalid_build_options_are_refused(invoke, onnx_files, options, message):
    with pytest.raises(ValueError, match=message):
        invoke("deploy", "build", onnx_files[0], *options)


def test_a_record_has_the_hashes_of_the_files(invoke, onnx_files, tmp_path):
    options = ["--rounds", 1, "--warmup", 0, "--json", "--out", tmp_path / "record.json"]
    rows = json.loads(invoke("deploy", "bench", *onnx_files, *options).stdout)["rows"]
    assert [row["file_sha256"] for row in rows] == [
        hashlib.sha256(file.read_bytes()).hexdigest() for file in onnx_files
    ]


@pytest.mark.parametrize(
    ("name", "option", "limit"),
    [
        ("bench", "--threads", 1024),
        ("bench", "--rounds", 1_000_000),
        ("bench", "--warmup", 1_000_000),
        ("explain", "--threads", 1024),
        ("explain", "--rounds", 1_000_000),
        ("build", "--workspace-mib", 1_048_576),
        ("build", "--repeat", 100),
        ("eval", "--limit", 1_000_000_000),
    ],
)
@pytest.mark.parametrize("number", [10**12, 10**30])
def test_absurd_numbers_are_refused(command, onnx_files, name, option, limit, number):
    arguments = {"build": onnx_files[:1], "bench": onnx_files, "explain": onnx_files, "eval": (*onnx_files, ".")}
    code, out, err = command("deploy", name, *arguments[name], option, number)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"Invalid value for '{option}': Input should be less than or equal to {limit}" in err


@pytest.fixture
def free_file(tmp_path):
    """A foreign file whose batch, height and width are free, and whose input is called `pixel_values`."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1))
    free = {0: "batch", 2: "height", 3: "width"}
    names = {"input_names": ["pixel_values"], "dynamic_axes": {"pixel_values": free}}
    torch.onnx.export(net, (torch.rand(1, 3, 8, 8),), tmp_path / "free.onnx", dynamo=False, **names)
    return tmp_path / "free.onnx"


def test_a_file_with_free_sizes_is_measured_at_the_shape_that_is_given(invoke, free_file, tmp_path):
    shape = ["--shape", "pixel_values=2,3,16,24"]
    invoke("deploy", "bench", free_file, *shape, "--rounds", 2, "--out", tmp_path / "r.json")
    (candidate,) = load_record(tmp_path / "r.json").candidates.values()
    assert candidate.input_shapes == {"pixel_values": (2, 3, 16, 24)}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([], r"tensor 'pixel_values': has a free dimension, .*--shape pixel_values=1,3,1,1"),
        (["image=1,3,8,8"], r"--shape image: no such input; expected one of pixel_values"),
        (["pixel_values=1,4,8,8"], r"--shape pixel_values: does not fit, got \(1, 4, 8, 8\); expected \(None, 3"),
        (["pixel_values=1,3,8"], r"--shape pixel_values: does not fit, got \(1, 3, 8\)"),
        (["pixel_values=1,3,8,0"], r"tensor 'pixel_values': impossible shape"),
        (["pixel_values"], r"--shape pixel_values: not a shape; expected NAME=SIZE,SIZE"),
        (["pixel_values=1,x"], r"--shape pixel_values=1,x: not a shape"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(invoke, free_file, shape, message):
    with pytest.raises(ValueError, match=message):
        invoke("deploy", "bench", free_file, *[part for one in shape for part in ("--shape", one)])
