"""A whole experiment: check, run what is not finished, gather the result."""

import contextlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from classify.curve import CURVE
from classify.image_data import GivenImages
from command.errors import RequestError, WorkError
from command.files import write_json
from command.folders import locked
from command.progress import RunProgress
from deploy.deployment import ONNX_NAME
from deploy.record import Record, git_commit, installed_versions, load_record
from detect.annotations import read_annotations
from detect.config import GivenBoxes
from detect.evaluate import metric_of
from experiment.begun import check_begun
from experiment.checks import check_experiment
from experiment.claims import Claims
from experiment.config import ExperimentConfig
from experiment.data import Data
from experiment.layer_figures import histograms_in, widths_in
from experiment.leaves import Leaf
from experiment.measuring import DETECTIONS, RECORD
from experiment.pipeline import Plan, make_plan
from experiment.planned import check_disk
from experiment.redoing import check_or_redo
from experiment.report import write_report
from experiment.results import RESULTS, RUN, read_results, set_aside
from experiment.row_tracking import track_rows
from experiment.running import parent_process, run_stages, with_workers
from experiment.stages import StageStore
from experiment.status import kept_status, outlined
from experiment.steps import MODEL

__all__ = ["begun", "join_experiment", "run_experiment", "why_failed"]

_NUM_PICTURES = 4


def run_experiment(
    config: ExperimentConfig,
    folder: Path,
    command: str,
    console: Console,
    is_quick: bool = False,
    jobs: int = 1,
    is_redone: bool = False,
) -> dict[str, Any]:
    """Run the unfinished stages, write results and report into `folder`, and return the results.

    A run that was killed goes on from its last finished step (training: from its last whole epoch). Rows of which a
    stage failed are not among the results, which name them.

    Args:
        config: The experiment.
        folder: Run folder; created.
        command: For the results: how it was started.
        console: Shows progress.
        is_quick: As for `StageStore.check`.
        jobs: Processes that share the stages.
        is_redone: Whether finished stages that were changed are done again, and what was made from them.

    Raises:
        RequestError: If another run holds the folder, something that `check_experiment` finds is wrong, a finished
            stage was changed, or the disk is too small for what is left.
        WorkError: If a dense reference failed, or the measurement of times.
    """
    with begun(config, folder, command, console, is_quick, is_redone) as (store, plan, about):
        claims = Claims(store.root)
        claims.clear()
        is_done = _finish(plan, config, store, console, with_workers(jobs - 1, folder))
        if reasons := why_failed(plan, claims):
            lost = [stage for stage in plan.stages if claims.reason(stage) and stage is not plan.latency]
            plan = make_plan(config, store, without=reasons)
            write_json(folder / RUN, {**about, "stages": outlined((*plan.stages, *lost))})
            _finish(plan, config, store, console)
        if reason := claims.reason(plan.latency):
            raise WorkError(reason)
        store.check(plan.stages, is_quick=True)  # one that ran again may differ from what others were made from
        if is_done:
            with contextlib.suppress(RequestError):  # results that are missing or damaged are written anew
                about["command"] = read_results(folder / RESULTS)["command"]
        missing = [{"name": name, "reason": reason} for name, reason in reasons.items()]
        results = {**about, **_results(config, plan, store, folder), **({"failed": missing} if missing else {})}
        write_json(folder / RESULTS, results)
        track_rows(config.tracking, results["rows"], folder)
        try:
            write_report(results, folder)
        except RequestError as error:  # the request was checked before: a picture has changed since
            raise WorkError(str(error)) from error
    return results


@contextlib.contextmanager
def begun(
    config: ExperimentConfig, folder: Path, command: str, console: Console, is_quick: bool, is_redone: bool = False
) -> Iterator[tuple[StageStore, Plan, dict[str, Any]]]:
    """Begin a run, as `run_experiment`, and hold its folder; yield its stages and what `run.json` has besides."""
    with console.status("Checking data and settings ..."):
        check_experiment(config, folder)
    with kept_status(folder), locked(folder):
        store = StageStore(folder / "stages")
        with console.status("Checking data and finished stages ..."):
            plan = make_plan(config, store)
            check_or_redo(plan.stages, store, console, is_quick, is_redone)
            check_disk(plan.stages, store)
        about = _about(config, command)
        if not all(map(store.is_finished, plan.stages)):
            set_aside(folder)
        write_json(folder / RUN, {**about, "stages": outlined(plan.stages)})
        yield store, plan, about


