"""A whole experiment: check, run what is not finished, gather the result."""

import contextlib
import platform
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

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
from experiment.gathering import conditions_of, curves_of, notes_of, pictures_of
from experiment.layer_figures import histograms_in, widths_in
from experiment.leaves import Leaf
from experiment.measuring import RECORD
from experiment.pipeline import Plan, make_plan
from experiment.planned import check_disk
from experiment.redoing import check_or_redo
from experiment.report import write_report
from experiment.results import RESULTS, RUN, read_results, set_aside
from experiment.row_tracking import track_rows
from experiment.running import parent_process, run_stages, with_workers
from experiment.stages import LATENCY, StageStore
from experiment.status import kept_status, outlined
from experiment.steps import MODEL
from experiment.target_stages import EVALUATION, TARGET_STAGES

__all__ = ["begun", "join_experiment", "run_experiment", "why_failed"]


def run_experiment(
    config: ExperimentConfig,
    folder: Path,
    command: str,
    console: Console,
    is_quick: bool = False,
    jobs: int = 1,
    is_redone: bool = False,
    only_latency: bool = False,
) -> dict[str, Any] | None:
    """Run the unfinished stages, write results and report into `folder`, and return the results.

    A run that was killed goes on from its last finished step (training: from its last whole epoch). Rows of which a
    stage failed are not among the results, which name them. Where no target is run on this machine there are no
    results.

    Args:
        config: The experiment.
        folder: Run folder; created.
        command: For the results: how it was started.
        console: Shows progress.
        is_quick: As for `StageStore.check`.
        jobs: Processes that share the stages.
        is_redone: Whether finished stages that were changed are done again, and what was made from them.
        only_latency: Train nothing; build, evaluate and time what this machine can, see `scope_of`.

    Raises:
        RequestError: If another run holds the folder, something that `check_experiment` finds is wrong, a finished
            stage was changed, the disk is too small for what is left, or a training is left with `only_latency`.
        WorkError: If of every target a dense reference failed, or the measurement of times.
    """
    with begun(config, folder, command, console, is_quick, is_redone, only_latency) as (store, plan, about):
        claims = Claims(store.root)
        claims.clear()
        is_done = _finish(plan, config, store, console, with_workers(jobs - 1, folder))
        if reasons := why_failed(plan, claims):
            lost = [stage for stage in plan.stages if claims.reason(stage) and stage.name != LATENCY]
            plan = make_plan(config, store, reasons, only_latency)
            write_json(folder / RUN, {**about, "stages": outlined((*plan.stages, *lost))})
            _finish(plan, config, store, console)
        plan, untimed = _timed(plan, claims)
        reasons |= untimed
        store.check(plan.stages, is_quick=True)  # one that ran again may differ from what others were made from
        if not plan.rows:
            if reasons:
                raise WorkError(next(iter(reasons.values())))
            return None
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
    config: ExperimentConfig,
    folder: Path,
    command: str,
    console: Console,
    is_quick: bool = False,
    is_redone: bool = False,
    only_latency: bool = False,
) -> Iterator[tuple[StageStore, Plan, dict[str, Any]]]:
    """Begin a run, as `run_experiment`, and hold its folder; yield its stages and what `run.json` has besides."""
    with console.status("Checking data and settings ..."):
        check_experiment(config, folder, only_latency)
    with kept_status(folder), locked(folder):
        store = StageStore(folder / "stages")
        with console.status("Checking data and finished stages ..."):
            plan = make_plan(config, store, only_latency=only_latency)
            check_or_redo(plan.stages, store, console, is_quick, is_redone)
            if only_latency:
                _check_trained(plan, store, folder)
            check_disk(plan.stages, store)
        about = _about(config, command)
        if not all(map(store.is_finished, plan.stages)):
            set_aside(folder)
        write_json(folder / RUN, {**about, "stages": outlined(plan.stages)})
        yield store, plan, about


def join_experiment(config: ExperimentConfig, folder: Path, console: Console, only_latency: bool = False) -> None:
    """Do stages of a run that another process has begun in the folder, until none is left; write no results.

    Raises:
        RequestError: If no run of this experiment was begun there, or something that `check_experiment` finds is wrong.
    """
    check_begun(config, folder, "--join")
    check_experiment(config, folder, only_latency)
    store = StageStore(folder / "stages")
    _finish(make_plan(config, store, only_latency=only_latency), config, store, console, parent=parent_process())


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


def _check_trained(plan: Plan, store: StageStore, folder: Path) -> None:
    """Raise RequestError if more is left than what `--only latency` does."""
    left = [stage for stage in plan.stages if not store.is_finished(stage) and stage.name not in TARGET_STAGES]
    if left:
        raise RequestError(
            f"{folder}: {left[0].name} is not done, got --only latency; give the command without it first, in this "
            "folder and with the same config"
        )


def why_failed(plan: Plan, claims: Claims) -> dict[str, str]:
    """Return why rows are missing, by their names: a stage failed, or their dense reference did.

    Raises:
        WorkError: If no backbone has its dense references on any target.
    """
    own = {leaf.row: next(filter(None, map(claims.reason, leaf.stages)), None) for leaf in plan.leaves}
    families = {leaf.row: (leaf.backbone, leaf.target) for leaf in plan.leaves}
    dense = {families[leaf.row]: own[leaf.row] for leaf in plan.leaves if leaf.ordering == "dense" and own[leaf.row]}
    if dense and dense.keys() == set(families.values()):
        raise WorkError(next(iter(dense.values())))
    reasons = {row: own[row] or dense.get(family) for row, family in families.items()}
    return {row: reason for row, reason in reasons.items() if reason}


