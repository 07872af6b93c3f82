"""Targets of an experiment: what a config may ask for, what a machine lacks, and the stages of each."""

from pathlib import Path

import pytest

from command.config import read_config
from command.errors import RequestError
from experiment import targets
from experiment.config import ExperimentConfig, Target
from experiment.pipeline import make_plan
from experiment.stages import StageStore
from experiment.targets import scope_of

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "configs/experiment/quickstart.py"
ONE = ("orderings=('prune_transfer',)", "terms=paper")


def config(**given):
    return read_config(QUICKSTART, [*ONE, *([f"targets={given}"] if given else [])], ExperimentConfig)


def plan(only_latency=False, **given):
    return make_plan(config(**given), StageStore(Path("nowhere")), only_latency=only_latency)


def hashes(planned, *names):
    return {stage.hash for stage in planned.stages if stage.name in names}


def names(stages):
    return [stage.name for stage in stages]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """A machine without a GPU, but with every package."""
    monkeypatch.setattr(targets, "has_gpu", lambda: False)
    monkeypatch.setattr(targets, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("target", "line"),
    [
        (
            {"runtime": "openvino", "precision": "fp16"},
            "targets.a: precision: not in openvino, got fp16; expected one of fp32, bf16, int8",
        ),
        ({"precision": "bf16"}, "precision: not in onnxruntime, got bf16; expected one of fp32, fp16, int8"),
        ({"runtime": "torch"}, "targets.a: runtime: unknown, got 'torch'; expected one of onnxruntime, "),
        ({"compute_capabilities": ("8.6",)}, "compute_capabilities: for tensorrt_rtx alone, got 8.6 with onnxruntime"),
        ({"batch": 0}, "targets.a.batch"),
    ],
)
def test_a_target_that_cannot_be_is_refused_in_a_line(target, line):
    with pytest.raises(RequestError) as refused:
        config(a=target)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", [{"runtime": "openvino", "precision": "int8"}, {"size_hw": (64, 64)}])
def test_what_only_detectors_have_is_refused_without_them(target):
    with pytest.raises(RequestError, match=r"targets\.a: for detectors alone, got .*; expected detection=dict"):
        read_config(QUICKSTART, [*ONE, "detection=None", f"targets={ {'a': target} }"], ExperimentConfig)


def test_two_targets_are_planned_side_by_side():
    planned = plan(cpu={}, vino={"runtime": "openvino"})
    assert [leaf.row for leaf in planned.rows] == [
        "dense@cpu",
        "dense@vino",
        "prune_transfer-finetune@cpu",
        "prune_transfer-finetune@vino",
    ]
    stages = names(planned.stages)
    assert [stages.count(name) for name in ("export", "build", "evaluate_target", "latency")] == [2, 2, 2, 2]
    assert stages[-2:] == ["latency", "latency"]
    assert stages.count("train_detector") == 2


def test_a_second_target_repeats_nothing_of_the_first():
    alone, both = plan(), plan(cpu={}, vino={"runtime": "openvino"})
    assert {stage.hash for stage in alone.stages} <= {stage.hash for stage in both.stages}
    assert [leaf.row for leaf in alone.rows] == ["dense", "prune_transfer-finetune"]


def test_targets_of_one_file_share_it():
    planned = plan(a={"runtime": "openvino"}, b={"runtime": "openvino", "precision": "bf16"})
    assert len(hashes(planned, "build")) == 2  # of both models
    assert len(hashes(planned, "evaluate_target")) == 4
    assert len(hashes(planned, "latency")) == 2


@pytest.mark.parametrize(
    ("change", "repeats"),
    [
        ({"batch": 4}, {"build", "evaluate_target", "latency"}),
        ({"size_hw": (96, 96)}, {"build", "evaluate_target", "latency"}),
        ({"num_calibration": 8}, {"build", "evaluate_target", "latency"}),
        ({"runtime": "onnxruntime"}, {"build", "evaluate_target", "latency"}),  # int8 has a form for each runtime
        ({"build_only": False}, set()),
    ],
)
def test_another_target_repeats_what_depends_on_it(change, repeats):
    target = {"runtime": "openvino", "precision": "int8"}
    known = {stage.hash for stage in plan(a=target).stages}
    assert {stage.name for stage in plan(a=target | change).stages if stage.hash not in known} == repeats


def test_the_number_of_calibration_images_matters_for_int8_alone():
    many = {"runtime": "openvino", "num_calibration": 8}
    assert {stage.hash for stage in plan(a={"runtime": "openvino"}).stages} == {s.hash for s in plan(a=many).stages}


RTX, TRT = {"runtime": "tensorrt_rtx"}, {"runtime": "tensorrt", "precision": "fp16"}


def test_a_target_without_its_gpu_is_refused_with_what_to_do():
    line = (
        "targets.rtx: tensorrt_rtx needs an NVIDIA GPU, got a machine without CUDA; expected build_only=True, and "
        "espalier run --only latency on a machine with one"
    )
    with pytest.raises(RequestError) as refused:
        plan(cpu={}, rtx=RTX)
    assert str(refused.value) == line


def test_a_target_without_its_package_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    line = 'targets.vino: openvino is not installed; openvino needs it: pip install "espalier[openvino]"'
    with pytest.raises(RequestError) as refused:
        plan(vino={"runtime": "openvino"})
    assert str(refused.value) == line


def test_what_is_built_only_is_not_evaluated_or_timed():
    planned = plan(cpu={}, rtx=RTX | {"build_only": True})
    assert [leaf.row for leaf in planned.rows] == ["dense@cpu", "prune_transfer-finetune@cpu"]
    assert names(planned.stages).count("build") == 2
    assert names(planned.stages).count("evaluate_target") == 0
    assert list(planned.latencies) == ["cpu"]
    assert planned.left_out == {"rtx": "build_only: run on another machine by --only latency"}


def test_tensorrt_is_built_where_its_gpu_is(monkeypatch):
    given = {"cpu": {}, "trt": TRT | {"build_only": True}}
    assert "build" not in names(plan(**given).stages)
    monkeypatch.setattr(targets, "has_gpu", lambda: True)
    assert names(plan(**given).stages).count("build") == 2
    assert list(plan(**given, only_latency=True).latencies) == ["cpu", "trt"]


def test_only_latency_leaves_out_what_does_not_run_here():
    found = scope_of({"cpu": Target(), "rtx": Target(**RTX, build_only=True)}, only_latency=True)
    assert (found.run, found.built) == (("cpu",), ())
    assert found.left_out == {"rtx": "tensorrt_rtx needs an NVIDIA GPU, got a machine without CUDA"}
    with pytest.raises(RequestError, match=r"^--only latency: no target runs on this machine; targets\.rtx: "):
        scope_of({"rtx": Target(**RTX)}, only_latency=True)


def test_engines_built_elsewhere_are_those_that_are_timed(monkeypatch):
    given = {"rtx": RTX | {"build_only": True}}
    built = plan(**given)
    monkeypatch.setattr(targets, "has_gpu", lambda: True)
    run = plan(**given, only_latency=True)
    assert hashes(run, "build") == hashes(built, "build") != set()
    assert names(run.stages).count("evaluate_target") == 2


def test_the_guide_shows_the_targets_of_the_shipped_config():
    guide = (ROOT / "docs/experiments.md").read_text()
    shown = "targets = dict(" + guide.partition("targets = dict(")[2].partition("```")[0]
    assert (ROOT / "configs/experiment/quickstart_targets.py").read_text().endswith(shown)
