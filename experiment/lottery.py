"""Lottery tickets and their controls: each training once, resumable, and one table of their accuracies."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classify.image_data import GivenImages, ShapesData
from classify.mmengine_runner import using_threads
from classify.train import check_batch_size
from command.files import write_json
from command.folders import locked
from command.progress import RunProgress
from deploy.record import installed_versions
from experiment.cutting import cut_model
from experiment.lottery_config import LotteryConfig
from experiment.lottery_plan import Row, Study, new_classifier, plan_of
from experiment.stages import StageStore
from experiment.steps import MODEL
from experiment.subjects import DATA_FOLDER

__all__ = ["FIGURES", "lottery_table", "run_lottery"]

FIGURES = "lottery.json"
_SHARED = ("pruning", "cut", "start", "scale", "lr")
"""What rows have in common that differ in their seed alone."""


def run_lottery(config: LotteryConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Run the unfinished trainings, write the figures into `folder`, and return them.

    A study that was killed goes on from the last whole epoch of its training, and ends with the same files.

    Raises:
        MissingFileError: If data is missing.
        RequestError: If data or settings do not fit, another run holds the folder, or a finished stage was changed.
    """
    with console.status("Checking data and settings ..."):
        classes = _check(config)
    with locked(folder):
        with console.status("Checking data and finished stages ..."):
            images = config.data.placed(folder / DATA_FOLDER, config.image_size)
            store = StageStore(folder / "stages")
            study = Study(config, images, classes, images.fingerprints("train", "val"), store)
            rows, stages = plan_of(study)
            store.check(stages)
        left = [stage for stage in stages if not store.is_finished(stage)]
        progress = RunProgress(console, [stage.cost for stage in left])
        for stage in left:
            with progress.stage(stage.name), using_threads(config.num_threads):
                store.run(stage, progress)
        store.check(stages, is_quick=True)  # one that ran again may differ from what others were made from
        figures = _figures(config, rows, store, folder)
        write_json(folder / FIGURES, figures)
    return figures


def lottery_table(figures: Mapping[str, Any]) -> Table:
    """Return the accuracy of every cut and start, a column for each learning rate."""
    config, summary = figures["config"], figures["summary"]
    rates = list(dict.fromkeys(one["lr"] for one in summary))
    table = Table(
        title=Text(f"{config['backbone']['name']}, {_rewound(config)}"),
        caption=Text(
            f"top-1 in %{_over_seeds(config)}; removed: of the convolutions' weights\n"
            "scale: first weights as wide as for the whole layer (dense), or for what is left of it (sparse)"
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for header in ("pruning", "removed", "start", "scale"):
        table.add_column(header, no_wrap=True)
    for rate in rates:
        table.add_column(f"lr {rate:g}", justify="right", no_wrap=True)
    by_row: dict[tuple[Any, ...], dict[float, Mapping[str, Any]]] = {}
    for one in summary:
        by_row.setdefault(tuple(one[name] for name in _SHARED[:-1]), {})[one["lr"]] = one
    for (pruning, cut, start, scale), by_rate in by_row.items():
        removed = next(iter(by_rate.values()))["removed"]
        cells = (f"{pruning.replace('_', '-')} {cut}".strip(), f"{removed:.1%}" if removed else "", start, scale)
        table.add_row(*(Text(cell or "") for cell in cells), *(_accuracy(by_rate[rate]) for rate in rates))
    return table


def _check(config: LotteryConfig) -> tuple[str, ...]:
    """Return the classes; raise RequestError for what would fail later: the network is cut once with random weights."""
    data, side = config.data, config.image_size
    classes = data.check()
    net, card = new_classifier(config, classes, seed=0)
    check_batch_size(net, side, config.schedule.batch_size)
    for cut in config.channels:
        cut_model(net, card, cut.recipe, None, 0)
    for one in config.channel_rounds:
        slim, slim_card = net, card
        for _ in range(max(one.rounds)):
            slim, slim_card, _ = cut_model(slim, slim_card, one.cut.recipe, None, 0)
    config.check_rewinding(data.num_train if isinstance(data, ShapesData) else _num_images(data, side))
    return classes


def _num_images(data: GivenImages, side: int) -> int:
    images: Any = data.images("train", side)
    return len(images)


def _figures(config: LotteryConfig, rows: Iterable[Row], store: StageStore, folder: Path) -> dict[str, Any]:
    """Return what is the same in a study that was interrupted: no times."""
    found = [_row(row, store, folder) for row in rows]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault(tuple(row[name] for name in _SHARED), []).append(row)
    summary = [{**dict(zip(_SHARED, key, strict=True)), **_over(group)} for key, group in groups.items()]
    about = {"version": 1, "versions": installed_versions(), "config": config.model_dump(mode="json")}
    return {**about, "summary": summary, "rows": found}


def _row(row: Row, store: StageStore, folder: Path) -> dict[str, Any]:
    removed = store.figures(row.cutting)["removed"] if row.cutting else 0.0
    model = (store.folder(row.training) / MODEL).relative_to(folder).as_posix()
    about = {name: getattr(row, name) for name in (*_SHARED, "seed")}
    return {**about, "removed": removed, **store.figures(row.training), "model": model}


def _over(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of rows that differ in their seed: the deviation is the sample's, None of one seed."""
    top1 = [row["top1"] for row in rows]
    return {
        "removed": statistics.fmean(row["removed"] for row in rows),
        "num_seeds": len(rows),
        "top1_mean": statistics.fmean(top1),
        "top1_sd": statistics.stdev(top1) if len(top1) > 1 else None,
    }


def _accuracy(one: Mapping[str, Any]) -> str:
    deviation = "" if one["top1_sd"] is None else f" ± {100 * one['top1_sd']:.2f}"
    return f"{100 * one['top1_mean']:.2f}{deviation}"


def _rewound(config: Mapping[str, Any]) -> str:
    if epochs := config["rewind_epochs"]:
        return f"rewound to the end of epoch {epochs}"
    return f"rewound to iteration {config['rewind_iterations']}"


def _over_seeds(config: Mapping[str, Any]) -> str:
    num = len(config["seeds"])
    return f", mean and standard deviation over {num} seeds" if num > 1 else f", of seed {config['seeds'][0]} alone"
