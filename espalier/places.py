"""Where our folders are, even if Python would find other files with the same names first."""

import importlib.abc
import importlib.machinery
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["FOLDERS", "OursFirst", "check_folders"]

FOLDERS = ("classify", "command", "deploy", "detect", "experiment", "prune")
_ROOT = Path(__file__).resolve().parents[1]


def check_folders() -> None:
    """Raise ImportError if another file or folder hides one of ours; the message names it and the remedy."""
    for name in FOLDERS:
        found = _file_of(name)
        if found is not None and found.parent != _ROOT / name:
            hiding = found.parent if found.name == "__init__.py" else found
            raise ImportError(
                f"espalier: {hiding} hides espalier's own folder {name}; rename it, or run from another folder and "
                f"leave it out of PYTHONPATH"
            )


def _file_of(name: str) -> Path | None:
    """Return the file that `import name` runs, or has run; without an `__init__.py`, its path if it existed."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module created in code has no file
        return None
    if spec is None:
        return None
    origin = spec.origin or f"{next(iter(spec.submodule_search_locations or ()), '')}/__init__.py"
    return Path(origin).resolve()


class OursFirst(importlib.abc.MetaPathFinder):
    """Finds our folders beside this one before any other place is searched: for the `espalier` command."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return where one of our folders is; None for every other module."""
        if path is not None or fullname not in FOLDERS:
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, [str(_ROOT)])
