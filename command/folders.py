"""Folders that commands work in: used by one process at a time, kept after a kill to resume in, made only once."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from command.errors import RequestError

__all__ = ["generated", "locked", "training_folder"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process while the block runs; it is created, and may be deleted in the block.

    Raises:
        RequestError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RequestError(f"{folder}: in use by another run; wait for it, or give another --out") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def training_folder(out: Path, made_from: Mapping[str, Any], force: bool) -> Iterator[Path]:
    """Yield the folder beside `out` that a training works in; it is deleted once the block has ended well.

    A killed training leaves it behind and goes on in it.

    Args:
        out: Model file that the training will write.
        made_from: Config, start file and data of the training; JSON values.
        force: Delete the leftovers of a training with other inputs.

    Raises:
        RequestError: If another training works there, or the folder is from a training with other inputs and `force`
            is not given.
    """
    folder = out.with_suffix(".training")
    record, text = folder / "config.json", json.dumps(made_from, indent=1)
    with locked(folder):
        if record.is_file() and record.read_text() != text:
            if not force:
                raise RequestError(
                    f"{folder}: left by a training with another config, start file or data; "
                    "give another --out, or --force"
                )
            shutil.rmtree(folder)
            folder.mkdir()
        record.write_text(text)
        yield folder
        shutil.rmtree(folder)


def generated(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return the folder, made by `write` unless it exists; a folder of that name is always complete."""
    if not folder.exists():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write(partial)
        partial.rename(folder)
    return folder
