"""Kills and full disks at any moment: the same command goes on, to the same bytes, and nothing is left behind."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from detect import DetectorSettings, new_detector, save_detector

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, random, resource, signal, sys, time
from espalier.places import OursFirst

sys.meta_path.insert(0, OursFirst())
import detect, experiment.run, experiment.cli, deploy.writing, detect.export, classify.commands, experiment.commands


def start(arguments, log, most_bytes):
    "Run the command in a child that has everything imported already; no file may become larger than most_bytes."
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if most_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
        sys.argv = ["espalier", *arguments]
        try:
            experiment.cli.main()
        except SystemExit as ended:
            sys.stderr.flush()
            os._exit(ended.code or 0)
    return pid


for line in sys.stdin:
    job = json.loads(line)
    pid = start(job["arguments"], job["log"], job["most_bytes"])
    ended, status, until = 0, 0, time.monotonic() + (job["kill_after_s"] or 600)
    while not ended and time.monotonic() < until:
        time.sleep(0.005)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
"""
TRAINING = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=48, num_val=12)
image_size = 32
schedule = dict(epochs=6, batch_size=8, lr=0.01)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a command, kill it after some seconds if it still runs, and return its exit code and standard error."""
    log = tmp_path_factory.mktemp("log") / "err"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], **pipes) as process:

        def one(*arguments, kill_after_s=None, most_bytes=None):
            arguments = [str(argument) for argument in arguments]
            job = {"arguments": arguments, "log": str(log), "kill_after_s": kill_after_s, "most_bytes": most_bytes}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline()), log.read_text()

        yield one
        process.stdin.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a config of a training, a classifier, and a detector."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "train.py").write_text(TRAINING)
    arch = Architecture("resnet18", 3, 8)
    card = ModelCard("classifier", arch, ("a", "b", "c"), Preprocessing((32, 32)))
    save_model(folder / "net.safetensors", build_classifier(arch), card)
    settings = DetectorSettings((64, 64), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(folder / "detector.safetensors", *new_detector(arch, card.classes, settings, seed=0))
    return folder


@pytest.fixture
def command(files, tiny_arguments):
    """Returns a command's arguments, with its output in a folder."""

    def arguments(kind, out):
        return {
            "run": tiny_arguments(out / "run", "orderings=()", "controls=()"),
            "train": ["classify", "train", files / "train.py", "--out", out / "net.safetensors"],
            "prune": ["prune", "l1_half", files / "net.safetensors", "--out", out / "slim.safetensors"],
            "prune_detector": ["prune", "l1_half", files / "detector.safetensors", "--out", out / "slim.safetensors"],
            "export": ["deploy", "export", files / "detector.safetensors", "--out", out / "deployed"],
        }[kind]

    return arguments


def left_behind(folder):
    names = {path.name for path in folder.rglob("*")}
    return {name for name in names if name.endswith((".tmp", ".partial", ".training")) or name == "checkpoints"}


def contents(folder):
    """Models and graphs by path; what describes a run holds times."""
    models = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".onnx"))
    return {path.relative_to(folder): path.read_bytes() for path in models}


def check_finished(code, err):
    """Check that a command has finished, now or in a process that was killed when all was written."""
    assert code == 0 or (code == 2 and "exists already" in err), err


def check_same(folder, whole):
    assert contents(folder) == contents(whole)
    assert left_behind(folder) == set()


def check_full(code, err, reason):
    line = err.splitlines()[-1]
    assert (code, line.startswith("espalier: ")) == (1, True), err
    assert "Traceback" not in err
    assert reason in line


@pytest.mark.parametrize(
    ("kind", "num_kills", "longest_s"),
    [("run", 16, 2.5), ("train", 6, 0.8), ("prune_detector", 6, 1.0), ("export", 6, 1.5)],
)
def test_a_storm_of_kills_changes_nothing(run, command, tmp_path, kind, num_kills, longest_s):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, err = run(*command(kind, whole))
    assert code == 0, err
    draw, num_killed = random.Random(kind), 0
    while num_killed < num_kills:
        code, err = run(*command(kind, killed), kill_after_s=draw.uniform(0.05, longest_s))
        num_killed += code == -9
        if code != -9:
            check_finished(code, err)
            check_same(killed, whole)
            shutil.rmtree(killed)
    check_finished(*run(*command(kind, killed)))
    check_same(killed, whole)


@pytest.mark.parametrize("most_bytes", [100, 3_000, 40_000])
@pytest.mark.parametrize("kind", ["run", "train", "prune", "export"])
def test_a_full_disk_ends_in_one_line_and_the_command_goes_on(run, command, tmp_path, kind, most_bytes):
    code, err = run(*command(kind, tmp_path), most_bytes=most_bytes)
    check_full(code, err, "File too large")
    code, err = run(*command(kind, tmp_path))
    assert code == 0, err
    assert left_behind(tmp_path) == set()


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a small disk, or makes the one that is mounted larger."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size, *options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},{','.join(options)}", "none", disk], check=False
        )
        if done.returncode:
            pytest.skip("mounting a small disk needs root")
        return disk

    yield mount
    subprocess.run(["umount", disk], check=False)


def test_a_training_whose_disk_is_full_goes_on_when_there_is_space(run, command, small_disk, tmp_path):
    disk = small_disk("700k")
    code, err = run(*command("train", disk))
    check_full(code, err, "No space left on device")
    small_disk("64m", "remount")
    code, err = run(*command("train", disk))
    assert code == 0, err
    code, err = run(*command("train", tmp_path / "whole"))
    assert (disk / "net.safetensors").read_bytes() == (tmp_path / "whole/net.safetensors").read_bytes()
