"""Public names of a package that are imported when they are first used, but still typed for editors."""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["lazy_names"]


def lazy_names(package: str, file: str) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package, which imports what its `if TYPE_CHECKING:` block names.

    That block is what editors and type checkers read; reading it here too keeps one list of names.

    Args:
        package: The package's `__name__`.
        file: Its `__file__`.
    """
    modules = {
        alias.asname or alias.name: (node.module, alias.name)
        for block in ast.parse(Path(file).read_text("utf-8")).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, original = modules[name]
        value = getattr(importlib.import_module(module), original)
        setattr(sys.modules[package], name, value)
        return value

    return get
