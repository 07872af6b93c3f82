"""What a run would do: its stages, those that are there, and why each of the others must run. Nothing is written."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from command.errors import RequestError
from deploy.text import printable
from experiment.checks import check_experiment
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.stages import Stage, StageRecord, StageStore, record_of

__all__ = ["plan_figures", "plan_table"]


def plan_figures(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Return the stages of an experiment, and what is left of them.

    Args:
        config: The experiment.
        folder: Run folder; it need not exist.

    Returns:
        `stages`: name, folder, whether it is done, why it must run, and seconds and bytes that it took, or that stages
        of its name took in this folder; `num_rows`, `num_done` and `num_left`; `left_s` and `left_bytes`, None where
        no stage of some name has been measured.

    Raises:
        MissingFileError: As `check_experiment`.
        RequestError: As `check_experiment`, or if a finished stage was changed.
    """
    check_experiment(config, folder)
    store = StageStore(folder / "stages")
    plan = make_plan(config, store)
    store.check(plan.stages, is_quick=True)
    stages = [_described(stage, store) for stage in plan.stages]
    left = [stage for stage in stages if not stage["is_done"]]
    return {
        "experiment": config.name,
        "num_rows": len(plan.leaves),
        "num_done": len(stages) - len(left),
        "num_left": len(left),
        "left_s": _sum(left, "wall_s"),
        "left_bytes": _sum(left, "num_bytes"),
        "stages": stages,
    }


def plan_table(figures: dict[str, Any]) -> Table:
    """Return the table of `plan_figures`."""
    seconds, num_bytes = figures["left_s"], figures["left_bytes"]
    time = "not measured yet" if seconds is None else f"about {seconds / 60:.0f} min"
    disk = "" if num_bytes is None else f", {num_bytes / 1e6:.0f} MB"
    caption = f"{figures['num_rows']} rows; {figures['num_done']} stages done, {figures['num_left']} left: {time}{disk}"
    table = Table(caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for header in ("stage", "state", "s", "why"):
        table.add_column(header, justify="right" if header == "s" else "left")
    for stage in figures["stages"]:
        state = "done" if stage["is_done"] else "left"
        wall_s = "" if stage["wall_s"] is None else f"{stage['wall_s']:.0f}"
        table.add_row(*map(Text, (stage["folder"], state, wall_s, printable(stage["why"] or ""))))
    return table


def _sum(stages: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [stage[key] for stage in stages]
    return None if None in values else sum(values)


def _described(stage: Stage, store: StageStore) -> dict[str, Any]:
    folder, alike = store.folder(stage), _finished_alike(stage, store)
    is_done = store.is_finished(stage)
    measured = [record_of(folder)] if is_done else list(alike.values())
    return {
        "name": stage.name,
        "folder": folder.name,
        "is_done": is_done,
        "why": None if is_done else _why(stage, store, alike),
        "wall_s": statistics.fmean(one.wall_s for one in measured) if measured else None,
        "num_bytes": round(statistics.fmean(one.num_bytes for one in measured)) if measured else None,
    }


def _finished_alike(stage: Stage, store: StageStore) -> dict[str, StageRecord]:
    """Return the records of finished stages of that name, by folder; damaged ones are left out."""
    records = {}
    for folder in sorted(store.root.glob(f"{stage.name}-" + "[0-9a-f]" * 12)):
        try:
            records[folder.name] = record_of(folder)
        except (RequestError, OSError):
            continue
    return records


def _why(stage: Stage, store: StageStore, alike: Mapping[str, StageRecord]) -> str:
    """Return why a stage must run: what differs from the finished stage of its name that is most like it."""
    if store.is_begun(stage):
        return "was interrupted; goes on"
    if waits := [parent.name for parent in stage.inputs if not store.is_finished(parent)]:
        return f"{waits[0]} must run first"
    if not alike:
        return "no stage of that name was done"
    mine = {**stage.settings, "inputs": sorted(store.folder(parent).name for parent in stage.inputs)}
    changes = [_changed(mine, {**one.settings, "inputs": sorted(one.inputs)}) for one in alike.values()]
    fewest = min(changes, key=lambda names: len(names))
    return f"differs from a finished one in {', '.join(fewest)}"


def _changed(mine: dict[str, Any], others: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the names of settings that differ."""
    names: list[str] = []
    for key in sorted({*mine, *others}):
        one, other = mine.get(key), others.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names += _changed(one, other, f"{prefix}{key}.")
        elif json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True):
            names.append(f"{prefix}{key}")
    return names
