"""Kills the processes that share a run at random moments, and compares the end with a run that was never killed.

    python benchmarks/kill_storm.py --kills 30 --runners 3

Every process is a fork of one that has imported everything, so that kills fall into the work. One runs the experiment,
the others join it; each that was killed is replaced by one that is given the same command, until so many were killed;
then they go on to the end. Models, graphs and curves must be the same bytes, results the same but for times, and
nothing may be left behind. Prints a line, and ends with code 1 where they differ.
"""

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CONFIG = """
name = "storm"
backbone = dict(name="resnet18", base_channels=8)
classification = dict(
    data=dict(type="shapes", num_train=48, num_val=12),
    image_size=32,
    train=dict(epochs=3, batch_size=8, lr=0.01),
    finetune=dict(epochs=2, batch_size=8, lr=0.01),
)
pruning = dict(prune_ratios=(0.5,), round_to=1)
budgets = ("scratch_e",)
latency = dict(rounds=10)
seeds = (0, 1)
"""
TIMES = ("latency", "speedup", "throughput", "_ms", "images_per_s")
"""Parts of the names of figures that are times, or made of times."""


def start(folder: Path, config: Path, is_joiner: bool) -> int:
    """Begin a process that works on the run; return its number."""
    if pid := os.fork():
        return pid
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    join = ["--join"] if is_joiner else []
    sys.argv, code = ["espalier", "run", str(config), "--out", str(folder), *join], 1
    try:
        from experiment.cli import main

        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def storm(folder: Path, config: Path, num_kills: int, num_runners: int, longest_s: float, draw: random.Random) -> int:
    """Let so many processes do a run, of which many are killed; return how many times it was begun from the start."""
    num_killed, num_begun = 0, 1
    running = {start(folder, config, False): False}
    while running:
        until = time.monotonic() + draw.uniform(0.05, longest_s)
        while len(running) < num_runners and (folder / "run.json").exists():
            running[start(folder, config, True)] = True
        while time.monotonic() < until and running:
            time.sleep(0.01)
            for pid in [pid for pid in running if os.waitpid(pid, os.WNOHANG)[0]]:
                del running[pid]
        if num_killed < num_kills and running:
            victim = draw.choice(list(running))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            num_killed += 1
            is_joiner = running.pop(victim)
            running[start(folder, config, is_joiner)] = is_joiner
        if not running and num_killed < num_kills:  # done too soon: the next ones have all of it to do
            shutil.rmtree(folder)
            num_begun += 1
            running = {start(folder, config, False): False}
    if not (folder / "results.json").exists():  # the one that writes them was refused while a dying one held the folder
        os.waitpid(start(folder, config, False), 0)
    return num_begun


def contents(folder: Path) -> dict[str, bytes]:
    """Return the models, graphs and curves of a run by their path."""
    files = (
        path for path in folder.rglob("*") if path.suffix in (".safetensors", ".onnx") or path.name == "curve.json"
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def figures(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the results without times."""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    return [{key: one for key, one in row.items() if not any(part in key for part in TIMES)} for row in rows]


def left_behind(folder: Path) -> list[str]:
    """Return the files that a killed process left."""
    return [
        path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".partial") or path.name == "checkpoints"
    ]


def differences(killed: Path, whole: Path) -> list[str]:
    """Return what differs between a run whose processes were killed and one never killed."""
    one, other = contents(killed), contents(whole)
    found = [f"{name} differs" for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    found += [] if figures(killed) == figures(whole) else ["results differ"]
    return found + [f"{name} was left behind" for name in left_behind(killed)]


def main() -> None:
    """Do a storm and say how it ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="processes that are killed (default: %(default)s)")
    parser.add_argument("--runners", type=int, default=3, help="processes at a time (default: %(default)s)")
    parser.add_argument(
        "--longest", type=float, default=4.0, help="seconds between kills at most (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    given = parser.parse_args()
    for name in ("experiment.run", "experiment.cli", "classify.commands", "detect.export"):  # every fork has them
        importlib.import_module(name)

    folder = given.folder or Path(tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "storm.py"
    config.write_text(CONFIG)
    began = time.monotonic()
    whole, killed = folder / "whole", folder / "killed"
    os.waitpid(start(whole, config, False), 0)
    took = time.monotonic() - began
    num_begun = storm(killed, config, given.kills, given.runners, given.longest, random.Random(given.seed))
    found = differences(killed, whole)
    print(
        f"{given.kills} kills of {given.runners} processes, {num_begun} times from the start, in "
        f"{time.monotonic() - began - took:.0f} s; never killed: {took:.0f} s. {'; '.join(found) or 'the same'}"
    )
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
