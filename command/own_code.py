"""Code of the user's own, named as `package.module:name` in a config, an option or an argument.

Naming code runs it. A config is Python and an option is typed by the user, so both may; no text of a model or data
file ever comes here.
"""

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command.errors import RequestError
from command.files import sha256_of, shown

__all__ = ["code_prints", "failure", "is_own_code", "own_code", "short_name"]


def is_own_code(name: str) -> bool:
    """Return whether a name is that of code outside Espalier, whatever it may be."""
    return ":" in name


def short_name(name: str) -> str:
    """Return a name for rows and files: of own code what is after the colon."""
    return name.rpartition(":")[2]


def own_code(name: str, subject: str) -> Callable[..., Any]:
    """Import what the user names, from an installed package, PYTHONPATH or the current folder.

    Args:
        name: `package.module:name`; the user's own words, never a file's.
        subject: Begins the error.

    Raises:
        RequestError: If there is no such module or name in it, the module fails, or the name cannot be called.
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise RequestError(f"{subject}: not the name of code, got {shown(name)!r}; expected package.module:name")
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))  # last: a file here hides nothing that is installed
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        raise RequestError(
            f"{subject}: {module} cannot be imported, got {failure(error)}; expected a module that is installed, on "
            "PYTHONPATH or in the current folder"
        ) from error
    if not hasattr(found, attribute):
        public = [one for one in vars(found) if not one.startswith("_")]
        near = ", ".join(difflib.get_close_matches(attribute, public, n=3, cutoff=0.4)) or "none"
        raise RequestError(f"{subject}: {module} has no {attribute}, got {name!r}; nearest names: {near}")
    code: Callable[..., Any] = getattr(found, attribute)
    if not callable(code):
        raise RequestError(
            f"{subject}: {name} cannot be called, got {type(code).__name__}; expected a function or class"
        )
    return code


def failure(error: BaseException) -> str:
    """Return in one line what own code raised."""
    return shown(f"{type(error).__name__}: {error}")


def code_prints(*names: str) -> list[str]:
    """Return the hashes of the files of those names that are own code: changed code is not taken for the same.

    What these files import is not looked at. The names are those of code that is imported already.
    """
    files = (getattr(sys.modules.get(name.partition(":")[0]), "__file__", None) for name in names if is_own_code(name))
    return [sha256_of(file) for file in files if file]
