import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
TINY = (
    "backbone.base_channels=16",
    "classification.data.num_train=60",
    "classification.data.num_val=12",
    "classification.train.epochs=2",
    "classification.finetune.epochs=1",
    "detection.data.num_train=16",
    "detection.data.num_val=4",
    "detection.model.image_size_hw=(96,96)",
    "detection.train.epochs=2",
    "detection.finetune.epochs=1",
    "latency.rounds=10",
    "terms=paper",
    "controls=('dense_longer',)",
    "num_threads=1",
)
FORKS = """
import json, os, resource, signal, sys, time, traceback
from espalier.places import OursFirst

sys.meta_path.insert(0, OursFirst())
import detect, experiment.run, experiment.cli, deploy.writing, detect.export, classify.commands, experiment.commands


def start(arguments, folder, out, err, most_bytes):
    "Run the command in a child that has everything imported already; no file may become larger than most_bytes."
    if pid := os.fork():
        return pid
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv, code = ["espalier", *arguments], 1
    try:
        experiment.cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


for line in sys.stdin:
    job = json.loads(line)
    pid = start(*(job[key] for key in ("arguments", "folder", "out", "err", "most_bytes")))
    ended, status, until = 0, 0, time.monotonic() + (job["kill_after_s"] or 600)
    while not ended and time.monotonic() < until:
        time.sleep(0.005)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
"""


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs the command in a process of its own, a fork of one that has imported everything; may kill it."""
    out, err = (tmp_path_factory.mktemp("printed") / name for name in ("out", "err"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS], stdin=-1, stdout=-1, text=True, cwd=ROOT, env=environment
    ) as process:
        assert process.stdin
        assert process.stdout

        def run(
            *arguments: str | Path,
            folder: Path = ROOT,
            kill_after_s: float | None = None,
            most_bytes: int | None = None,
        ) -> subprocess.CompletedProcess[str]:
            words = [str(argument) for argument in arguments]
            paths = {"folder": str(folder), "out": str(out), "err": str(err)}
            job = {"arguments": words, **paths, "kill_after_s": kill_after_s, "most_bytes": most_bytes}
            print(json.dumps(job), file=process.stdin, flush=True)
            code = json.loads(process.stdout.readline())
            return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

        yield run
        process.stdin.close()


@pytest.fixture(scope="session")
def espalier() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command as a user does, in a process of its own."""

    def run(*arguments: str | Path, kill_when: tuple[Path, str] | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("espalier")), *map(str, arguments)]
        with subprocess.Popen(
            command, stdout=-1, stderr=-1, text=True, env={**os.environ, "COLUMNS": "200"}
        ) as process:
            while kill_when and process.poll() is None and not list(kill_when[0].glob(kill_when[1])):
                time.sleep(0.02)
            if kill_when:
                process.send_signal(signal.SIGKILL)
            out, err = process.communicate(timeout=400)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def tiny_arguments() -> Callable[..., list[str | Path]]:
    """Returns the arguments that run the quickstart config, shrunk, into a folder."""

    def arguments(folder: Path, *overrides: str) -> list[str | Path]:
        sets = [part for text in (*TINY, *overrides) for part in ("--set", text)]
        return ["run", ROOT / "configs/experiment/quickstart.py", "--out", folder, "--json", *sets]

    return arguments


@pytest.fixture(scope="session")
def tiny_run(espalier: Callable[..., Any], tiny_arguments: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the quickstart config, shrunk, into a folder."""
    return lambda folder, *overrides, **options: espalier(*tiny_arguments(folder, *overrides), **options)


@pytest.fixture(scope="session")
def finished(tiny_run: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished tiny experiment with all orderings and budgets, which no test changes: its folder and results.

    The processes of one test run share it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "results.json").exists():
            done = tiny_run(folder)
            assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "results.json").read_text())


def rows_by_name(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}
