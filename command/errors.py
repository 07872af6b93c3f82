"""The two ways in which a command may fail, and how every other exception is handled.

A `RequestError` means that the request is wrong, a `WorkError` that work failed for a reason outside this code.
Anything else is a bug of ours, and reported as one.
"""

import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import metadata

__all__ = ["BUG", "MissingFileError", "RequestError", "WorkError", "exit_code_of"]

DONE, FAILED, WRONG, BUG = 0, 1, 2, 70
"""Exit codes; 70 is EX_SOFTWARE of sysexits.h."""
_INTERRUPTED = 130


class RequestError(ValueError):
    """The request is wrong: `subject: what is wrong, got X; expected Y`. Raised only where a request is checked."""


class MissingFileError(RequestError, FileNotFoundError):
    """A file or folder that the request names does not exist."""


class WorkError(RuntimeError):
    """Work failed for a reason outside this code: a device, a library, or data found bad during the work."""


def exit_code_of(command: Callable[[], object]) -> int:
    """Run a command; return its exit code, and print on standard error, in one line, why it is not 0.

    An OSError of the system itself (full disk, no permission) and a lack of memory are failed work. Any other exception
    is a bug: its trace goes to a file that the line names.
    """
    try:
        command()
    except SystemExit as exit_:
        code = exit_.code
        return code if isinstance(code, int) else DONE if code is None else FAILED
    except KeyboardInterrupt:
        return _prefixed("interrupted; the same command goes on where it stopped", _INTERRUPTED)
    except RequestError as error:
        return _prefixed(str(error), WRONG)
    except (WorkError, MemoryError) as error:
        return _prefixed(str(error) or "out of memory", FAILED)
    except Exception as error:  # noqa: BLE001  # the outermost place: unexpected errors are reported here
        if _is_of_the_machine(error):
            return _prefixed(str(error), FAILED)
        report = _bug_report(error)
        return _prefixed(f"a bug of ours, {type(error).__name__}: {error}; please report it with {report}", BUG)
    return DONE


def _is_of_the_machine(error: Exception) -> bool:
    """Return whether the operating system or the GPU's memory failed, not our code."""
    is_memory = isinstance(error, RuntimeError) and "allocate memory" in str(error)  # torch's word on a CPU
    return isinstance(error, OSError) or is_memory or type(error).__name__ == "OutOfMemoryError"


def _prefixed(text: str, code: int) -> int:
    print(f"espalier: {' '.join(text.split())}", file=sys.stderr)
    return code


def _bug_report(error: Exception) -> str:
    """Write the trace and the environment into a new file; return its path."""
    installed = sorted(f"{dist.name}=={dist.version}" for dist in metadata.distributions())
    about = [
        f"command: {shlex.join(sys.argv)}",
        f"folder: {os.getcwd()}",
        f"python: {sys.version}",
        f"platform: {platform.platform()}",
        "",
        *traceback.format_exception(error),
        *installed,
    ]
    with tempfile.NamedTemporaryFile("w", prefix="espalier-bug-", suffix=".txt", delete=False) as file:
        file.write("\n".join(about) + "\n")
    return file.name
