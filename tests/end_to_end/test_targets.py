"""An experiment on several targets: one file for each model and target, its mAP and its times."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.deployment import ONNX_NAME
from deploy.engine import read_engine_info
from deploy.runtimes.onnxruntime import OnnxRunner
from deploy.runtimes.registry import RUNTIMES
from experiment import targets

pytest.importorskip("openvino")
pytest.importorskip("tensorrt_rtx")
pytestmark = pytest.mark.slow

ONE_SLIM = ("orderings=('transfer_prune',)", "controls=()", "targets.openvino_int8.num_calibration=4")


@pytest.fixture(scope="module")
def arguments(tiny_arguments):
    """Return the arguments that run the shipped config with targets, shrunk, in a folder."""

    def with_targets(folder, *options):
        run, quickstart, *rest = tiny_arguments(folder, *ONE_SLIM)
        return [run, quickstart.with_name("quickstart_targets.py"), *rest, *options]

    return with_targets


def rows_by_name(rows):
    return {row["name"]: row for row in rows}


def stage_records(folder, name):
    return {path: json.loads(path.read_text()) for path in sorted((folder / "stages").glob(f"{name}-*/stage.json"))}


@pytest.fixture(scope="module")
def built(finished, espalier, arguments, tmp_path_factory):
    """The shipped config, run where there is no GPU; killed when the first file is built. Its folder and results."""
    folder = tmp_path_factory.mktemp("targets") / "run"
    shutil.copytree(finished[0], folder)  # all is trained
    killed = espalier(*arguments(folder), kill_when=(folder / "stages", "evaluate_target-*.partial"))
    assert killed.returncode == -9, killed.stderr
    (before,) = stage_records(folder, "build")
    written = before.stat().st_mtime_ns
    done = espalier(*arguments(folder))
    assert done.returncode == 0, done.stderr
    assert before.stat().st_mtime_ns == written  # it was not built again
    return folder, json.loads((folder / "results.json").read_text())


def test_every_row_is_of_one_file_on_one_target(built):
    folder, results = built
    rows = rows_by_name(results["rows"])
    models = ("dense", "transfer_prune-finetune")
    assert set(rows) == {f"{model}@{target}" for model in models for target in ("cpu", "openvino_int8")}
    for target in ("cpu", "openvino_int8"):
        dense, slim = (rows[f"{model}@{target}"] for model in models)
        assert (dense["speedup"], dense["target"], slim["target"]) == (1, target, target)
        assert slim["speedup"] == pytest.approx(dense["latency_ms"] / slim["latency_ms"])
    evaluated = {record["figures"]["file_sha256"] for record in stage_records(folder, "evaluate_target").values()}
    assert evaluated == {rows[f"{model}@openvino_int8"]["file_sha256"] for model in models}
    found = {(row["target"], row["runtime"], row["precision"], row["precision_asked"]) for row in results["rows"]}
    assert found == {("cpu", "onnxruntime", "fp32", "fp32"), ("openvino_int8", "openvino", "int8", "int8")}


def test_the_first_target_is_that_of_an_experiment_without_targets(built, finished):
    rows, without = rows_by_name(built[1]["rows"]), rows_by_name(finished[1]["rows"])
    same = ("map", "map50", "map_framework", "macs", "params", "onnx", "file_sha256")
    assert {key: rows["dense@cpu"][key] for key in same} == {key: without["dense"][key] for key in same}


def test_int8_is_calibrated_on_images_of_the_training(built):
    (record, *_) = stage_records(built[0], "evaluate_target").values()
    (build,) = (name for name in record["inputs"] if name.startswith("build-"))
    deployed = json.loads((built[0] / "stages" / build / "deploy.json").read_text())
    assert "train_scenes-" in deployed["config"]["pictures"]["annotations"]
    assert deployed["compared_on"].endswith("images of instances.json not used for calibration")


def test_what_was_not_run_is_said_and_its_engines_are_built(built):
    folder, results = built
    assert [one["target"] for one in results["not_run"]] == ["rtx_fp16"]
    assert "Target rtx_fp16 was not run: build_only" in (folder / "report.html").read_text()
    infos = [read_engine_info(path) for path in (folder / "stages").glob("build-*/model.engine")]
    assert [(info.precision, info.inputs["image"].shape) for info in infos] == [("fp16", (2, 3, 96, 96))] * 2


class GpuStandIn(OnnxRunner):
    """Runs the ONNX file beside an engine."""

    runtime = "tensorrt_rtx"


@pytest.fixture
def gpu(monkeypatch):
    """A machine that seems to have a GPU."""
    monkeypatch.setattr(targets, "has_gpu", lambda: True)
    runs = replace(RUNTIMES["tensorrt_rtx"], runner=lambda path, _: GpuStandIn(Path(path).with_name(ONNX_NAME)))
    monkeypatch.setitem(RUNTIMES, "tensorrt_rtx", runs)


def test_the_same_folder_goes_on_where_the_gpu_is(built, command, arguments, gpu, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "run")
    before = set((folder / "stages").iterdir())
    code, out, err = command(*arguments(folder, "--only", "latency"))
    assert code == 0, err
    added = sorted(path.name.partition("-")[0] for path in set((folder / "stages").iterdir()) - before)
    assert added == ["evaluate_target", "evaluate_target", "latency"]
    rows = rows_by_name(json.loads(out))
    slim = rows["transfer_prune-finetune@rtx_fp16"]
    assert (slim["runtime"], slim["precision"], slim["batch"]) == ("tensorrt_rtx", "fp16", 2)
    assert (folder / slim["engine"]).is_file()
    assert len(rows) == 6
    assert "not_run" not in json.loads((folder / "results.json").read_text())


def test_only_latency_trains_nothing(command, arguments, built, tmp_path):
    folder = shutil.copytree(built[0], tmp_path / "run")
    for path in (folder / "stages").glob("train_detector-*"):
        shutil.rmtree(path)
    code, _, err = command(*arguments(folder, "--only", "latency"))
    assert code == 2
    assert f"{folder}: train_detector is not done, got --only latency; give the command without it first" in err
    assert not list((folder / "stages").glob("train_detector-*"))