def join_experiment(config: ExperimentConfig, folder: Path, console: Console) -> None:
    """Do stages of a run that another process has begun in the folder, until none is left; write no results.

    Raises:
        RequestError: If no run of this experiment was begun there, or something that `check_experiment` finds is wrong.
    """
    check_begun(config, folder, "--join")
    check_experiment(config, folder)
    store = StageStore(folder / "stages")
    _finish(make_plan(config, store), config, store, console, parent=parent_process())


def _finish(
    plan: Plan,
    config: ExperimentConfig,
    store: StageStore,
    console: Console,
    workers: contextlib.AbstractContextManager[None] | None = None,
    parent: int | None = None,
) -> bool:
    """Do what is left of a plan; return whether nothing was."""
    left = [stage for stage in plan.stages if not store.is_finished(stage)]
    if left:
        with workers or contextlib.nullcontext():
            run_stages(left, store, RunProgress(console, [stage.cost for stage in left]), config.num_threads, parent)
    return not left


def why_failed(plan: Plan, claims: Claims) -> dict[str, str]:
    """Return why rows are missing, by their names: a stage failed, or their dense reference did.

    Raises:
        WorkError: If no backbone has its dense references.
    """
    own = {leaf.name: next(filter(None, map(claims.reason, leaf.stages)), None) for leaf in plan.leaves}
    dense = {leaf.backbone: reason for leaf in plan.leaves if leaf.ordering == "dense" and (reason := own[leaf.name])}
    if dense.keys() == {leaf.backbone for leaf in plan.leaves}:
        raise WorkError(next(iter(dense.values())))
    reasons = {leaf.name: own[leaf.name] or dense.get(leaf.backbone) for leaf in plan.leaves}
    return {name: reason for name, reason in reasons.items() if reason}


def _about(config: ExperimentConfig, command: str) -> dict[str, Any]:
    return {
        "version": 1,
        "experiment": config.name,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **installed_versions()},
        "config": config.model_dump(mode="json"),
        "num_threads": config.num_threads,
    }


def _results(config: ExperimentConfig, plan: Plan, store: StageStore, folder: Path) -> dict[str, Any]:
    record = load_record(store.folder(plan.latency) / RECORD)
    times = store.figures(plan.latency)["rows"]
    metric = metric_of(plan.data.val_boxes.place.annotations) if plan.data.boxes else None
    models = {leaf.name: store.folder(leaf.chain[-1]) / MODEL for leaf in plan.leaves}
    first_seed = {leaf.name: models[leaf.name] for leaf in plan.leaves if leaf.seed == plan.leaves[0].seed}
    return {
        # of the measurement, which may be older than this command
        "created": record.created.isoformat(),
        "git_commit": record.git_commit,
        "versions": record.versions,
        "wall_s": round(sum(store.wall_s(stage) for stage in plan.stages), 1),
        "dataset": _dataset(config, plan.data),
        "rows": [_row(leaf, store, folder, times[leaf.name], record, metric) for leaf in plan.leaves],
        "latency": {**_conditions(record), "record": f"stages/{store.folder(plan.latency).name}/{RECORD}"},
        "pictures": _pictures(plan, store, folder) if plan.data.boxes else [],
        "notes": _notes(plan, store),
        "curves": {leaf.name: _curves(leaf, store, folder) for leaf in plan.leaves},
        "draws": {leaf.name: _scored(leaf, store).get("draws", []) for leaf in plan.leaves},
        "per_class": {leaf.name: _scored(leaf, store).get("per_class", {}) for leaf in plan.leaves},
        "widths": {name: widths_in(file) for name, file in models.items()},
        "weights": histograms_in(first_seed),
    }


def _dataset(config: ExperimentConfig, data: Data) -> dict[str, Any]:
    """Return what the results say of the data that the models are evaluated on."""
    if data.boxes is None:
        images: Any = data.val_images.place.images("val", config.classification.image_size)
        name = _name_of(config.classification.data, "generated shapes")
        return {
            "name": name,
            "num_train": data.num_images,
            "num_val": len(images),
            "classes": list(data.image_classes),
            "val": data.val_images.key,
        }
    val = read_annotations(data.boxes.val.place.annotations)
    return {
        "name": _name_of(config.detecting.data, "generated scenes"),
        "num_train": data.boxes.num_scenes,
        "num_val": len(val["images"]),
        "classes": [category["name"] for category in val["categories"]],
        "val": data.boxes.val.key,
    }


def _name_of(data: Any, generated: str) -> str:
    paths = (data.root,) if isinstance(data, GivenBoxes) else data.paths if isinstance(data, GivenImages) else ()
    return Path(paths[0]).name if paths else generated


