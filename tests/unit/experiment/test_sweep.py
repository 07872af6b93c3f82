import json
import re

import pytest
import torch
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from deploy import load_record
from experiment.cli import app
from experiment.sweep_plot import sweep_plot
from prune import cost_of, prune_model

TINY = """
backbone = "resnet18"
num_classes = 10
image_size = 32
batch = 2
prune_ratios = (0.0, 0.5)
round_to = (1, 4)
latency = dict(warmup=1, rounds=10, num_threads=1)
"""
HALF = "prune_ratio 0.5, round_to 1"
SETTINGS = ["dense", *(f"prune_ratio {ratio}, round_to {to}" for to in (1, 4) for ratio in ("0", "0.5"))]


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path / "tiny.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep's folder, and what the command printed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.py").write_text(TINY)
    return folder / "out", invoke("deploy", "sweep", folder / "tiny.py", "--out", folder / "out")


@pytest.fixture
def figures(finished):
    return json.loads((finished[0] / "sweep.json").read_text())


@pytest.fixture
def refusal(command):
    """Run a command that is refused; return its one line on standard error."""

    def run(*arguments):
        code, _, err = command(*arguments)
        assert code == 2
        return err.splitlines()[-1]

    return run


def test_every_ratio_and_rounding_has_its_macs_and_latency(figures):
    image = torch.zeros(1, 3, 32, 32)
    assert [row["name"] for row in figures["rows"]] == SETTINGS
    dense = build_classifier(Architecture("resnet18", 10))
    half = prune_model(dense, (image,), 0.5, round_to=4).model
    assert figures["rows"][0]["macs"] == cost_of(dense, (image,)).macs
    assert figures["rows"][4]["macs"] == cost_of(half, (image,)).macs
    assert all(row["latency_ms"] > 0 for row in figures["rows"])
    assert figures["rows"][4]["mac_reduction"] == figures["rows"][0]["macs"] / figures["rows"][4]["macs"]


def test_equal_widths_are_measured_once(finished, figures):
    # half of 64, 128, 256 and 512 channels is a multiple of 4 anyhow
    assert [row["measured_as"] for row in figures["rows"]] == ["dense", "dense", HALF, "dense", HALF]
    record = load_record(finished[0] / "latency.json")
    assert list(record.candidates) == ["dense", HALF]
    assert {candidate.batch for candidate in record.candidates.values()} == {2}
    assert record.candidates["dense"].macs == 2 * figures["rows"][0]["macs"]  # of the batch
    assert figures["rows"][2]["latency_ms"] == figures["rows"][4]["latency_ms"]
    assert (figures["rows"][1]["speedup"], figures["rows"][1]["speedup_low"]) == (1.0, None)


def test_the_command_prints_the_device_and_the_written_files(finished):
    folder, result = finished
    assert "measured on a CPU (" in result.stdout
    assert "resnet18 at 32 pixels, random weights" in result.stdout
    wrote, following = result.stderr.splitlines()[-2:]
    assert wrote == f"wrote {folder}/sweep.png, and its figures beside it"
    assert following == "next: espalier import resnet18 --classes 10 --size-hw 32 32"
    assert sorted(path.name for path in folder.iterdir()) == ["latency.json", "sweep.json", "sweep.png"]
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_line_for_each_rounding(figures):
    left, right = sweep_plot(figures).axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["round_to 1", "round_to 4", "if time fell as MACs do", "dense"]
    by_rounding = [line for line in left.lines if line.get_label().startswith("round_to")]
    assert list(by_rounding[0].get_xdata()) == [figures["rows"][i]["macs"] / 1e9 for i in (2, 1, 0)]
    assert list(right.lines[0].get_xdata()) == [0.0, 0.5]


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_a_sweep_in_half_precision_runs_halves(config, tmp_path, runtime):
    options = ("--set", f"runtime={runtime!r}", "--set", "precision='fp16'", "--set", "prune_ratios=(0.5,)")
    assert invoke("deploy", "sweep", config, "--out", tmp_path / "out", *options).exit_code == 0
    figures, record = (json.loads((tmp_path / "out" / name).read_text()) for name in ("sweep.json", "latency.json"))
    assert (figures["precision"], figures["runtime"]) == ("fp16", runtime)
    assert {one["precision"] for one in record["candidates"].values()} == {"fp16"}