def _timed(plan: Plan, claims: Claims) -> tuple[Plan, dict[str, str]]:
    """Return the plan without the targets on which times could not be taken, and their rows with the reason."""
    reasons = {target: reason for target, stage in plan.latencies.items() if (reason := claims.reason(stage))}
    latencies = {target: stage for target, stage in plan.latencies.items() if target not in reasons}
    stages = tuple(stage for stage in plan.stages if not claims.reason(stage))
    rows = {leaf.row: reasons[leaf.target] for leaf in plan.rows if leaf.target in reasons}
    return replace(plan, latencies=latencies, stages=stages), rows


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
    records = {target: load_record(store.folder(stage) / RECORD) for target, stage in plan.latencies.items()}
    conditions = {
        target: {**conditions_of(record), "record": f"stages/{plan.latencies[target].key}/{RECORD}"}
        for target, record in records.items()
    }
    record = next(iter(records.values()))
    metric = metric_of(plan.data.val_boxes.place.annotations) if plan.data.boxes else None
    not_run = [{"target": target, "reason": reason} for target, reason in plan.left_out.items()]
    models = {leaf.row: store.folder(leaf.chain[-1]) / MODEL for leaf in plan.rows}
    first, *_ = plan.rows
    drawn = {leaf.row: models[leaf.row] for leaf in plan.rows if (leaf.seed, leaf.target) == (first.seed, first.target)}
    return {
        # of the measurement, which may be older than this command
        "created": record.created.isoformat(),
        "git_commit": record.git_commit,
        "versions": record.versions,
        "wall_s": round(sum(store.wall_s(stage) for stage in plan.stages), 1),
        "dataset": _dataset(config, plan.data),
        "rows": [_row(leaf, plan, store, folder, records[leaf.target], metric) for leaf in plan.rows],
        "latency": next(iter(conditions.values())),
        **({"targets": conditions} if len(config.targets) > 1 else {}),
        **({"not_run": not_run} if not_run else {}),
        "pictures": pictures_of(plan, store, folder) if plan.data.boxes else [],
        "notes": notes_of(plan, store),
        "curves": {leaf.row: curves_of(leaf, store, folder) for leaf in plan.rows},
        "draws": {leaf.row: _scores(leaf, store).get("draws", []) for leaf in plan.rows},
        "per_class": {leaf.row: _scores(leaf, store).get("per_class", {}) for leaf in plan.rows},
        "widths": {name: widths_in(file) for name, file in models.items()},
        "weights": histograms_in(drawn),
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


def _row(leaf: Leaf, plan: Plan, store: StageStore, folder: Path, record: Record, metric: str | None) -> dict[str, Any]:
    target, build = plan.targets[leaf.target], leaf.build
    built, scores = store.figures(build), _scores(leaf, store)
    times = store.figures(plan.latencies[leaf.target])["rows"][leaf.name]
    figures = {stage.name: store.figures(stage) for stage in (*leaf.chain, *leaf.evaluations)}
    return {
        "name": leaf.row,
        "ordering": leaf.ordering,
        "budget": leaf.budget,
        "backbone": leaf.backbone,
        "method": leaf.method,
        "prune_ratio": leaf.prune_ratio,
        "limit": leaf.limit,
        "preset": leaf.pruning and leaf.pruning.preset,
        "seed": leaf.seed,
        "target": leaf.target,
        "map": scores.get("map"),
        "map50": scores.get("map50"),
        "metric": metric,
        **{name: scores[name] for name in ("map_small", "map_medium", "map_large") if name in scores},
        "map_framework": figures.get("evaluate_detector", {}).get("map"),
        "top1": (figures.get("evaluate_classifier", {}) if plan.data.boxes else scores).get("top1"),
        "macs": built["macs"],
        "params": built["params"],
        **{key: value for key, value in times.items() if key != "name"},
        "precision_asked": target.precision,
        "device": record.device.name,
        "train_epochs": {name: figure["epochs"] for name, figure in figures.items() if "epochs" in figure},
        "train_macs": figures[leaf.chain[-1].name].get("train_macs"),
        "train_lr": {
            stage.name: stage.settings["schedule"]["lr"] for stage in leaf.chain if "epochs" in figures[stage.name]
        },
        "model": str((store.folder(leaf.chain[-1]) / MODEL).relative_to(folder)),
        "onnx": str((store.folder(build) / ONNX_NAME).relative_to(folder)),
        **({"engine": str((store.folder(build) / target.file).relative_to(folder))} if target.backend else {}),
        "stages": [store.folder(stage).name for stage in leaf.stages],
    }


def _scores(leaf: Leaf, store: StageStore) -> dict[str, Any]:
    """Return the figures that tell how good the leaf's model is, of its file where that was evaluated."""
    assert leaf.on is not None
    assert leaf.on.evaluation is not None
    if leaf.chain[-1].name.endswith("_detector"):
        return store.figures(leaf.on.evaluation)
    in_pytorch = store.figures(leaf.evaluations[0])
    is_of_file = leaf.on.evaluation.name == EVALUATION and in_pytorch["top1"] is not None  # a new head knows nothing
    return store.figures(leaf.on.evaluation) if is_of_file else in_pytorch
