"""Messages and exit codes of commands that fail."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from command.errors import MissingFileError, RequestError, WorkError, exit_code_of

TEXT = "net: broken,\n  got 1; expected 2"
LINE = "espalier: net: broken, got 1; expected 2\n"


def raising(error):
    def command():
        raise error

    return command


@pytest.fixture
def ended(capsys, monkeypatch, tmp_path):
    """Return the exit code of a command that raises an error, and what it printed; reports of bugs go to `tmp_path`."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return lambda error: (exit_code_of(raising(error)), *capsys.readouterr())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError(TEXT), 2, LINE),
        (MissingFileError(TEXT), 2, LINE),
        (WorkError(TEXT), 1, LINE),
        (
            OSError(errno.ENOSPC, "No space left on device", "x"),
            1,
            "espalier: x: No space left on device; free some space, then give the same command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "espalier: x: Permission denied"),
        (OSError("cannot do it"), 1, "espalier: cannot do it"),
        (MemoryError(), 1, "espalier: out of memory\n"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "espalier: CUDA out of memory.\n"),
    ],
)
def test_a_failed_command_has_its_exit_code_and_one_line(ended, tmp_path, error, code, line):
    assert ended(error) == (code, "", line if line.endswith("\n") else f"{line}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError(TEXT), RuntimeError(TEXT), KeyError("name")])
def test_any_other_error_is_a_bug_and_its_trace_goes_to_a_file(ended, tmp_path, error):
    code, out, err = ended(error)
    assert (code, out, err.count("\n")) == (70, "", 1)
    assert err.startswith(f"espalier: a bug of ours, {type(error).__name__}: ")
    report = Path(err.rpartition("; please report it with ")[2].strip())
    assert list(tmp_path.iterdir()) == [report]
    text = report.read_text()
    assert "Traceback (most recent call last):" in text
    assert f'File "{__file__}"' in text
    assert "\ntorch==" in text


@pytest.mark.parametrize(("given", "code"), [(None, 0), (0, 0), (2, 2), ("text", 1)])
def test_an_exit_keeps_its_code(ended, given, code):
    assert ended(SystemExit(given)) == (code, "", "")


def test_a_command_that_ends_well_has_exit_code_0(capsys):
    assert exit_code_of(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


def test_a_missing_file_is_a_request_and_a_file_not_found():
    assert issubclass(MissingFileError, RequestError)
    assert issubclass(MissingFileError, FileNotFoundError)
    assert issubclass(RequestError, ValueError)
    assert issubclass(WorkError, RuntimeError)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "quickstart", "--out", ""], "espalier: --out: empty, got ''; expected a value\n"),
        (["run", "quickstart", "--out="], "espalier: --out: empty, got '--out='; expected a value\n"),
        (["run", ""], "espalier: argument: empty, got ''; expected a value\n"),
    ],
)
def test_an_empty_argument_is_refused(capsys, monkeypatch, arguments, line):
    monkeypatch.setattr(sys, "argv", ["espalier", *arguments])
    assert exit_code_of(lambda: None) == 2
    assert capsys.readouterr().err == line


def test_a_message_is_short_and_cannot_act_on_the_terminal(ended):
    code, _, err = ended(RequestError(f"{'x' * 99_999}\x1b[31m\u202e\x07"))
    assert (code, err.count("\n")) == (2, 1)
    assert len(err) < 2100
    assert err.endswith("\\x1b[31m\\u202e\\x07\n")


HEARD = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
"""A shell that starts the tests in the background makes their processes ignore Ctrl-C."""


def run_python(code, start_new_session=False, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", f"{HEARD}import sys\nfrom command.errors import exit_code_of\n{code}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=start_new_session,
    )


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_the_command_in_one_line(number, code, word):
    at_exit = "import atexit, time\natexit.register(lambda: 1 / 0)  # as what loads images may fail then\n"
    command = f"{at_exit}def wait():\n print('started', flush=True)\n time.sleep(60)\n"
    with run_python(f"{command}sys.exit(exit_code_of(wait))") as process:
        assert process.stdout.readline() == "started\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, f"espalier: {word}; the same command goes on where it stopped\n")


def test_a_terminal_without_unicode_shows_escapes():
    with run_python("sys.exit(exit_code_of(lambda: print('\u00b1')))", PYTHONIOENCODING="ascii") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "\\xb1\n", "")


def test_a_closed_pipe_is_no_bug():
    write = "lambda: [print('x' * 999, flush=True) for _ in range(9999)]"
    with run_python(f"sys.exit(exit_code_of({write}))") as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_an_interrupted_command_whose_loaders_run_is_one_line():
    command = """
import time
from torch.utils.data import DataLoader

class Slow(list):
    def __getitem__(self, index):
        time.sleep(0.2)
        return 0

def wait():
    for _ in DataLoader(Slow(range(999)), num_workers=2):
        print("started", flush=True)
"""
    with run_python(f"{command}sys.exit(exit_code_of(wait))", start_new_session=True) as process:
        assert [process.stdout.readline() for _ in range(8)] == ["started\n"] * 8  # all its processes run
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "espalier: interrupted; the same command goes on where it stopped\n")


def test_a_signal_that_is_ignored_stays_so():
    command = "import os, signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    command += "def work():\n os.kill(os.getpid(), signal.SIGINT)\n print('done')\n"
    with run_python(f"{command}sys.exit(exit_code_of(work))") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "done\n", "")


def test_a_bug_is_one_line_even_without_space_for_its_trace(ended, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    code, _, err = ended(KeyError("x"))
    assert (code, err.count("\n")) == (70, 1)
    assert "please report it; its trace cannot be written" in err


def test_a_loop_of_links_is_failed_work(tmp_path, ended):
    (tmp_path / "loop").symlink_to("loop")
    assert exit_code_of(lambda: (tmp_path / "loop").resolve(strict=True)) == 1
