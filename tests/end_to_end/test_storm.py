"""Kills and full disks at any moment: the same command goes on, to the same bytes, and nothing is left behind."""

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
TRAINING = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=48, num_val=12)
image_size = 32
schedule = dict(epochs=6, batch_size=8, lr=0.01)
"""


@pytest.fixture
def run(forked):
    """Run a command, kill it after some seconds if it still runs, and return its exit code and standard error."""

    def one(*arguments, **options):
        done = forked(*arguments, **options)
        return done.returncode, done.stderr

    return one


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
    [("run", 8, 2.5), ("train", 6, 0.8), ("prune_detector", 6, 1.0), ("export", 6, 1.5)],
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


def test_a_storm_of_kills_of_several_processes_changes_nothing(tmp_path):
    """The longer one is that of the program's defaults."""
    command = [sys.executable, ROOT / "benchmarks/kill_storm.py", "--kills", "6", "--runners", "2", "--longest", "1.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--folder", tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


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
