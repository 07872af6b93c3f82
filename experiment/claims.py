"""Claims on the stages of a run: who works on which, how far it is, and what failed, as files beside the stages.

A claim is a lock on a file, which ends with the process that holds it, on whichever machine; the notes beside it are
only what that process said last.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, Field

from command.errors import RequestError
from command.files import check_folder, make_folder, model_from_json, write_json
from command.folders import is_held
from experiment.stages import Report, Stage

__all__ = ["Claims", "Note"]

_EVERY_S = 3.0
"""Seconds between two notes of one process, at least."""
_REMEDY = "delete it and give the same command again"


class _Failure(BaseModel):
    """Why a stage failed, as the file says it."""

    reason: str


class Note(BaseModel):
    """What the process that works on a stage, or did last, says of it."""

    host: str
    pid: int
    share: float = Field(0.0, ge=0, le=1)
    """Done of the whole, 0 to 1."""
    whole_s: float | None = Field(None, ge=0, le=1e9)
    """Seconds that the whole stage takes at the speed of this process; None before it is known."""
    words: str = ""
    """How it goes, as the progress on the terminal says."""


class Claims:
    """The claims on the stages of a run, and what failed, so that no process of it tries a stage again."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "claims"

    def check(self) -> None:
        """Raise RequestError if there is something else where a run puts these files."""
        check_folder(self._folder)
        for path in self._folder.glob("*.*"):
            if path.suffix in (".failed", ".lock", ".json") and (path.is_symlink() or not path.is_file()):
                raise RequestError(f"{path}: not a file that a run made; {_REMEDY}")

    def clear(self) -> None:
        """Forget what failed: a run that is given again tries again."""
        for path in self._folder.glob("*.failed"):
            path.unlink(missing_ok=True)

    def add(self, stage: Stage, reason: str) -> None:
        """Keep why a stage failed."""
        write_json(self._path(stage.key, "failed"), {"reason": reason})

    def reason(self, stage: Stage) -> str | None:
        """Return why a stage failed, or one that it needs; None if none did."""
        return self.own_reason(stage.key) or next(filter(None, map(self.reason, stage.inputs)), None)

    def own_reason(self, key: str) -> str | None:
        """Return why the stage of that folder's name failed itself; None if it did not."""
        path = self._path(key, "failed")
        if path.is_file():
            with contextlib.suppress(FileNotFoundError):  # a run that is given again has just deleted it
                return model_from_json(_Failure, path, _REMEDY).reason
        return None

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Yield whether this process alone may work on the stage of that folder's name, until the block ends."""
        make_folder(self._folder)
        lock = FileLock(self._path(key, "lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def was_claimed(self, key: str) -> bool:
        """Return whether a process of the run ever worked on the stage of that folder's name."""
        return self._path(key, "lock").is_file()

    def is_claimed(self, key: str) -> bool:
        """Return whether a living process works on the stage of that folder's name."""
        return is_held(self._path(key, "lock"))

    def note(self, key: str) -> Note | None:
        """Return what was noted last of the stage of that folder's name; None without, or of one that is damaged."""
        try:
            return model_from_json(Note, self._path(key, "json"), _REMEDY)
        except (RequestError, OSError):  # the latter where it is replaced on a network disk
            return None

    @contextmanager
    def noted(self, stage: Stage, progress: Report, then: Callable[[], None]) -> Iterator[Report]:
        """Yield a report that also notes, every few seconds, how far this process is with the stage.

        Args:
            stage: Claimed by this process.
            progress: What it reports to as well.
            then: Called after each note.
        """
        notes = _Notes(self._path(stage.key, "json"), progress, then)
        notes.write()
        yield notes
        notes.end()

    def _path(self, key: str, ending: str) -> Path:
        return self._folder / f"{key}.{ending}"


class _Notes:
    """Notes how far a stage is: at once, every few seconds, and at its end."""

    def __init__(self, path: Path, progress: Report, then: Callable[[], None]) -> None:
        self._path, self._progress, self._then = path, progress, then
        self._note = Note(host=platform.node(), pid=os.getpid())
        self._began = self._written = time.monotonic()
        self._first: float | None = None

    def __call__(self, done: int, total: int, in_words: Callable[[], str] | None = None) -> None:
        self._progress(done, total, in_words)
        share = min(done / max(total, 1), 1.0)
        if self._first is None:
            self._first = share  # a training that was killed goes on from there
        if time.monotonic() - self._written >= _EVERY_S:
            words = in_words() if in_words else ""
            self._note = self._note.model_copy(update={"share": share, "words": words, "whole_s": self._whole_s(share)})
            self.write()

    def end(self) -> None:
        self._note = self._note.model_copy(update={"share": 1.0, "words": "", "whole_s": self._whole_s(1.0)})
        self.write()

    def write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # no work is lost for want of a note
            write_json(self._path, self._note.model_dump())
        self._then()

    def _whole_s(self, share: float) -> float | None:
        gained = share - (self._first or 0.0)
        return (time.monotonic() - self._began) / gained if gained > 0 else None
