import io

import pytest
from rich.console import Console

from command.progress import RunProgress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def output():
    return io.StringIO()


def run_progress(output, costs, clock):
    return RunProgress(Console(file=output, width=200), costs, clock)


def test_time_left_follows_from_the_costs_and_the_speed_so_far(output):
    clock = Clock()
    progress = run_progress(output, [1.0, 3.0], clock)
    with progress.stage("first"):
        clock.now = 10.0  # a cost of 1 took 10 s, so the 3 that follow take 30 s
    assert "[1/2] first done in 10 s, about 30 s left" in output.getvalue()
    with progress.stage("second"):
        clock.now = 40.0
        assert progress.left_s(1.0) == pytest.approx(0.0)


def test_no_time_left_is_estimated_before_any_progress(output):
    progress = run_progress(output, [1.0], Clock())
    with progress.stage("only"):
        assert progress.left_s(0.5) is None


def test_without_a_terminal_a_line_comes_every_fifteen_seconds(output):
    clock = Clock()
    progress = run_progress(output, [1.0], clock)
    with progress.stage("only"):
        for second in range(0, 40):
            clock.now = float(second)
            progress(second, 40)
    lines = [line for line in output.getvalue().splitlines() if "%" in line]
    assert [line.split()[2] for line in lines] == ["38%,", "75%,"]  # after 15 s of 40 and after 30 s


def test_a_line_says_how_it_goes_and_the_time_left(output):
    clock = Clock()
    progress = run_progress(output, [1.0], clock)
    with progress.stage("train"):
        clock.now = 20.0
        progress(1, 5, lambda: "epoch 1 of 5, loss 0.7, learning rate 0.1, 90 images a second")
    line = "[1/1] train 20%, epoch 1 of 5, loss 0.7, learning rate 0.1, 90 images a second, about 1 min 20 s left"
    assert line in output.getvalue().splitlines()


def test_a_terminal_shows_the_same_beside_the_bar(output):
    clock = Clock()
    progress = RunProgress(Console(file=output, width=200, force_terminal=True), [1.0], clock)
    with progress.stage("train"):
        clock.now = 0.1
        progress(1, 5, lambda: "drawn too soon after the last time")
        clock.now = 20.0
        progress(1, 5, lambda: "epoch 1 of 5, loss 0.7")
    assert "20% of step [1/1], epoch 1 of 5, loss 0.7, about 1 min 20 s left" in output.getvalue()
    assert "too soon" not in output.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(59, "59 s"), (61, "1 min 01 s"), (3660, "1 h 01 min")])
def test_durations_are_human_readable(output, seconds, text):
    clock = Clock()
    progress = run_progress(output, [1.0], clock)
    with progress.stage("only"):
        clock.now = float(seconds)
    assert f"done in {text}" in output.getvalue()


def test_the_number_of_a_stage_never_falls(output):
    """Others do the second stage while this process does the third, fails in it, and takes the first."""
    progress = run_progress(output, [1.0] * 4, Clock())
    progress.finished([1])
    with pytest.raises(RuntimeError), progress.stage("third", 2):
        raise RuntimeError
    progress.finished([1, 2])
    with progress.stage("first", 0):
        pass
    with progress.stage("fourth", 3):
        pass
    begun = [line for line in output.getvalue().splitlines() if line.endswith("...")]
    assert begun == ["[2/4] third ...", "[3/4] first ...", "[4/4] fourth ..."]
