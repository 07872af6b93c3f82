"""Messages and exit codes of commands that fail."""

import errno
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
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "espalier: [Errno 28] No space left on device: 'x'"),
        (MemoryError(), 1, "espalier: out of memory\n"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "espalier: CUDA out of memory.\n"),
        (KeyboardInterrupt(), 130, "espalier: interrupted; the same command goes on where it stopped\n"),
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