def test_existing_output_is_replaced_only_with_force(finished, config, refusal):
    line = refusal("deploy", "sweep", config, "--out", finished[0])
    assert line == f"espalier: {finished[0]}/sweep.json: exists already; give another --out, or --force to replace it"


def test_json_prints_only_figures_on_standard_output(figures, config, tmp_path, monkeypatch):
    monkeypatch.setattr("experiment.sweep.measure_sweep", lambda *_: figures)
    result = invoke("deploy", "sweep", config, "--out", tmp_path / "out", "--json")
    assert json.loads(result.stdout) == figures


def test_the_table_is_printed_for_latex(figures, config, tmp_path, monkeypatch):
    monkeypatch.setattr("experiment.sweep.measure_sweep", lambda *_: figures)
    lines = invoke("deploy", "sweep", config, "--out", tmp_path / "out", "--latex").stdout.splitlines()
    assert lines[:3] == [f"% {figures['measured_on']}", lines[1], r"\begin{tabular}{rrrrrrr}"]
    assert lines[4] == r"removed & round\_to & MMACs & fewer & ms & faster (95 \% interval) & faster / fewer \\"
    assert len(lines) == 8 + len(figures["rows"])
    assert lines[6].startswith("dense & ")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("backbone='resnet19'", "backbone: .*unknown, got 'resnet19'; expected one of .*resnet18"),
        ("prune_ratios=(0.5, 1.0)", "prune_ratios.*got 1.0; expected .*"),
        ("prune_ratios=(-0.1,)", "prune_ratios.*got -0.1; expected .*"),
        ("prune_ratios=()", "prune_ratios: .*at least 1 item"),
        ("round_to=(0,)", "round_to.*greater than or equal to 1"),
        ("round_to=(100_000,)", "round_to.*less than or equal to 65536"),
        ("image_size=100_000", "image_size: .*less than or equal to 4096"),
        ("batch=100_000", "batch: .*less than or equal to 65536"),
        ("num_classes=10_000_000", "num_classes: .*less than or equal to 1000000"),
        ("runtime='onnx'", "runtime: .*unknown, got 'onnx'; expected one of .*onnxruntime"),
        ("precision='int8'", "precision: .*'int8'"),
        ("ratios=(0.5,)", "unknown key ratios"),
    ],
)
def test_a_wrong_config_is_refused_before_any_work(change, line, config, refusal, tmp_path):
    assert re.search(line, refusal("deploy", "sweep", config, "--out", tmp_path / "out", "--set", change))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests the error without a GPU")
@pytest.mark.parametrize("runtime", ["tensorrt_rtx", "tensorrt_rtx_graph", "torch_cuda", "onnxruntime_cuda"])
def test_a_gpu_that_is_missing_is_refused_before_any_work(config, tmp_path, runtime):
    options = ("--out", tmp_path / "out", "--set", f"runtime={runtime}")
    with pytest.raises(RuntimeError, match=rf"^runtime: no GPU for {runtime}, got a machine without CUDA; expected"):
        invoke("deploy", "sweep", config, *options)


def test_a_sweep_that_fails_leaves_nothing(config, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no more")

    monkeypatch.setattr("experiment.sweep.onnx_from_module", fails)
    with pytest.raises(RuntimeError, match="no more"):
        invoke("deploy", "sweep", config, "--out", tmp_path / "out", "--set", "prune_ratios=(0.0,)")
    assert not (tmp_path / "out").exists()
