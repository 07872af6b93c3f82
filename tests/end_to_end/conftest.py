import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

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
    "num_threads=1",
)


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
    """A finished tiny experiment with all orderings and budgets: its folder and results."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = tiny_run(folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "results.json").read_text())


def rows_by_name(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}
