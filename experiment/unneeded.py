"""Stages in a run's folder that its config does not need, as another one did: listed, and deleted on request."""

import re
from pathlib import Path
from typing import Any

from command.errors import RequestError
from command.files import shown
from command.folders import locked
from experiment.begun import check_begun
from experiment.claims import Claims
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.redoing import delete_stage
from experiment.stages import StageStore, as_written

__all__ = ["lines_of", "prune_folder"]

_PARTIAL = ".partial"
_NAME = re.compile(r"[\w.-]+-[0-9a-f]{12}")


def prune_folder(config: ExperimentConfig, folder: Path, is_deleted: bool = False) -> dict[str, Any]:
    """Find the stages that the run of a folder does not need.

    What was changed since a stage wrote it, and what is no stage, stays.

    Args:
        config: The experiment, the one of the last run in the folder.
        folder: Run folder.
        is_deleted: Delete them.

    Returns:
        `stages`: folder and bytes of each; `num_bytes` of all; `is_deleted`.

    Raises:
        RequestError: If no run of this experiment was begun there, or a process works in the folder, or on one of them.
    """
    check_begun(config, folder, "--prune-folder")
    with locked(folder):
        store = StageStore(folder / "stages")
        Claims(store.root).check()
        needed = {stage.key for stage in make_plan(config, store).stages} | _of_latency(config, store)
        found = {name: size for name, size in _stages(store).items() if name.removesuffix(_PARTIAL) not in needed}
        for name in found if is_deleted else ():
            delete_stage(name.removesuffix(_PARTIAL), store)
    stages = [{"folder": name, "num_bytes": num_bytes} for name, num_bytes in found.items()]
    return {"stages": stages, "num_bytes": sum(found.values()), "is_deleted": is_deleted}


def _of_latency(config: ExperimentConfig, store: StageStore) -> set[str]:
    """Return what `--only latency` needs on this machine, which may have done it; nothing where no target runs."""
    try:
        return {stage.key for stage in make_plan(config, store, only_latency=True).stages}
    except RequestError:
        return set()


def lines_of(figures: dict[str, Any]) -> list[str]:
    """Return what `prune_folder` found, in lines for a terminal."""
    verb = "deleted" if figures["is_deleted"] else "not needed"
    lines = [f"{verb} {shown(row['folder'])}, {row['num_bytes'] / 1e6:.1f} MB" for row in figures["stages"]]
    return [*lines, f"{len(lines)} stages, {figures['num_bytes'] / 1e6:.1f} MB"]


def _stages(store: StageStore) -> dict[str, int]:
    """Return the bytes of all stages, by the names of their folders: begun ones, and finished ones as they were."""
    found: dict[str, int] = {}
    for folder in sorted(store.root.glob("*")):
        name = folder.name.removesuffix(_PARTIAL)
        if not folder.is_dir() or folder.is_symlink() or not _NAME.fullmatch(name):
            continue
        if folder.name != name:  # only what a process has worked on, which always leaves its lock
            if Claims(store.root).was_claimed(name):
                found[folder.name] = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
            continue
        try:
            record = as_written(folder, is_quick=True)
        except RequestError:
            continue
        if name == f"{record.name}-{record.hash}":
            found[name] = record.num_bytes
    return found
