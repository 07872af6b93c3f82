"""What files hold, examined once: later a file's size and times tell that it has not changed."""

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from command.errors import MissingFileError, RequestError

__all__ = ["Content", "contents", "usable"]

Examine = Callable[[bytes], tuple[str | None, str]]
"""Takes a file's content; returns why it cannot be used, or None, and what is to be remembered of it."""
_Identity = tuple[int, int, int]
"""Size in bytes, times of modification and of the last change of any kind in ns: a copy with the old modification time
(`cp -p`) has a new time of change."""
_RECENT_NS = 2_000_000_000
"""A file changed so short a time ago may change again within the resolution of its time, so it is not remembered."""
_CHUNK = 1000
"""Files after which what is known is remembered, so that an interruption does not lose all of it."""
_VERSION = 2
_DAMAGE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What SQLite raises for a damaged file, the last where its message quotes the file."""
_TABLE = "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, sha256 TEXT, about TEXT, seal TEXT) WITHOUT ROWID"


class Content(NamedTuple):
    """What is in a file."""

    sha256: str
    about: str
    """What was remembered of it."""


def contents(paths: Sequence[Path], examine: Examine, examiner: str) -> list[Content]:
    """Return what is in every file; see `usable`.

    Raises:
        MissingFileError: If a file does not exist.
        RequestError: If one is not a regular file or cannot be used; it names the first and counts the others.
    """
    found, faults = usable(paths, examine, examiner)
    if faults:
        more = f" ({len(faults) - 1} more files cannot be used)" if len(faults) > 1 else ""
        raise RequestError(faults[0] + more)
    return [found[path] for path in paths]


def usable(paths: Sequence[Path], examine: Examine, examiner: str) -> tuple[dict[Path, Content], list[str]]:
    """Return what is in every file that can be used, and why each of the others cannot, beginning with its path.

    It is remembered in `espalier/contents.sqlite` in the user's cache folder ($XDG_CACHE_HOME, ~/.cache), or in this
    process if that cannot be written.

    Args:
        paths: The files.
        examine: Called in several threads, once for a file that does not change.
        examiner: Identifies `examine`; what another one found is not used.

    Raises:
        MissingFileError: If a file does not exist.
        RequestError: If one is not a regular file.
    """
    before_ns = time.time_ns() - _RECENT_NS
    identities = [_identity(path) for path in paths]
    faults: list[str] = []
    with _memory() as memory:
        known = [_recalled(memory, path, i, examiner) for path, i in zip(paths, identities, strict=True)]
        unknown = [index for index, content in enumerate(known) if content is None]
        for chunk in _tracked(unknown):
            results = _read([paths[index] for index in chunk], examine)
            faults += [f"{paths[index]}: {fault}" for index, (fault, _) in zip(chunk, results, strict=True) if fault]
            good = {index: content for index, (fault, content) in zip(chunk, results, strict=True) if not fault}
            for index, content in good.items():
                known[index] = content
            lasting = [index for index in good if max(identities[index][1:]) < before_ns]
            _remember(memory, [_row(paths[index], identities[index], good[index], examiner) for index in lasting])
    return {path: content for path, content in zip(paths, known, strict=True) if content}, faults


def _identity(path: Path) -> _Identity:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path}: no such file; expected an existing one") from error
    if not stat.S_ISREG(status.st_mode):  # reading a FIFO would wait forever
        raise RequestError(f"{path}: not a regular file, got {stat.filemode(status.st_mode)}; move or delete it")
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(paths: Sequence[Path], examine: Examine) -> list[tuple[str | None, Content]]:
    def examined(path: Path) -> tuple[str | None, Content]:
        data = path.read_bytes()
        fault, about = examine(data)
        return fault, Content(hashlib.sha256(data).hexdigest(), about)

    with ThreadPoolExecutor() as pool:
        return [*pool.map(examined, paths)]


def _tracked(indices: Sequence[int]) -> Iterable[Sequence[int]]:
    """Yield the indices in chunks; show progress on standard error if there are several."""
    from rich.console import Console  # not needed by a deployed detector
    from rich.progress import track

    chunks = [indices[start : start + _CHUNK] for start in range(0, len(indices), _CHUNK)]
    what, console = f"Examining {len(indices):,} files, once", Console(stderr=True)
    return track(chunks, what, console=console, transient=True) if len(chunks) > 1 else chunks


@contextmanager
def _memory() -> Iterator[sqlite3.Connection]:
    """Yield the database of what is known; this process's own if there can be none on disk."""
    memory = _on_disk()
    if memory is None:
        yield _in_process()
        return
    try:
        yield memory
    finally:
        memory.close()


def _on_disk() -> sqlite3.Connection | None:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or a read-only one
        return None
    path = folder / "contents.sqlite"
    for _ in range(2):
        try:
            return _opened(path)
        except sqlite3.OperationalError:  # read-only, or held by another process for long
            return None
        except _DAMAGE:  # or of another version: nothing in it is needed
            path.unlink(missing_ok=True)
    return None


@cache
def _in_process() -> sqlite3.Connection:
    return _opened(":memory:")


def _opened(path: Path | str) -> sqlite3.Connection:
    memory = sqlite3.connect(path, timeout=10, check_same_thread=False)
    try:
        is_new = not memory.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        is_known = memory.execute("PRAGMA user_version").fetchone()[0] == _VERSION
        if not (is_new or is_known) or memory.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged or of another version")
        memory.execute(_TABLE)
        memory.execute(f"PRAGMA user_version = {_VERSION}")
    except _DAMAGE:
        memory.close()
        raise
    return memory


def _row(path: Path, identity: _Identity, content: Content, examiner: str) -> tuple[bytes, str, str, str]:
    """Return a row whose last field is a hash of what it was true for, and of itself: SQLite checks no content."""
    row = (_key(path), *content)
    return *row, hashlib.sha256(repr((row, identity, examiner)).encode()).hexdigest()


def _key(path: Path) -> bytes:
    return os.fsencode(path.absolute())


def _recalled(memory: sqlite3.Connection, path: Path, identity: _Identity, examiner: str) -> Content | None:
    try:
        row = memory.execute("SELECT * FROM files WHERE path = ?", (_key(path),)).fetchone()
    except _DAMAGE:  # or held by another process
        return None
    content = Content(*row[1:3]) if row else None
    return content if content and row == _row(path, identity, content, examiner) else None


def _remember(memory: sqlite3.Connection, rows: Sequence[tuple[bytes, str, str, str]]) -> None:
    try:
        with memory:
            memory.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
    except sqlite3.Error:  # another process holds it, or the disk is full
        pass
