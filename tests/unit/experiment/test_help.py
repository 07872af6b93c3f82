"""The help of every command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from experiment.cli import app

ROOT = Path(__file__).parents[3]


def commands(command, path=()):
    """Return the words of every command below one, without `espalier`."""
    inner = getattr(command, "commands", {})
    return [path] if not inner else [words for name, one in inner.items() for words in commands(one, (*path, name))]


ALL = commands(get_command(app))


@pytest.fixture(scope="module")
def helps():
    """The help of every command, with a line for each option."""
    code = f"""
import os
os.environ.update(COLUMNS="600", TERMINAL_WIDTH="600")
from typer.testing import CliRunner
from experiment.cli import app
for words in {ALL!r}:
    print("###", *words)
    print(CliRunner().invoke(app, [*words, "--help"]).stdout)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    texts = (part.partition("\n") for part in done.stdout.split("### ")[1:])
    return {tuple(words.split()): text for words, _, text in texts}


def test_the_commands_are_found():
    assert {("run",), ("configs", "copy"), ("classify", "train"), ("deploy", "bench"), ("prune", "apply")} <= {*ALL}


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_that_takes_a_value_shows_its_default(helps, words):
    lines = [line for line in helps[words].splitlines() if re.match(r"│ +(\* +)?(--)?[a-z]", line)]
    assert any("--help" in line for line in lines)
    silent = [line for line in lines if "<bool>" not in line and "[required]" not in line and "[default: " not in line]
    assert silent == []


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("classify train", "Model file to write. [default: (runs/classify/<config>.safetensors)]"),
        ("detect predict", "Boxes below this score are left out. [default: 0.3]"),
        ("run", "Override a config key, as a.b=value; may be repeated. [default: (the config's own)]"),
        ("run", "Run folder. [default: (runs/<name>, the name in the config)]"),
        ("deploy build", "Builder effort, 0 to 5. [default: (the builder's own)]"),
    ],
)
def test_a_default_is_shown_where_it_comes_from(helps, words, text):
    assert text in helps[tuple(words.split())]
