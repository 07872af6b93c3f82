"""Stages that several processes share, and stages that fail."""

import io
import threading
import time

import pytest
from rich.console import Console

from command.errors import WorkError
from command.progress import RunProgress
from experiment.running import FailedStages, run_stages
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
    failed = FailedStages(store.root)
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


def test_a_stage_that_another_process_holds_is_left_to_it(store):
    stage = Stage("held", {}, (), lambda *_: {})
    failed = FailedStages(store.root)
    with failed.claimed(stage) as first, failed.claimed(stage) as second:
        assert (first, second) == (True, False)
    with failed.claimed(stage) as again:
        assert again
