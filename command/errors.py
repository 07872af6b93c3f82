"""The two ways in which a command may fail, and how every other exception is handled.

A `RequestError` means that the request is wrong, a `WorkError` that work failed for a reason outside this code.
Anything else is a bug of ours, and reported as one.
"""

import contextlib
import errno
import io
import logging
import os
import platform
import shlex
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata

__all__ = [
    "BUG",
    "MissingFileError",
    "RequestError",
    "WorkError",
    "exit_code_of",
    "is_lack_of_memory",
    "is_of_the_machine",
]

DONE, FAILED, WRONG, BUG = 0, 1, 2, 70
"""Exit codes; 70 is EX_SOFTWARE of sysexits.h."""
_STOPPED = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_MOST_LETTERS = 2000
"""Of a message: it may quote what a file holds."""


class RequestError(ValueError):
    """The request is wrong: `subject: what is wrong, got X; expected Y`. Raised only where a request is checked."""


class MissingFileError(RequestError, FileNotFoundError):
    """A file or folder that the request names does not exist."""


class WorkError(RuntimeError):
    """Work failed for a reason outside this code: a device, a library, or data found bad during the work."""


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command; return its exit code, and print on standard error, in one line, why it is not 0.

    An OSError of the system itself (full disk, no permission) and a lack of memory are failed work. Any other exception
    is a bug: its trace goes to a file that the line names. Ctrl-C and SIGTERM end the command in one line, too.
    """
    _print_in_any_encoding()
    logging.raiseExceptions = False  # a log that cannot be written, on a full disk, must not print traces
    warnings.filterwarnings("ignore")
    try:
        with _only_our_words(), _stopping_at_signals():
            _check_folder()
            _refuse_empty(sys.argv[1:])
            command()
    except SystemExit as exit_:
        code = exit_.code
        return code if isinstance(code, int) else DONE if code is None else FAILED
    except _StoppedError as stopped:
        code = _prefixed(f"{_STOPPED[stopped.number]}; the same command goes on where it stopped", 128 + stopped.number)
        _say_no_more()
        return code
    except BrokenPipeError:  # the reader has enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RequestError as error:
        return _prefixed(str(error), WRONG)
    except (WorkError, MemoryError) as error:
        return _prefixed(str(error) or "out of memory", FAILED)
    except Exception as error:  # noqa: BLE001  # the outermost place: unexpected errors are reported here
        if is_of_the_machine(error):
            return _prefixed(_described(error), FAILED)
        try:
            report = f"please report it with {_bug_report(error)}"
        except OSError as fault:
            report = f"please report it; its trace cannot be written, {fault}"
        return _prefixed(f"a bug of ours, {type(error).__name__}: {error}; {report}", BUG)
    return DONE


class _StoppedError(BaseException):
    """A signal ended the command. Not KeyboardInterrupt, which typer handles itself, without a word."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = signal.Signals(number)


@contextlib.contextmanager
def _stopping_at_signals() -> Iterator[None]:
    owner = os.getpid()

    def stop(number: int, frame: object) -> None:
        if os.getpid() == owner:
            raise _StoppedError(number)
        if number != signal.SIGINT:  # a process that loads images hears Ctrl-C too, but its owner ends it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in _STOPPED}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]  # `nohup` ignores some
    is_main = threading.current_thread() is threading.main_thread()
    for number in heard if is_main else ():
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard if is_main else ():
            signal.signal(number, before[number])


@contextlib.contextmanager
def _only_our_words() -> Iterator[None]:
    """Keep what libraries print on standard error, such as OpenCV of an odd image, off the terminal.

    Theirs goes to the process's descriptor, ours to Python's stream, which gets a descriptor of its own.
    """
    ours = sys.stderr
    if not _is_the_terminals(ours) or not isinstance(ours, io.TextIOWrapper):
        yield
        return
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    ours.flush()
    with open(kept, "w", buffering=1, encoding=ours.encoding, errors=ours.errors) as stream:
        os.dup2(nowhere, 2)
        sys.stderr = stream
        try:
            yield
        finally:
            sys.stderr = ours
            os.dup2(stream.fileno(), 2)
            os.close(nowhere)


def _say_no_more() -> None:
    """Keep the traces off the terminal that processes which load images leave at the end of a stopped command."""
    if _is_the_terminals(sys.stderr):
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _is_the_terminals(stream: object) -> bool:
    """Return whether it is the process's own: in a test, or in a program, it may be another."""
    return stream is sys.__stderr__ and isinstance(stream, io.TextIOWrapper) and stream.fileno() == 2


def _print_in_any_encoding() -> None:
    """Escape what a terminal cannot show, rather than fail after all work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_folder() -> None:
    """Raise RequestError if the current folder was deleted: libraries that need it end the process without a word."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise RequestError("current folder: does not exist any more; change to another one") from error


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Raise RequestError for an empty argument, as from an unset shell variable: a path of it is the current folder."""
    for before, argument in zip(("argument", *arguments), arguments, strict=False):
        option, equals, value = argument.partition("=")
        if argument == "" or (option.startswith("--") and equals and not value):
            name = option or (before if before.startswith("--") else "argument")
            raise RequestError(f"{name}: empty, got {argument!r}; expected a value")


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        remedy = "; free some space, then give the same command again" if error.errno == errno.ENOSPC else ""
        return f"{error.filename or 'system'}: {error.strerror}{remedy}"
    return str(error)


def is_of_the_machine(error: Exception) -> bool:
    """Return whether the operating system or the GPU's memory failed, not our code."""
    if isinstance(error, RuntimeError) and "Symlink loop" in str(error):  # of pathlib, below Python 3.13
        return True
    return isinstance(error, OSError) or is_lack_of_memory(error)


def is_lack_of_memory(error: Exception) -> bool:
    """Return whether there was too little memory, on the CPU or a GPU."""
    words = ("allocate memory", "out of memory", "_ALLOC_FAILED")  # torch's on a CPU, CUDA's, cuBLAS's and cuDNN's
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(one in str(error) for one in words)
    )


def _prefixed(text: str, code: int) -> int:
    line = " ".join(text.split())
    shown = line if len(line) <= _MOST_LETTERS else f"{line[: _MOST_LETTERS // 2]} ... {line[-_MOST_LETTERS // 2 :]}"
    harmless = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown)  # on a terminal
    print(f"espalier: {harmless}", file=sys.stderr)
    return code


def _bug_report(error: Exception) -> str:
    """Write the trace and the environment into a new file; return its path."""
    installed = sorted(f"{dist.name}=={dist.version}" for dist in metadata.distributions())
    about = [
        f"command: {shlex.join(sys.argv)}",
        f"folder: {os.environ.get('PWD')}",
        f"python: {sys.version}",
        f"platform: {platform.platform()}",
        "",
        *traceback.format_exception(error),
        *installed,
    ]
    with tempfile.NamedTemporaryFile("w", prefix="espalier-bug-", suffix=".txt", delete=False) as file:
        file.write("\n".join(about) + "\n")
    return file.name
