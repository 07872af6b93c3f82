"""What a run would do: its stages, those that are there, and why each of the others must run. Nothing is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from deploy.text import printable
from experiment.checks import check_experiment
from experiment.config import ExperimentConfig
from experiment.pipeline import make_plan
from experiment.planned import free_bytes, planned
from experiment.stages import StageStore

__all__ = ["plan_figures", "plan_table"]


def plan_figures(config: ExperimentConfig, folder: Path, only_latency: bool = False) -> dict[str, Any]:
    """Return the stages of an experiment, and what is left of them.

    Args:
        config: The experiment.
        folder: Run folder; it need not exist.
        only_latency: As for `make_plan`.

    Returns:
        `stages`, as `planned` returns them; `num_rows`, `num_done` and `num_left`; `left_s` and `left_bytes`, None
        where no stage of some name has been measured; `free_bytes` of the disk.

    Raises:
        MissingFileError: As `check_experiment`.
        RequestError: As `check_experiment`.
    """
    check_experiment(config, folder, only_latency)
    store = StageStore(folder / "stages")
    plan = make_plan(config, store, only_latency=only_latency)
    stages = planned(plan.stages, store)
    left = [stage for stage in stages if not stage["is_done"]]
    return {
        "experiment": config.name,
        "num_rows": len(plan.rows),
        "num_done": len(stages) - len(left),
        "num_left": len(left),
        "left_s": _sum(left, "wall_s"),
        "left_bytes": _sum(left, "num_bytes"),
        "free_bytes": free_bytes(folder),
        "stages": stages,
    }


def plan_table(figures: dict[str, Any]) -> Table:
    """Return the table of `plan_figures`."""
    seconds, num_bytes = figures["left_s"], figures["left_bytes"]
    time = "not measured yet" if seconds is None else f"about {seconds / 60:.0f} min"
    free = figures["free_bytes"] / 1e9
    disk = "" if num_bytes is None else f", {num_bytes / 1e6:.0f} MB of {free:.1f} GB free"
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
