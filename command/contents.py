"""What files hold, examined once: later a file's size and times tell that it has not changed."""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from command.errors import MissingFileError, RequestError

__all__ = ["Content", "contents"]

Examine = Callable[[bytes], tuple[str | None, str]]
"""Takes a file's content; returns why it cannot be used, or None, and what is to be remembered of it."""
_Identity = tuple[int, int, int]
"""Size in bytes, times of modification and of the last change of any kind in ns: a copy with the old modification time
(`cp -p`) has a new time of change."""
_RECENT_NS = 2_000_000_000
"""A file changed so short a time ago may change again within the resolution of its time, so it is not remembered."""
_MANY = 1000
_TABLE = (
    "CREATE TABLE IF NOT EXISTS files"
    " (path BLOB PRIMARY KEY, size INT, mtime INT, ctime INT, sha256 TEXT, about TEXT) WITHOUT ROWID"
)


class Content(NamedTuple):
    """What is in a file."""

    sha256: str
    about: str
    """What was remembered of it."""


def contents(paths: Sequence[Path], examine: Examine) -> list[Content]:
    """Return what is in every file.

    It is remembered in `espalier/contents.sqlite` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache), if that can
    be written.

    Args:
        paths: Files of one kind.
        examine: Called in several threads, once for a file that does not change.

    Raises:
        MissingFileError: If a file does not exist.
        RequestError: If one is not a regular file or cannot be used; it names the first and counts the others.
    """
    identities = [_identity(path) for path in paths]
    with closing(_memory()) as memory:
        known = [_recalled(memory, path, identity) for path, identity in zip(paths, identities, strict=True)]
        read = iter(_read([path for path, content in zip(paths, known, strict=True) if content is None], examine))
        before_ns = time.time_ns() - _RECENT_NS
        found = [content or next(read) for content in known]
        rows = zip(paths, identities, found, strict=True)
        _remember(memory, [(_key(path), *i, *content) for path, i, content in rows if max(i[1:]) < before_ns])
    return found


def _identity(path: Path) -> _Identity:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path}: no such file; expected an existing one") from error
    if not stat.S_ISREG(status.st_mode):  # reading a FIFO would wait forever
        raise RequestError(f"{path}: not a regular file, got {stat.filemode(status.st_mode)}; move or delete it")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(paths: Sequence[Path], examine: Examine) -> list[Content]:
    def examined(path: Path) -> tuple[str | None, Content]:
        data = path.read_bytes()
        fault, about = examine(data)
        return fault, Content(hashlib.sha256(data).hexdigest(), about)

    with ThreadPoolExecutor() as pool:
        results = [*_tracked(pool.map(examined, paths), len(paths))]
    faults = [f"{path}: {fault}" for path, (fault, _) in zip(paths, results, strict=True) if fault]
    if faults:
        more = f" ({len(faults) - 1} more files cannot be used)" if len(faults) > 1 else ""
        raise RequestError(faults[0] + more)
    return [content for _, content in results]


def _tracked(results: Iterator[tuple[str | None, Content]], num: int) -> Iterator[tuple[str | None, Content]]:
    """Yield the results; show progress on standard error if there are many."""
    what, console = f"Examining {num:,} files, once", Console(stderr=True)
    yield from track(results, what, num, console=console, transient=True) if num >= _MANY else results


def _memory() -> sqlite3.Connection:
    """Return the database of what is known; an empty one in memory if there can be none on disk."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or a read-only one
        return _opened(":memory:")
    path = folder / "contents.sqlite"
    try:
        return _opened(path)
    except sqlite3.OperationalError:  # read-only, or held by another process for long
        return _opened(":memory:")
    except sqlite3.DatabaseError:  # damaged, or of another version: nothing in it is needed
        path.unlink()
        return _opened(path)


def _opened(path: Path | str) -> sqlite3.Connection:
    memory = sqlite3.connect(path, timeout=10)
    memory.execute(_TABLE)
    memory.execute("SELECT path, size, mtime, ctime, sha256, about FROM files LIMIT 1")
    return memory


def _key(path: Path) -> bytes:
    return os.fsencode(path.absolute())


def _recalled(memory: sqlite3.Connection, path: Path, identity: _Identity) -> Content | None:
    query = "SELECT sha256, about FROM files WHERE path = ? AND size = ? AND mtime = ? AND ctime = ?"
    try:
        row = memory.execute(query, (_key(path), *identity)).fetchone()
    except sqlite3.Error:  # damaged
        return None
    return Content(*row) if row else None


def _remember(memory: sqlite3.Connection, rows: Sequence[tuple[bytes | int | str, ...]]) -> None:
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
    except sqlite3.Error:  # another process holds it, or the disk is full
        pass
