"""What is left of a plan: why each stage must run, and how long and how large those of its name were."""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from command.errors import RequestError
from command.files import check_folder, shown
from experiment.changes import changes
from experiment.claims import Claims
from experiment.redoing import reasons_to_redo
from experiment.stages import Stage, StageRecord, StageStore, record_of, stage_folders

__all__ = ["check_disk", "free_bytes", "left_bytes", "planned"]

_MOST_CHANGES = 4
"""Differences that are named."""


def planned(stages: Sequence[Stage], store: StageStore) -> list[dict[str, Any]]:
    """Return of each stage its name, folder, whether it is done, why it must run, and seconds and bytes.

    The last two are those that it took, or that stages of its name took in this folder on average, or None.
    """
    alike = _finished(store)
    damaged = reasons_to_redo(stages, store, is_quick=True)
    rows = []
    for stage in stages:
        others = alike.get(stage.name, {})
        folder = store.folder(stage).name
        is_done = store.is_finished(stage) and stage.hash not in damaged
        measured = [others[folder]] if is_done else list(others.values())
        rows.append(
            {
                "name": stage.name,
                "folder": folder,
                "is_done": is_done,
                "why": None if is_done else _why(stage, store, damaged.get(stage.hash), others),
                "wall_s": statistics.fmean(one.wall_s for one in measured) if measured else None,
                "num_bytes": round(statistics.fmean(one.num_bytes for one in measured)) if measured else None,
            }
        )
    return rows


def check_disk(stages: Sequence[Stage], store: StageStore) -> None:
    """Raise RequestError if the disk is smaller than what is left, as far as stages of these names tell."""
    if all(map(store.is_finished, stages)):
        return
    need, free = left_bytes(planned(stages, store)), free_bytes(store.root)
    if need > free:
        raise RequestError(
            f"{store.root}: {free / 1e9:.1f} GB free on its disk, the stages that are left take about "
            f"{need / 1e9:.1f} GB; free some space, or give another --out"
        )


def left_bytes(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the bytes that the stages take which are not done; nothing for those of names that are not known."""
    return sum(row["num_bytes"] or 0 for row in rows if not row["is_done"])


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free on the disk of a folder, which need not exist."""
    return shutil.disk_usage(check_folder(folder)).free


def _finished(store: StageStore) -> dict[str, dict[str, StageRecord]]:
    """Return the records of all finished stages, by name and folder; damaged ones are left out."""
    records: dict[str, dict[str, StageRecord]] = {}
    for folder in stage_folders(store.root):
        try:
            record = record_of(folder)
        except (RequestError, OSError):
            continue
        records.setdefault(record.name, {})[folder.name] = record
    return records


def _why(stage: Stage, store: StageStore, fault: str | None, alike: Mapping[str, StageRecord]) -> str:
    """Return why a stage must run: what became of it, or what differs from the finished one that is most like it."""
    if fault:
        return f"damaged, {shown(fault)}; --redo does it again"
    if reason := Claims(store.root).own_reason(stage.key):
        return f"failed last time: {shown(reason)}"
    if store.is_begun(stage):
        return "was interrupted; goes on"
    if not alike:
        return "new: no stage of that name was done"
    found = min((_differences(stage, store, one) for one in alike.values()), key=len)
    more = f" and {len(found) - _MOST_CHANGES} more" if len(found) > _MOST_CHANGES else ""
    return ", ".join(found[:_MOST_CHANGES]) + more or "made by another version of Espalier"


def _differences(stage: Stage, store: StageStore, other: StageRecord) -> list[str]:
    inputs = [parent.name for parent in stage.inputs if store.folder(parent).name not in other.inputs]
    return [
        *(f"setting {change}" for change in changes(other.settings, stage.settings)),
        *(f"input {name} changed" for name in dict.fromkeys(inputs)),
    ]
