"""Stages: pieces of work identified by the hash of all their inputs.

A stage works in `<name>-<hash>.partial` and is renamed when it is complete, so what exists without that ending is
whole. A killed stage leaves its partial folder behind and resumes in it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from command.errors import RequestError, WorkError
from command.files import write_json

__all__ = ["CHECKPOINTS", "Figures", "Report", "Stage", "StageStore", "figures_in"]

Figures = dict[str, Any]
"""Results of a stage; plain JSON."""
Report = Callable[[int, int], None]
"""Called with progress: parts done, parts in total."""

_VERSION = 1  # raise it when a stage's result would change for the same inputs

CHECKPOINTS = "checkpoints"
"""Folder inside a stage for files needed only to resume after a kill; deleted when the stage is finished."""

_RECORD = "stage.json"


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


class StageStore:
    """The folder that holds the stages of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: Stage) -> Path:
        """Return where the finished stage is, or will be."""
        return self.root / f"{stage.name}-{stage.hash}"

    def is_finished(self, stage: Stage) -> bool:
        """Return whether the stage needs no work."""
        return (self.folder(stage) / _RECORD).is_file()

    def figures(self, stage: Stage) -> dict[str, Any]:
        """Return what the finished stage's work returned."""
        return figures_in(self.folder(stage))

    def wall_s(self, stage: Stage) -> float:
        """Return how long the finished stage worked, in seconds; without the time before a kill."""
        return float(json.loads((self.folder(stage) / _RECORD).read_text())["wall_s"])

    def run(self, stage: Stage, progress: Report) -> None:
        """Do the stage's work, or the unfinished rest of it."""
        folder = self.folder(stage)
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        if not (partial / _RECORD).is_file():  # else it was killed between the last two lines
            self._work(stage, partial, progress)
        shutil.rmtree(partial / CHECKPOINTS, ignore_errors=True)  # only needed to resume after a kill
        partial.rename(folder)

    def _work(self, stage: Stage, folder: Path, progress: Report) -> None:
        started = time.monotonic()
        try:
            figures = stage.work(folder, progress)
        except RequestError as error:  # the request was checked before: something has changed since
            raise WorkError(f"{stage.name}: {error}") from error
        record = {
            "name": stage.name,
            "settings": stage.settings,
            "inputs": [self.folder(parent).name for parent in stage.inputs],
            "wall_s": round(time.monotonic() - started, 1),
            "figures": figures,
        }
        write_json(folder / _RECORD, record)


def figures_in(folder: Path) -> Figures:
    """Return what the work that made this stage folder returned."""
    figures: Figures = json.loads((folder / _RECORD).read_text())["figures"]
    return figures
