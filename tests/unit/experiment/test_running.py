"""Stages that several processes share, and stages that fail."""

import io
import json
import sys
import threading
import time

import pytest
from rich.console import Console

from command.errors import RequestError, WorkError
from command.progress import RunProgress
from experiment import running
from experiment.claims import Claims
from experiment.config import ExperimentConfig
from experiment.results import RUN
from experiment.run import join_experiment
from experiment.running import run_stages, with_workers
from experiment.stages import Stage, StageStore


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


def run(stages, store):
    run_stages(stages, store, RunProgress(Console(file=io.StringIO()), [stage.cost for stage in stages]), 1)


def chain(works):
    """Return stages of which each reads the one before."""
    stages = []
    for number, work in enumerate(works):
        stages.append(Stage(f"step{number}", {}, tuple(stages[-1:]), work))
    return stages


def failing(folder, progress):
    raise WorkError("loss: not a number, got nan in epoch 3")


def test_the_rest_goes_on_where_a_stage_fails(store, capsys):
    bad, after = chain([failing, lambda *_: {}])
    good = Stage("good", {}, (), lambda *_: {"done": 1})
    run([bad, after, good], store)
    failed = Claims(store.root)
    assert store.figures(good) == {"done": 1}
    assert failed.reason(bad) == failed.reason(after) == "loss: not a number, got nan in epoch 3"
    assert failed.reason(good) is None
    assert "step0 failed, the rest goes on: loss: not a number" in capsys.readouterr().err
    failed.clear()
    assert failed.reason(after) is None


def test_two_runners_do_every_stage_once(store):
    done = []

    def work(name):
        def run_it(folder, progress):
            time.sleep(0.05)
            done.append(name)
            return {}

        return run_it

    stages = [Stage(f"stage{number}", {}, (), work(number)) for number in range(6)]
    last = Stage("last", {}, tuple(stages), work("last"))
    runners = [threading.Thread(target=run, args=([*stages, last], store)) for _ in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(30)
    assert sorted(done[:-1]) == list(range(6))
    assert done[-1] == "last"


def test_times_are_taken_when_nothing_else_is_left(store):
    order = []
    latency = Stage("latency", {}, (), lambda *_: order.append("latency") or {})
    other = Stage("evaluate", {}, (), lambda *_: order.append("evaluate") or {})
    run([latency, other], store)
    assert order == ["evaluate", "latency"]


def test_times_of_two_targets_are_taken_one_after_the_other(store):
    at_once, most = [], []

    def work(folder, progress):
        at_once.append(folder)
        most.append(len(at_once))
        time.sleep(0.1)
        at_once.remove(folder)
        return {}

    stages = [Stage("latency", {"target": number}, (), work) for number in range(3)]
    runners = [threading.Thread(target=run, args=(stages, store)) for _ in range(2)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(30)
    assert most == [1, 1, 1]


def test_a_stage_that_another_process_holds_is_left_to_it(store):
    stage = Stage("held", {}, (), lambda *_: {})
    failed = Claims(store.root)
    with failed.claimed(stage.key) as first, failed.claimed(stage.key) as second:
        assert (first, second) == (True, False)
    with failed.claimed(stage.key) as again:
        assert again


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")])
def test_the_rest_goes_on_where_memory_is_not_enough(store, error):
    def full(folder, progress):
        raise error

    bad, good = Stage("bad", {}, (), full), Stage("good", {}, (), lambda *_: {})
    run([bad, good], store)
    assert "out of memory" in Claims(store.root).reason(bad)
    assert store.is_finished(good)


def test_a_fault_of_ours_in_a_stage_ends_the_run(store):
    def faulty(folder, progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run([Stage("bad", {}, (), faulty)], store)


def test_a_damaged_reason_is_refused_in_a_line(store):
    stage, failed = Stage("bad", {}, (), failing), Claims(store.root)
    failed.add(stage, "memory")
    (path,) = (store.root / "claims").glob("*.failed")
    path.write_text("half of it")
    with pytest.raises(RequestError, match=r"\.failed: not a readable _Failure, .*; delete it and give"):
        failed.reason(stage)


def test_workers_get_the_command_with_their_options_first(tmp_path, monkeypatch):
    begun = []

    class Worker:
        def __init__(self, command, **_):
            begun.append(command[1:])

        def terminate(self):
            pass

        def wait(self):
            pass

    monkeypatch.setattr(sys, "argv", ["espalier", "run", "--jobs", "2", "--", "methods"])
    monkeypatch.setattr(running.subprocess, "Popen", Worker)
    with with_workers(1, tmp_path):
        pass
    own = ["--join", "--out", str(tmp_path)]
    assert begun == [["-m", "espalier", "run", *own, "--jobs", "2", "--", "methods"]]


def test_a_run_of_another_config_is_not_joined(tmp_path):
    training = {"epochs": 1, "batch_size": 8, "lr": 1e-3}
    data = {"type": "shapes", "num_train": 16, "num_val": 8}
    config = ExperimentConfig(
        name="joined",
        backbone={"name": "resnet18", "base_channels": 8},
        classification={"data": data, "image_size": 32, "train": training, "finetune": training},
    )
    begun = config.model_copy(update={"seeds": (1,)}).model_dump(mode="json")
    (tmp_path / RUN).write_text(json.dumps({"config": begun}))
    with pytest.raises(RequestError, match=r": begun with another config; give the config and options of its run"):
        join_experiment(config, tmp_path, Console(file=io.StringIO()))
    assert not (tmp_path / "stages").exists()
