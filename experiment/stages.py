"""Stages: pieces of work identified by the hash of all their inputs.

A stage works in `<name>-<hash>.partial` and is renamed when it is complete, so what exists without that ending is
whole. A killed stage leaves its partial folder behind and resumes in it. The record of a finished stage holds the hash
of every file that it wrote, and its own.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from command.errors import MissingFileError, RequestError, WorkError
from command.files import flush, flush_entry, model_from_json, sha256_of, write_json
from deploy.deployment import DEPLOYMENT

__all__ = [
    "CHECKPOINTS",
    "LATENCY",
    "Figures",
    "Report",
    "Stage",
    "StageRecord",
    "StageStore",
    "as_written",
    "figures_in",
    "record_of",
    "stage_folders",
]

Figures = dict[str, Any]
"""Results of a stage; plain JSON."""
Report = Callable[..., None]
"""Called with (parts done, parts in all), and perhaps what says in words how it goes."""

_VERSION = 4  # raise it when a stage's result would change for the same inputs

CHECKPOINTS = "checkpoints"
"""Folder inside a stage for logs, and for what only a resumed stage needs; deleted when the stage is finished."""

LATENCY = "latency"
"""Name of stages that take times."""

_RECORD, _PARTIAL = "stage.json", ".partial"


@dataclass(frozen=True, eq=False)
class Stage:
    """One piece of work.

    Attributes:
        name: Human-readable; part of the folder's name.
        settings: All that goes into the work besides its inputs; plain JSON.
        inputs: Stages whose folders it reads.
        work: Called with (own folder, progress); returns figures, plain JSON.
        cost: Expected duration relative to the other stages.
    """

    name: str
    settings: Mapping[str, Any]
    inputs: tuple["Stage", ...]
    work: Callable[[Path, Report], Figures]
    cost: float = 1.0

    @cached_property
    def hash(self) -> str:
        """Twelve hexadecimal digits over name, settings and the inputs' hashes."""
        content = [_VERSION, self.name, self.settings, [stage.hash for stage in self.inputs]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{self.name}-{self.hash}"


class _File(BaseModel):
    """A file as a stage wrote it."""

    sha256: str
    size: int
    mtime_ns: int


class StageRecord(BaseModel):
    """The content of `stage.json`, the last file that a stage writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    hash: str
    """That of the stage, so that the record fits no other folder."""
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Names of the folders that it read, and the hash of what was in each."""
    wall_s: float
    """How long it worked, in seconds; without the time before a kill."""
    figures: Figures
    files: dict[str, _File]
    """All other files in the folder, by their path in it."""
    folders: list[str]
    """All folders in it: an empty one may be a class."""
    sha256: str = ""
    """Hash of the fields above."""

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.size for file in self.files.values())

    @property
    def content(self) -> str:
        """Hash of what the stage wrote, the same in a run that was moved: `deploy.json` holds paths."""
        hashes = {name: file.sha256 for name, file in self.files.items() if name != DEPLOYMENT}
        return hashlib.sha256(json.dumps([hashes, self.folders, self.figures], sort_keys=True).encode()).hexdigest()

    def sealed(self) -> "StageRecord":
        """Return the record with its own hash."""
        content = json.dumps(self.model_dump(exclude={"sha256"}), sort_keys=True)
        return self.model_copy(update={"sha256": hashlib.sha256(content.encode()).hexdigest()})


