"""How far a run is, told by its folder: stages that are done, claimed, left by a killed process, or failed."""

import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time

import pytest
from filelock import FileLock
from rich.console import Console

from command.errors import RequestError, WorkError
from command.progress import RunProgress
from experiment import claims as claiming
from experiment.claims import Claims
from experiment.results import RUN
from experiment.running import run_stages
from experiment.stages import Stage, StageStore
from experiment.status import STATUS, StatusFile, kept_status, outlined, status_of
from experiment.status_cli import status_view

HOLDER = """
import sys, time
from experiment.claims import Claims
from experiment.stages import Stage, StageStore
from pathlib import Path

def work(folder, progress):
    progress(1, 4)
    print("claimed", flush=True)
    time.sleep(60)

stage, store = Stage("train", {}, (), work), StageStore(Path(sys.argv[1]) / "stages")
with Claims(store.root).claimed(stage.key), Claims(store.root).noted(stage, lambda *_: None, lambda: None) as report:
    store.run(stage, report)
"""


def begun(folder, *stages):
    """Write what a run writes first, and return the store of its stages."""
    (folder / RUN).write_text(json.dumps({"experiment": "shapes", "stages": outlined(stages)}))
    return StageStore(folder / "stages")


def stage(name, *inputs, work=lambda *_: {}, cost=1.0):
    return Stage(name, {}, inputs, work, cost)


def run(stages, store):
    run_stages(stages, store, RunProgress(Console(file=io.StringIO()), [one.cost for one in stages]), 1)


def states(folder):
    return {one.name: one.state for one in status_of(folder).stages}


def shown(folder):
    console = Console(file=io.StringIO(), width=200)
    console.print(status_view(status_of(folder)))
    return console.file.getvalue()


def test_stages_are_done_waiting_failed_or_blocked(tmp_path):
    def fail(folder, progress):
        raise WorkError("loss: not a number")

    data = stage("data")
    bad = stage("train", data, work=fail)
    after, other = stage("export", bad), stage("evaluate", data)
    store = begun(tmp_path, data, bad, after, other)
    run([data, bad], store)
    assert states(tmp_path) == {"data": "done", "train": "failed", "export": "blocked", "evaluate": "waiting"}
    found = status_of(tmp_path)
    assert found.counts == {"done": 1, "failed": 1, "blocked": 1, "waiting": 1}
    assert found.state == "stopped"
    assert found.stages[1].reason == "loss: not a number"
    assert found.stages[2].reason == f"needs {bad.key}, which failed"
    assert f"failed {bad.key}: {platform.node()}, process {os.getpid()}, loss: not a number" in shown(tmp_path)


def test_a_killed_process_no_longer_counts_as_running(tmp_path):
    train = stage("train")
    begun(tmp_path, train)
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "claimed\n"
        found = status_of(tmp_path)
        assert (found.state, found.stages[0].state) == ("running", "running")
        assert found.stages[0].by == f"{platform.node()}, process {holder.pid}"
        holder.send_signal(signal.SIGKILL)
    found = status_of(tmp_path)
    assert (found.state, found.stages[0].state, found.ends) == ("stopped", "interrupted", None)
    assert "shapes: not running; its command goes on; 0 of 1 stages" in shown(tmp_path)


def test_a_run_between_its_stages_is_running(tmp_path):
    begun(tmp_path, stage("data"))
    with FileLock(tmp_path / ".lock"):
        assert status_of(tmp_path).state == "running"
    assert status_of(tmp_path).state == "stopped"


def test_a_run_with_results_and_nothing_left_is_finished(tmp_path):
    data = stage("data")
    run([data], begun(tmp_path, data))
    assert status_of(tmp_path).state == "stopped"  # its report is still to be written
    (tmp_path / "results.json").write_text("{}")
    found = status_of(tmp_path)
    assert (found.state, found.left_s, found.ends) == ("finished", 0.0, None)
    assert shown(tmp_path).startswith("shapes: finished; 1 of 1 stages\n")


