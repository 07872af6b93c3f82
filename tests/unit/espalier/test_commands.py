"""The command where only the packages for deployed models are installed."""

import subprocess
import sys

import pytest
import typer
from PIL import Image

from experiment.cli import app

pytestmark = pytest.mark.slow

TRAINING = ("torch", "torchvision", "mmdet", "mmengine", "mmcv", "scipy", "safetensors", "matplotlib")
WITHOUT = """
import sys
for name in {names}:
    sys.modules[name] = None
sys.argv = ["espalier", *sys.argv[1:]]
from espalier.__main__ import main
main()
"""
ALL_HELPS = """
import sys
for name in {names}:
    sys.modules[name] = None
from typer.testing import CliRunner
from experiment.cli import app

for words in {commands}:
    result = CliRunner().invoke(app, [*words, "--help"])
    print(result.exit_code, *words)
"""


def every_command(command, words=()):
    """Return the words of every command and group of commands."""
    below = getattr(command, "commands", {})
    return [words, *(found for name, one in below.items() for found in every_command(one, (*words, name)))]


def run_without(names, *arguments, folder):
    program = [sys.executable, "-c", WITHOUT.format(names=names), *arguments]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)


def test_help_of_every_command_needs_no_package_that_trains(tmp_path):
    commands = every_command(typer.main.get_command(app))
    assert ("run",) in commands
    assert ("deploy", "bench") in commands
    program = [sys.executable, "-c", ALL_HELPS.format(names=TRAINING, commands=commands)]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == [" ".join(("0", *words)) for words in commands], ran.stderr


def check_line(ran, *missing):
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith(tuple(f"espalier: {name} is not installed; " for name in missing))
    assert ran.stderr.endswith(' it: pip install "espalier[train]"\n')


@pytest.mark.parametrize(
    "command",
    [
        "run quickstart",
        "prune l1_half net.safetensors",
        "prune show resnet34-A",
        "prune sensitivity sensitivity_shapes net.safetensors",
        "prune lottery lottery_shapes",
        "classify train resnet18_shapes",
        "classify eval net.safetensors photos",
        "detect train faster_rcnn_scenes",
        "detect eval net.safetensors boxes.json photos",
        "detect predict net.safetensors photo.png",
        "deploy export net.safetensors",
        "deploy eval net.deploy boxes.json photos",
        "deploy bench net.safetensors",
        "deploy sweep sweep_resnet18",
    ],
)
def test_command_that_needs_more_names_the_extra(command, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    check_line(run_without(TRAINING, *command.split(), folder=tmp_path), "torch", "mmengine")


@pytest.mark.parametrize("command", ["run quickstart", "classify train resnet18_shapes"])
def test_extra_is_named_where_mmengine_alone_is_missing(command, tmp_path):
    check_line(run_without(("mmengine",), *command.split(), folder=tmp_path), "mmengine")


def test_report_names_the_extra_that_draws_it(tmp_path):
    check_line(run_without(TRAINING, "report", str(tmp_path), folder=tmp_path), "matplotlib", "scipy")


def test_doctor_runs_without_packages_that_train(tmp_path):
    ran = run_without(TRAINING, "doctor", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "torch" in ran.stdout