class StageStore:
    """The folder that holds the stages of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: Stage) -> Path:
        """Return where the finished stage is, or will be."""
        return self.root / stage.key

    def is_finished(self, stage: Stage) -> bool:
        """Return whether the stage needs no work, provided that `check` finds it as it was written."""
        return self.folder(stage).exists()

    def is_begun(self, stage: Stage) -> bool:
        """Return whether a process was killed while it worked on the stage, or works on it."""
        return self._partial(stage).exists()

    def check(self, stages: Iterable[Stage], is_quick: bool = False) -> None:
        """Check that the finished ones among some stages are as they were written.

        Args:
            stages: Of this store.
            is_quick: Do not read files whose size and modification time are those of the record.

        Raises:
            RequestError: If a file is missing or was changed; the message names it and the folder to delete.
        """
        for stage in stages:
            for place in (self.folder(stage), self._partial(stage)):
                _check_place(place)
            if self.is_finished(stage):
                self._check_folder(self.folder(stage), stage, is_quick)

    def fault(self, stage: Stage, is_quick: bool = False) -> str | None:
        """Return what of a finished stage `check` would refuse, None where nothing is."""
        try:
            self.check([stage], is_quick)
        except RequestError as error:
            return str(error).partition("; delete ")[0]
        return None

    def delete(self, name: str) -> None:
        """Delete a stage by the name of its folder, finished or begun; a kill in between leaves it begun.

        Raises:
            RequestError: If there is something else in its place.
        """
        folder, partial = self.root / name, self.root / f"{name}{_PARTIAL}"
        for place in (folder, partial):
            _check_place(place)
        if partial.exists():
            shutil.rmtree(partial)
        if folder.exists():
            folder.rename(partial)
            (partial / _RECORD).unlink(missing_ok=True)  # first: without it the rest is nothing that was finished
            shutil.rmtree(partial)

    def _check_folder(self, folder: Path, stage: Stage, is_quick: bool = False) -> None:
        record = as_written(folder, is_quick)
        if record.hash != stage.hash:
            raise RequestError(f"{folder / _RECORD}: of another stage, got {record.hash}; {_remedy(folder)}")
        for parent in filter(self.is_finished, stage.inputs):
            if record.inputs.get(self.folder(parent).name) != record_of(self.folder(parent)).content:
                raise RequestError(f"{folder}: made from another {self.folder(parent).name}; {_remedy(folder)}")

    def figures(self, stage: Stage) -> dict[str, Any]:
        """Return what the finished stage's work returned."""
        return figures_in(self.folder(stage))

    def wall_s(self, stage: Stage) -> float:
        """Return how long the finished stage worked, in seconds; without the time before a kill."""
        return record_of(self.folder(stage)).wall_s

    def run(self, stage: Stage, progress: Report) -> None:
        """Do the stage's work, or the unfinished rest of it."""
        folder, partial = self.folder(stage), self._partial(stage)
        partial.mkdir(parents=True, exist_ok=True)
        if (partial / _RECORD).is_file():  # it was killed before it was renamed
            self._check_folder(partial, stage)
        else:
            _delete_all_but(CHECKPOINTS, partial)
            self._work(stage, partial, progress)
        partial.rename(folder)
        flush_entry(self.root)

    def _partial(self, stage: Stage) -> Path:
        return self.root / f"{self.folder(stage).name}{_PARTIAL}"

    def _work(self, stage: Stage, folder: Path, progress: Report) -> None:
        started = time.monotonic()
        try:
            figures = stage.work(folder, progress)
        except RequestError as error:  # the request was checked before: something has changed since
            raise WorkError(f"{stage.name}: {error}") from error
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # only needed to resume after a kill
        flush(folder)
        files, folders = _paths_in(folder)
        record = StageRecord(
            name=stage.name,
            hash=stage.hash,
            settings=dict(stage.settings),
            inputs={self.folder(parent).name: record_of(self.folder(parent)).content for parent in stage.inputs},
            wall_s=round(time.monotonic() - started, 1),
            figures=figures,
            files={name: _as_written(folder / name) for name in files},
            folders=folders,
        )
        write_json(folder / _RECORD, record.sealed().model_dump())


def figures_in(folder: Path) -> Figures:
    """Return what the work that made this stage folder returned.

    Raises:
        RequestError: If its record was changed; the message says which folder to delete.
    """
    return record_of(folder).figures


def record_of(folder: Path) -> StageRecord:
    """Return what a finished stage's folder says of it.

    Raises:
        RequestError: If it was changed; the message says which folder to delete.
    """
    record = model_from_json(StageRecord, folder / _RECORD, _remedy(folder))
    if record.sealed() != record:
        raise RequestError(f"{folder / _RECORD}: changed since it was written, got another sha256; {_remedy(folder)}")
    return record


def stage_folders(root: Path) -> list[Path]:
    """Return the folders below `root` that are named as finished stages are; what is in them may be anything."""
    return [path for path in sorted(root.glob("*-" + "[0-9a-f]" * 12)) if path.is_dir() and not path.is_symlink()]


def as_written(folder: Path, is_quick: bool = False) -> StageRecord:
    """Return the record of a finished stage's folder once all in it is found as it was written.

    Args:
        folder: Of the stage.
        is_quick: As for `StageStore.check`.

    Raises:
        RequestError: If something was added, changed or is missing; the message says which folder to delete.
    """
    record = record_of(folder)
    for name, written in record.files.items():
        _check_file(folder, name, written, is_quick)
    files, folders = _paths_in(folder)
    added = sorted({*files} - {*record.files} | {*folders} ^ {*record.folders})
    if added:
        raise RequestError(f"{folder / added[0]}: not as the stage wrote it, added or missing; {_remedy(folder)}")
    return record


def _check_place(place: Path) -> None:
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        raise RequestError(f"{place}: not a folder that a run made; {_remedy(place)}")


def _paths_in(folder: Path) -> tuple[list[str], list[str]]:
    """Return the paths of all files but the record, and of all folders, relative to the folder."""
    files: list[str] = []
    folders: list[str] = []
    for path in sorted(folder.rglob("*")):
        inside = folders if path.is_dir() and not path.is_symlink() else files
        inside.append(path.relative_to(folder).as_posix())
    return [name for name in files if name != _RECORD], folders


def _delete_all_but(kept: str, folder: Path) -> None:
    """Delete what a killed process, or anybody else, left in a folder that is to be filled again."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name != kept:
            shutil.rmtree(path)
        elif path.name != kept:
            path.unlink()


def _as_written(path: Path) -> _File:
    status = path.stat()
    return _File(sha256=sha256_of(path), size=status.st_size, mtime_ns=status.st_mtime_ns)


def _check_file(folder: Path, name: str, written: _File, is_quick: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file, but the stage wrote it; {_remedy(folder)}")
    status = path.stat()
    if is_quick and (status.st_size, status.st_mtime_ns) == (written.size, written.mtime_ns):
        return
    if status.st_size != written.size or sha256_of(path) != written.sha256:
        raise RequestError(f"{path}: changed since it was written, got another sha256; {_remedy(folder)}")


def _remedy(folder: Path) -> str:
    return f"delete {folder} and give the same command again"