def test_the_time_left_follows_from_what_took_how_long(tmp_path):
    done, running, waiting = stage("train"), stage("prune", cost=3.0), stage("export", cost=2.0)
    store = begun(tmp_path, done, running, waiting)
    claims = Claims(store.root)
    run([done], store)

    def note(one, share, whole_s):
        content = {"host": "a", "pid": 1, "share": share, "whole_s": whole_s, "words": "epoch 1"}
        (store.root / f"claims/{one.key}.json").write_text(json.dumps(content))

    note(done, 1.0, 10.0)
    note(running, 0.75, 30.0)
    with claims.claimed(running.key) as is_ours:
        assert is_ours
        found = status_of(tmp_path)
    # 40 s for 4 units of cost: 20 s for the last stage; a quarter of 30 s for the one that runs
    assert [one.left_s for one in found.stages] == [0.0, 7.5, 20.0]
    assert found.left_s == 27.5
    assert (found.ends - found.written).total_seconds() == 27.5
    assert found.stages[1].reason == "epoch 1"


def test_two_processes_share_what_is_left(tmp_path):
    stages = [stage(name) for name in ("train", "prune", "export")]
    store = begun(tmp_path, *stages)
    for one in stages:
        (store.root / "claims").mkdir(parents=True, exist_ok=True)
        note = {"host": "a", "pid": 1, "share": 0.5, "whole_s": 8.0}
        (store.root / f"claims/{one.key}.json").write_text(json.dumps(note))
    with Claims(store.root).claimed(stages[0].key), Claims(store.root).claimed(stages[1].key):
        assert status_of(tmp_path).left_s == (4 + 4 + 8) / 2  # the last one was not begun here


def test_a_process_notes_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(claiming, "_EVERY_S", 0.0)
    seen = []

    def work(folder, progress):
        for done in (2, 3):
            progress(done, 4, lambda: "epoch 2 of 2, loss 0.5")
            seen.append(status_of(tmp_path).stages[0])
        return {}

    train = stage("train", work=work)
    run([train], begun(tmp_path, train))
    assert [one.share for one in seen] == [0.5, 0.75]
    assert {one.state for one in seen} == {"running"}
    assert seen[1].reason == "epoch 2 of 2, loss 0.5"
    assert seen[1].left_s >= 0
    assert status_of(tmp_path).stages[0].share == 1.0


def test_status_json_is_what_the_folder_tells(tmp_path):
    data, train = stage("data"), stage("train")
    store = begun(tmp_path, data, train)
    with kept_status(tmp_path), FileLock(tmp_path / ".lock"):
        run([data], store)
    written = json.loads((tmp_path / STATUS).read_text())
    assert written["counts"] == {"done": 1, "waiting": 1}
    assert written["state"] == "stopped"
    assert [one["state"] for one in written["stages"]] == ["done", "waiting"]


def test_status_json_is_written_every_few_seconds(tmp_path):
    begun(tmp_path, stage("data"))
    file = StatusFile(tmp_path)
    file.refresh()
    (tmp_path / STATUS).unlink()
    file.refresh()
    assert not (tmp_path / STATUS).exists()
    file.refresh(at_once=True)
    assert (tmp_path / STATUS).exists()


def test_a_status_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / STATUS).mkdir()
    data = stage("data")
    store = begun(tmp_path, data)
    with kept_status(tmp_path):
        run([data], store)
    assert store.is_finished(data)


def test_looking_writes_nothing(tmp_path):
    data = stage("data")
    run([data], begun(tmp_path, data, stage("train")))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    status_of(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_damaged_note_is_none(tmp_path):
    data = stage("data")
    store = begun(tmp_path, data)
    (store.root / "claims").mkdir(parents=True)
    (store.root / f"claims/{data.key}.json").write_text("{")
    assert status_of(tmp_path).stages[0].left_s is None


def test_the_command_shows_a_run_and_follows_it_to_its_end(tmp_path, command):
    data = stage("data")
    begun(tmp_path, data)
    code, out, _ = command("status", tmp_path, "--json")
    assert (code, json.loads(out)["counts"]) == (0, {"waiting": 1})
    lock = FileLock(tmp_path / ".lock", thread_local=False)
    lock.acquire()
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "espalier", "status", tmp_path, "--follow"], stdout=-1, text=True
    ) as process:
        time.sleep(3)
        assert process.poll() is None
        lock.release()
        out, _ = process.communicate(timeout=60)
    assert re.search(r"not running; its command goes on; 0 of 1 stages", out)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("text", [None, "{}", '{"experiment": "a", "stages": []}'])
def test_a_folder_without_a_run_is_refused(tmp_path, command, text):
    if text:
        (tmp_path / RUN).write_text(text)
    with pytest.raises(RequestError):
        status_of(tmp_path)
    code, _, err = command("status", tmp_path)
    assert (code, len(err.splitlines())) == (2, 1)
