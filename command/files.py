"""Files that are complete or absent, typed JSON with errors reported in one line, and text of files in messages.

The modules that write the files define their content.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import platform
import stat
from codecs import BOM_UTF8
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from command.errors import MissingFileError, RequestError

__all__ = [
    "check_folder",
    "delete_leftovers",
    "existing_file",
    "flush",
    "flush_entry",
    "make_folder",
    "model_from_json",
    "sha256_of",
    "shown",
    "write_json",
    "written_atomically",
]

Model = TypeVar("Model", bound=BaseModel)
_MANY = 200
"""Files after which flushing everything is faster than one after the other."""
_LONGEST_NAME = 255
"""Bytes that a file system takes."""
_MOST_LETTERS = 300
"""Of a text in a message."""


@contextmanager
def written_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`, which becomes `path` when the block ends and vanishes when it raises.

    Missing parent folders are made. A link stays, and what it points to is replaced. Once `path` has its name, its
    content is on the disk, power loss or not.

    Raises:
        RequestError: If `path` is none, is a folder, device or pipe, or a folder above it is a file.
    """
    path = _replaceable(_usable(path))
    beside = _usable(path.with_name(f"{_prefix(path)}{os.getpid()}.tmp"))
    make_folder(path.parent)
    delete_leftovers(path.parent, glob.escape(path.name))
    try:
        beside.touch()
        mode = beside.stat().st_mode
        yield beside
        beside.chmod(mode)  # safetensors makes files that only their owner can read
        flush_entry(beside)
        beside.replace(path)
        flush_entry(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def _usable(path: str | Path) -> Path:
    """Return `path` as a Path.

    Raises:
        RequestError: If the system takes no such path.
    """
    try:
        given = Path(path)
        longest = max((os.fsencode(part) for part in given.parts), key=len, default=b"")
    except (TypeError, ValueError) as error:  # the latter of letters that no file system has
        raise RequestError(f"path: not usable, got {shown(repr(path))}; expected the path of a file") from error
    if "\0" in str(given):
        raise RequestError(f"path: holds a NUL, got {shown(repr(path))}; expected the path of a file")
    if len(longest) > _LONGEST_NAME:
        raise RequestError(f"{shown(str(given))}: too long a name, got {len(longest)} bytes; expected a shorter one")
    return given


def _replaceable(path: Path) -> Path:
    """Return the file that is replaced when `path` is written: the one behind a link.

    Raises:
        RequestError: If it is a folder, or no regular file.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    if target.is_symlink():
        raise RequestError(f"{shown(str(path))}: a link to itself; expected a file, or a new name")
    if target.is_dir():
        raise RequestError(f"{shown(str(path))}: is a folder; expected a file, or a new name")
    if target.exists() and not target.is_file():
        kind = stat.filemode(target.stat().st_mode)
        raise RequestError(f"{shown(str(path))}: not a regular file, got {kind}; expected a file, or a new name")
    return target


def make_folder(folder: Path) -> None:
    """Make a folder and those above it unless they exist.

    Raises:
        RequestError: If one of them is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        check_folder(folder)
        raise


def check_folder(folder: Path) -> Path:
    """Return what exists of a folder that may be made: itself, or the nearest above it.

    Raises:
        RequestError: If one of them is a file.
    """
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise RequestError(f"{there}: is a file; expected a folder, or a new name")
    return there


def _prefix(path: Path) -> str:
    return f".{path.name}.{platform.node()}-"


def delete_leftovers(folder: Path, name: str = "*") -> None:
    """Delete what processes of this machine left in a folder when they were killed while writing files.

    Args:
        folder: Where the files are.
        name: Pattern of the files' names.
    """
    for left in folder.glob(f".{name}.{glob.escape(platform.node())}-*.tmp"):
        pid = left.name.removesuffix(".tmp").rpartition("-")[2]
        if pid.isdecimal() and not _is_running(int(pid)):
            left.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def flush(path: Path) -> None:
    """Return once a file, or all that a folder holds, is on the disk and survives a power loss."""
    entries = [*path.rglob("*"), path] if path.is_dir() else [path]
    if len(entries) > _MANY:
        os.sync()
        return
    for entry in entries:
        flush_entry(entry)


def flush_entry(path: Path) -> None:
    """Return once a file's content, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # of file systems that cannot
            raise
    finally:
        os.close(descriptor)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON values into a file that is complete or absent."""
    with written_atomically(path) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")


def existing_file(path: str | Path, remedy: str) -> Path:
    """Return `path` as a Path.

    Raises:
        MissingFileError: If it is not a file; the message ends with `remedy`.
        RequestError: If it is no path.
    """
    path = _usable(path)
    if not path.is_file():
        fault = "not a regular file" if path.exists() else "no such file"
        raise MissingFileError(f"{shown(str(path))}: {fault}; {remedy}")
    return path


def shown(text: str) -> str:
    """Return text of a file, or a path, for a message: in one line, cut, and without what a terminal would obey."""
    if len(text) > _MOST_LETTERS:
        text = f"{text[: _MOST_LETTERS // 2]} ... {text[-_MOST_LETTERS // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def sha256_of(path: str | Path) -> str:
    """Return the hash that identifies a file."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_from_json(model_class: type[Model], path: str | Path, remedy: str) -> Model:
    """Return the object that a JSON file describes.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If the file does not describe a `model_class`; names the first error and ends with `remedy`.
    """
    try:
        return model_class.model_validate_json(existing_file(path, remedy).read_bytes().removeprefix(BOM_UTF8))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"]) or "file"
        raise RequestError(
            f"{path}: not a readable {model_class.__name__}, got {shown(where)}: {fault['msg']}; {remedy}"
        ) from error
