"""Folders that commands work in: used by one process at a time, kept after a kill to resume in, made only once."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from command.errors import RequestError
from command.files import flush, flush_entry, make_folder, sha256_of, write_json

__all__ = ["filled_folder", "generated", "is_begun", "is_held", "is_locked", "locked", "training_folder"]

_LOCK = ".lock"
_SUM = ".sha256"
"""File in a generated folder that tells whether it is as it was generated."""
_OLD = "old-"
_RECORD = "config.json"
_PARTIAL = ".partial"
"""Folder inside a filled one, on the same disk, so that moving its files is renaming."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process while the block runs; it is created, and may be deleted in the block.

    Raises:
        RequestError: If another process holds it.
    """
    make_folder(folder)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"{folder}: in use by another run; wait for it, or give another --out") from error
    try:
        yield
    finally:
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether a process holds the folder now."""
    return is_held(folder / _LOCK)


def is_held(path: Path) -> bool:
    """Return whether a living process holds a lock file; reads only, so that any user may ask."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (OSError, ValueError):  # nobody ever held it, or it may not be read, or is no name of a file
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # as FileLock holds it; let go when closed
    except OSError:  # held; or on a disk without such locks, where a file that exists is held
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def training_folder(out: Path, made_from: Mapping[str, Any], force: bool, is_owner: bool = True) -> Iterator[Path]:
    """Yield the folder beside `out` that a training works in; it is deleted once the block has ended well.

    A killed training leaves it behind and goes on in it.

    Args:
        out: Model file that the training will write.
        made_from: Config, start file and data of the training; JSON values.
        force: Delete the leftovers of a training with other inputs.
        is_owner: False in a process that only takes part in the training of another.

    Raises:
        RequestError: If another training works there, or the folder is from a training with other inputs and `force`
            is not given.
    """
    folder = _training_folder(out)
    if not is_owner:
        yield folder
        return
    record, content = folder / _RECORD, json.loads(json.dumps(made_from))
    with locked(folder):
        is_described = record.is_file() or not any(folder.glob("*.pth"))
        if not is_described or (record.is_file() and _json_in(record) != content):
            if not force:
                raise RequestError(
                    f"{folder}: left by a training with another config, start file or data; "
                    "give another --out, or --force"
                )
            shutil.rmtree(folder)
            folder.mkdir()
        write_json(record, content)
        yield folder
        record.unlink()  # first: whatever a kill leaves of the rest is of no training
        shutil.rmtree(folder)


def is_begun(out: Path) -> bool:
    """Return whether a killed training left its folder: what exists of its files is its own, or was to be replaced."""
    return (_training_folder(out) / _RECORD).is_file()


def _training_folder(out: Path) -> Path:
    return out.with_suffix(".training")


def _json_in(path: Path) -> Any:
    """Return the content of a JSON file, None of a damaged one."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None


def generated(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return the folder, made by `write` unless it exists; a folder of that name is always complete.

    Raises:
        RequestError: If it was changed since, or another process makes it.
    """
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        with locked(partial):
            _empty(partial)
            write(partial)
            (partial / _SUM).write_text(_sum_of(partial))
            flush(partial)
            (partial / _LOCK).unlink()
            partial.rename(folder)
            flush_entry(folder.parent)
    elif not (folder / _SUM).is_file() or (folder / _SUM).read_text() != _sum_of(folder):
        raise RequestError(f"{folder}: changed since it was generated; delete it, it is generated again")
    return folder


def _sum_of(folder: Path) -> str:
    """Return a hash of the names and the content of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (_LOCK, _SUM))
    listed = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@contextmanager
def filled_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty folder whose files and folders move into `folder` when the block ends; none do if it raises.

    Entries of `folder` with the same names are replaced, all others stay. Missing folders are made. What a killed
    process left is deleted.

    Raises:
        RequestError: If `folder` is a file, or another process fills it.
    """
    folder = Path(folder).resolve()
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with locked(folder):
            work = folder / _PARTIAL
            try:
                _restore(folder, work)
                shutil.rmtree(work, ignore_errors=True)
                (work / "new").mkdir(parents=True)
                yield work / "new"
                flush(work / "new")
                _move_all(work / "new", folder, work)
                flush_entry(folder)
            finally:
                shutil.rmtree(work, ignore_errors=True)
                (folder / _LOCK).unlink(missing_ok=True)  # while it is held
    finally:
        for place in made:  # those that are empty
            with contextlib.suppress(OSError):
                place.rmdir()


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _restore(folder: Path, work: Path) -> None:
    """Move back what a process had replaced when it was killed, where nothing new is in its place."""
    for old in work.glob(f"{_OLD}*"):
        place = folder / old.name.removeprefix(_OLD)
        if not place.exists():
            old.replace(place)


def _move_all(source: Path, folder: Path, replaced: Path) -> None:
    """Move all entries of `source` into `folder`, and what they replace into `replaced`; all of them or none."""
    moved: list[tuple[Path, Path]] = []
    try:
        for made in source.iterdir():
            place, old = folder / made.name, replaced / f"{_OLD}{made.name}"
            if place.exists():
                place.replace(old)
            moved.append((place, old))
            made.replace(place)
    except BaseException:  # a signal too
        for place, old in reversed(moved):
            if old.exists():
                place.unlink(missing_ok=True) if not place.is_dir() else shutil.rmtree(place)
                old.replace(place)
        raise
