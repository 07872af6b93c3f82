"""mmdet's own programs (`train`, `test`, `get_flops` and others), run where our detectors can be built.

mmdet reads a config's `custom_imports` after its own imports, which fail where mmcv was installed without compiled
operators. A hook that every Python of the environment runs at its start could prevent that; a command does so without
touching other programs.
"""

import difflib
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import detect.register  # noqa: F401  # operators first, and all that a config may name
from command.errors import MissingFileError, RequestError
from detect.openmmlab import TOOLS

__all__ = ["PROGRAM_ERRORS", "mmdet_tools", "run_tool"]

PROGRAM_ERRORS = (Exception,)
"""What a program of another may raise."""


def mmdet_tools() -> dict[str, Path]:
    """Return the programs that come with mmdet, by name, with the folder of those that are not in the main one."""
    return {str(path.relative_to(TOOLS).with_suffix("")): path for path in sorted(TOOLS.rglob("*.py"))}


def run_tool(name: str, arguments: Sequence[str]) -> int:
    """Run a program of mmdet as its main program, and return its exit code.

    Args:
        name: Of one that comes with mmdet (`test`, `get_flops`, `analysis_tools/get_flops`), or a Python file.
        arguments: Its own.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If mmdet has no such program.
    """
    path = _found(name)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent.resolve()))  # as Python does for a program
    try:
        runpy.run_path(str(path), run_name="__main__")
    except PROGRAM_ERRORS:  # its own traceback is what its users know
        traceback.print_exc()
        return 1
    return 0


def _found(name: str) -> Path:
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise MissingFileError(f"{name}: no such file; expected a Python program")
        return Path(name)
    tools = mmdet_tools()
    matches = [tool for tool in tools if name in (tool, Path(tool).name)]
    if not matches:
        near = difflib.get_close_matches(name, [Path(tool).name for tool in tools], n=3, cutoff=0)
        raise RequestError(f"{name}: no program of mmdet; expected a .py file, or one such as {', '.join(near)}")
    return tools[min(matches, key=lambda tool: tool.count("/"))]
