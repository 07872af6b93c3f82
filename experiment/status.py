"""How far a run is, told by its folder alone: what is there, what is claimed by a living process, what failed.

Nothing conducts the processes of a run, so any of them, or a process that only looks, finds the same.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from command.errors import RequestError
from command.files import delete_leftovers, model_from_json, write_json
from command.folders import is_locked
from experiment.claims import Claims
from experiment.results import RESULTS, RUN
from experiment.stages import Stage

__all__ = ["STATUS", "RunStatus", "StageStatus", "State", "StatusFile", "kept_status", "outlined", "status_of"]

STATUS = "status.json"
"""What `status_of` found last, written by the processes of the run while they work."""
_EVERY_S, _REST = 3.0, 50
"""Seconds between two of one process, and as a multiple of what it takes: many stages on a slow disk cost no time."""

State = Literal["done", "running", "interrupted", "waiting", "failed", "blocked"]
"""Of a stage. `interrupted`: the process that worked on it is gone, and the next one goes on; `blocked`: needs one that
failed."""

_NEVER = ("failed", "blocked")


class _Outline(BaseModel):
    """A stage as `run.json` names it."""

    folder: str = Field(pattern=r"^[\w.-]+$")
    inputs: list[str]
    cost: float = Field(gt=0, lt=1e12)

    @property
    def name(self) -> str:
        """The stage's name, without its hash."""
        return self.folder.rpartition("-")[0]


class _Begun(BaseModel):
    """What of `run.json` tells the stages."""

    experiment: str
    stages: list[_Outline] = []


class StageStatus(BaseModel):
    """How far a stage is."""

    folder: str
    inputs: list[str]
    state: State
    share: float
    """Done of the whole, 0 to 1."""
    left_s: float | None
    """Seconds of work that are left of it; None where nothing tells."""
    by: str | None = None
    """Host and process that works on it, or did last."""
    reason: str | None = None
    """Why it failed, or what it needs and failed; while it runs, how it goes."""

    @property
    def name(self) -> str:
        """The stage's name, without its hash."""
        return self.folder.rpartition("-")[0]


class RunStatus(BaseModel):
    """How far a run is."""

    experiment: str
    state: Literal["running", "finished", "stopped"]
    """`stopped`: no process works on it, and something is left; its command goes on."""
    counts: dict[State, int]
    left_s: float | None
    """Seconds until its end if as many processes go on as work now; None where nothing tells."""
    ends: datetime | None
    """The time then; None if it is not running."""
    written: datetime
    stages: list[StageStatus]


def outlined(stages: Iterable[Stage]) -> list[dict[str, Any]]:
    """Return stages as `run.json` names them."""
    return [
        _Outline(folder=one.key, inputs=[parent.key for parent in one.inputs], cost=one.cost).model_dump()
        for one in stages
    ]


def status_of(folder: Path) -> RunStatus:
    """Return how far the run in a folder is; writes nothing.

    Raises:
        RequestError: If no run was begun there, or by a version that did not name its stages.
    """
    if not (folder / RUN).is_file():
        raise RequestError(f"{folder}: no run was begun there, got no {RUN}; expected the folder of espalier run")
    begun = model_from_json(_Begun, folder / RUN, "give the command of the run again")
    if not begun.stages:
        raise RequestError(f"{folder / RUN}: names no stages; give the command of the run again")
    claims, found = Claims(folder / "stages"), dict[str, StageStatus]()
    rates = _seconds_per_cost(begun.stages, claims)
    for outline in begun.stages:
        found[outline.folder] = _stage_status(outline, folder, claims, found, rates)
    stages = list(found.values())
    is_alive = is_locked(folder) or any(one.state == "running" for one in stages)
    is_over = all(one.state == "done" or one.state in _NEVER for one in stages) and (folder / RESULTS).is_file()
    left_s, now = _left_s(stages), datetime.now(timezone.utc)
    return RunStatus(
        experiment=begun.experiment,
        state="running" if is_alive else "finished" if is_over else "stopped",
        counts=Counter(one.state for one in stages),
        left_s=left_s,
        ends=now + timedelta(seconds=left_s) if is_alive and left_s is not None else None,
        written=now,
        stages=stages,
    )


class StatusFile:
    """Writes `status.json` of a run's folder now and then."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0.0

    def refresh(self, at_once: bool = False) -> None:
        """Write it if a few seconds have passed, or at once."""
        began = time.monotonic()
        if began < self._next and not at_once:
            return
        with contextlib.suppress(RequestError, OSError):  # no work is lost for want of it
            write_json(self._folder / STATUS, status_of(self._folder).model_dump(mode="json"))
        ended = time.monotonic()
        self._next = ended + max(_EVERY_S, _REST * (ended - began))


@contextmanager
def kept_status(folder: Path) -> Iterator[None]:
    """Leave a status of the run as it is when the block has ended, however it ends, and no half of a note."""
    try:
        yield
    finally:
        delete_leftovers(folder / "stages/claims")
        StatusFile(folder).refresh(at_once=True)


def _stage_status(
    outline: _Outline, folder: Path, claims: Claims, before: Mapping[str, StageStatus], rates: Mapping[str, float]
) -> StageStatus:
    key, stages = outline.folder, folder / "stages"
    note = claims.note(key)
    blocking = next((one for one in outline.inputs if one in before and before[one].state in _NEVER), None)
    state: State
    reason = None
    if (stages / key).exists():
        state = "done"
    elif claims.is_claimed(key):
        state, reason = "running", note.words if note else None
    elif (stages / key).exists():  # finished just now
        state = "done"
    elif reason := claims.own_reason(key):
        state = "failed"
    elif blocking:
        state, reason = "blocked", f"needs {blocking}, which failed"
    else:
        state = "interrupted" if (stages / f"{key}.partial").exists() else "waiting"
    share = 1.0 if state == "done" else note.share if note and state in ("running", "interrupted") else 0.0
    rate = rates.get(outline.name, rates.get(""))
    whole_s = (note.whole_s if note else None) or (None if rate is None else outline.cost * rate)
    is_over = state == "done" or state in _NEVER
    return StageStatus(
        folder=key,
        inputs=outline.inputs,
        state=state,
        share=share,
        left_s=0.0 if is_over else None if whole_s is None else whole_s * (1 - share),
        by=f"{note.host}, process {note.pid}" if note and state != "waiting" else None,
        reason=reason or None,
    )


def _seconds_per_cost(outlines: Sequence[_Outline], claims: Claims) -> dict[str, float]:
    """Return the seconds that a unit of cost takes in stages of a name, and in all ("")."""
    seconds, costs = Counter[str](), Counter[str]()
    for one in outlines:
        if (note := claims.note(one.folder)) and note.whole_s:
            for name in ("", one.name):
                seconds[name] += note.whole_s  # type: ignore[assignment]
                costs[name] += one.cost  # type: ignore[assignment]
    return {name: seconds[name] / cost for name, cost in costs.items()}


def _left_s(stages: Sequence[StageStatus]) -> float | None:
    """Return the seconds until all are over, the work being shared by the processes that work now."""
    work = [one.left_s for one in stages]
    num_working = sum(one.state == "running" for one in stages)
    known = [seconds for seconds in work if seconds is not None]
    return sum(known) / max(num_working, 1) if len(known) == len(work) else None