def _row(
    leaf: Leaf, store: StageStore, folder: Path, time_row: Mapping[str, Any], record: Record, metric: str | None
) -> dict[str, Any]:
    assert leaf.export is not None
    exported = store.figures(leaf.export)
    figures = {stage.name: store.figures(stage) for stage in (*leaf.chain, *leaf.evaluations)}
    return {
        "name": leaf.name,
        "ordering": leaf.ordering,
        "budget": leaf.budget,
        "backbone": leaf.backbone,
        "method": leaf.method,
        "prune_ratio": leaf.prune_ratio,
        "limit": leaf.limit,
        "preset": leaf.pruning and leaf.pruning.preset,
        "seed": leaf.seed,
        "map": exported.get("map"),
        "map50": exported.get("map50"),
        "metric": metric,
        **{name: exported[name] for name in ("map_small", "map_medium", "map_large") if name in exported},
        "map_framework": figures.get("evaluate_detector", {}).get("map"),
        "top1": figures.get("evaluate_classifier", {}).get("top1"),
        "macs": exported["macs"],
        "params": exported["params"],
        **{key: value for key, value in time_row.items() if key != "name"},
        "device": record.device.name,
        "train_epochs": {name: figure["epochs"] for name, figure in figures.items() if "epochs" in figure},
        "train_macs": figures[leaf.chain[-1].name].get("train_macs"),
        "train_lr": {
            stage.name: stage.settings["schedule"]["lr"] for stage in leaf.chain if "epochs" in figures[stage.name]
        },
        "model": str((store.folder(leaf.chain[-1]) / MODEL).relative_to(folder)),
        "onnx": str((store.folder(leaf.export) / ONNX_NAME).relative_to(folder)),
        "stages": [store.folder(stage).name for stage in leaf.stages],
    }


def _scored(leaf: Leaf, store: StageStore) -> dict[str, Any]:
    """Return the figures of the stage that tells how good the leaf's model is."""
    stage = leaf.export if leaf.chain[-1].name.endswith("_detector") else leaf.evaluations[0]
    assert stage is not None
    return store.figures(stage)


def _conditions(record: Record) -> dict[str, Any]:
    first = next(iter(record.candidates.values()))
    return {
        "device": record.device.text,
        "is_gpu": record.is_gpu,
        "runtime": f"{first.runtime} {record.versions.get(first.runtime, '')}".strip(),
        "precision": first.precision,
        "input_shape": list(first.input_shapes["image"]),
        "warmup": record.conditions.warmup,
        "rounds": record.conditions.rounds,
        "order": "alternating",
        "throttled_rounds": record.conditions.throttled_rounds,
    }


def _pictures(plan: Plan, store: StageStore, folder: Path) -> list[dict[str, Any]]:
    """Return a few validation images with ground truth and what every detector of the first seed found."""
    val = plan.data.val_boxes.place
    data = read_annotations(val.annotations)
    labels = {category["id"]: label for label, category in enumerate(data["categories"])}
    first_seed = [leaf for leaf in plan.leaves if leaf.seed == plan.leaves[0].seed and leaf.export]
    found = {
        leaf.name: json.loads((store.folder(leaf.export) / DETECTIONS).read_text())
        for leaf in first_seed
        if leaf.export
    }
    images = data["images"][:: max(1, len(data["images"]) // _NUM_PICTURES)][:_NUM_PICTURES]
    return [
        {
            "file": os.path.relpath(val.images / image["file_name"], folder),
            "size_hw": [image["height"], image["width"]],
            "truth": _boxes(data["annotations"], image["id"], labels),
            "detections": {name: _boxes(rows, image["id"], labels) for name, rows in found.items()},
        }
        for image in images
    ]


def _boxes(rows: list[dict[str, Any]], image_id: int, labels: Mapping[int, int]) -> list[dict[str, Any]]:
    boxes = []
    for row in rows:
        if row["image_id"] == image_id:
            x, y, w, h = row["bbox"]
            box = {"box_xyxy": [x, y, x + w, y + h], "label": labels[row["category_id"]]}
            boxes.append({**box, "score": row["score"]} if "score" in row else box)
    return boxes


def _curves(leaf: Leaf, store: StageStore, folder: Path) -> dict[str, str]:
    """Return the curve files of its trainings; stages of earlier versions have none."""
    files = {stage.name: store.folder(stage) / CURVE for stage in leaf.chain}
    return {name: file.relative_to(folder).as_posix() for name, file in files.items() if file.is_file()}


def _notes(plan: Plan, store: StageStore) -> list[str]:
    """Return one sentence per layer that was not pruned, with its reason."""
    untouched = {
        f"Not pruned: {decision['group']}, {decision['reason']}."
        for leaf in plan.leaves
        for stage in leaf.chain
        for decision in store.figures(stage).get("untouched", [])
    }
    return sorted(untouched)
