"""Which layers of a trained model are better skipped: every group is cut alone, and the loss is measured.

Every measurement is saved as one line: a killed study resumes, and one that is repeated with another limit or more
ratios measures only the new points.
"""

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from rich.console import Console
from rich.table import Table
from rich.text import Text

from classify.provenance import origin
from command.config import Part, check_name
from command.errors import RequestError
from command.files import model_from_json, write_json, written_atomically
from command.folders import locked
from command.options import setting
from command.own_code import is_own_code
from command.progress import RunProgress
from detect.traced import PARTS
from experiment.cuts import Ratio
from experiment.cutting import ModelData
from experiment.sensitivity_plot import METRICS, sensitivity_plot
from experiment.subjects import DATA_FOLDER, Subject, subject_of
from prune.choose.criteria import CRITERIA, REDUCTIONS, is_data_driven
from prune.choose.recipe import Recipe
from prune.sensitivity import DENSE, Evaluate, Sensitivity, Trial, sensitivity, skip_list

__all__ = ["FIGURES", "PICTURE", "SensitivityConfig", "measure_sensitivity", "next_command", "sensitivity_table"]

FIGURES, PICTURE = "sensitivity.json", "sensitivity.png"

_POINTS, _RECORD = "points.jsonl", "study.json"


def _without_data(name: str) -> str:
    """Return the name of a criterion that needs no data."""
    if is_own_code(name) and not is_data_driven(name):
        return name
    return check_name(name, [known for known in CRITERIA if not is_data_driven(known)])


_IN_L1_HALF = {"prune_ratio": 0.5, "criterion": "l1", "reduction": "sum", "round_to": 8, "parts": ("backbone",)}
"""What configs/prune/l1_half.py cuts by default."""


class SensitivityConfig(Part):
    """What `espalier prune sensitivity` measures, and what it recommends to skip."""

    data: Annotated[ModelData, Field(discriminator="type")]
    """Its validation images are used: shapes, folder, npz or cifar for a classifier, scenes, coco or voc for a
    detector."""
    num_images: int | None = Field(500, ge=1)
    """How many of them, evenly spread over the set; None for all."""
    prune_ratios: tuple[Ratio, ...] = Field((0.25, 0.5, 0.75), min_length=1)
    """Shares of channels removed from every group, alone."""
    criterion: Annotated[str, AfterValidator(_without_data)] = "l1"
    """One that needs no data."""
    reduction: Annotated[str, AfterValidator(lambda name: check_name(name, REDUCTIONS))] = "sum"
    """How the scores of layers that are cut together become one: sum, mean, max or first."""
    round_to: int = Field(8, ge=1, le=65_536)
    """Kept channels are moved to the nearest multiple of it."""
    skip: tuple[str, ...] = ()
    """Layer patterns that are not measured, and skipped in any case."""
    parts: tuple[Annotated[str, AfterValidator(lambda name: check_name(name, PARTS))], ...] = PARTS
    """Parts of a detector whose groups are measured."""
    prune_ratio: Ratio = 0.5
    """The one of `prune_ratios` that the recommendation is made for."""
    max_drop: float = Field(0.05, ge=0, le=1)
    """A group that loses more of the score (0 to 1) when cut alone is better skipped."""

    @property
    def recipes(self) -> list[Recipe]:
        """One for every ratio."""
        recipe = Recipe(0.0, criterion=self.criterion, reduction=self.reduction, round_to=self.round_to, skip=self.skip)
        return [replace(recipe, prune_ratio=ratio) for ratio in sorted(set(self.prune_ratios))]

    @model_validator(mode="after")
    def _measured(self) -> "SensitivityConfig":
        if self.prune_ratio not in self.prune_ratios:
            raise RequestError(
                f"prune_ratio: not measured, got {self.prune_ratio}; expected one of prune_ratios {self.prune_ratios}"
            )
        return self


def measure_sensitivity(
    model: Path,
    config: SensitivityConfig,
    folder: Path,
    force: bool,
    console: Console,
    mmdet: Path | None = None,
) -> dict[str, Any]:
    """Measure all missing points; write figures and picture into `folder`, and return the figures.

    Raises:
        MissingFileError: If the model file or data is missing.
        RequestError: If model, data and config do not fit, another study uses the folder or left it behind and
            `force` is not given, or the model's own score is 0.
        WorkError: If a score is not a finite number.
    """
    with console.status("Checking model and data ..."):
        subject = _subject(model, config, mmdet)
    made_from = _made_from(model, config, subject)
    _check_ours(folder)
    with locked(folder):
        _claim(folder, made_from, config, force)
        evaluate, num_images = subject.evaluator(folder)
        result = _measure(subject, evaluate, _Points(folder / _POINTS), model, console)
        about = {"model": str(model), "kind": subject.kind, "metric": subject.metric, "num_images": num_images}
        skip = skip_list(result, config.prune_ratio, config.max_drop)
        recommendation = {"prune_ratio": config.prune_ratio, "max_drop": config.max_drop, "skip": list(skip)}
        figures = json.loads(json.dumps({**about, **asdict(result), "recommendation": recommendation}))
        write_json(folder / FIGURES, {**figures, "made_from": made_from, "config": config.model_dump(mode="json")})
        with written_atomically(folder / PICTURE) as path:
            sensitivity_plot(figures).savefig(path, format="png")
    return figures


def next_command(model: Path, config: SensitivityConfig, figures: Mapping[str, Any]) -> str:
    """Return the command that cuts all but the skipped groups, ready to paste."""
    settable = {name: getattr(config, name) for name in _IN_L1_HALF if name != "parts" or figures["kind"] == "detector"}
    changes = {name: value for name, value in settable.items() if value != _IN_L1_HALF[name]}
    skip = (*config.skip, *figures["recommendation"]["skip"])
    if skip:
        changes["skip"] = skip
    settings = [word for name, value in changes.items() for word in ("--set", setting(name, value))]
    return shlex.join(["espalier", "prune", "l1_half", str(model), *settings])


def sensitivity_table(figures: Mapping[str, Any]) -> Table:
    """Return a table of every group with the score lost and the MACs saved; below it, why others were not measured."""
    ratio, skip = (figures["recommendation"][name] for name in ("prune_ratio", "skip"))
    title = f"{METRICS[figures['metric']]} lost when a group is cut alone, in points"
    table = Table(title=title, caption=Text("\n".join(_captions(figures))), caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("group", overflow="fold")
    ratios = [point["prune_ratio"] for curve in figures["curves"][:1] for point in curve["points"]]
    for header in ("width", *(f"-{r:.0%}" for r in ratios), "won", "lost/won"):
        table.add_column(header, justify="right", no_wrap=True)
    for curve in figures["curves"]:
        table.add_row("skip" if curve["group"] in skip else "", *map(Text, _cells(curve, ratio, figures["macs"])))
    return table


def _cells(curve: Mapping[str, Any], ratio: float, macs: int) -> list[str]:
    point = next(point for point in curve["points"] if point["prune_ratio"] == ratio)
    drops = [f"{100 * p['drop']:.1f}" for p in curve["points"]]
    per_won = "" if point["lost_per_won"] is None else f"{point['lost_per_won']:.2f}"
    return [curve["group"], str(curve["num_channels"]), *drops, f"{point['macs_won'] / macs:.1%}", per_won]


def _captions(figures: Mapping[str, Any]) -> Iterator[str]:
    advice, num_images = figures["recommendation"], figures["num_images"]
    step = f", one of which is {100 / num_images:.2g} points" if figures["kind"] == "classifier" else ""
    yield f"dense {100 * figures['score']:.2f}, on {num_images:,} images{step}; nothing is trained after a cut"
    yield f"skip: more than {100 * advice['max_drop']:g} points lost at {advice['prune_ratio']:.0%}"
    yield f"won: of the MACs, at {advice['prune_ratio']:.0%}; lost/won: points lost for each percent of them"
    reasons: dict[str, list[str]] = {}
    for decision in figures["untouched"]:
        reasons.setdefault(decision["reason"], []).append(decision["group"])
    yield from (f"not measured: {', '.join(groups)} ({reason})" for reason, groups in reasons.items())


def _subject(model: Path, config: SensitivityConfig, mmdet: Path | None) -> Subject:
    return subject_of(model, config.data, config.num_images, config.recipes, config.parts, mmdet)


def _made_from(model: Path, config: SensitivityConfig, subject: Subject) -> dict[str, Any]:
    """Return all that a measured point depends on; points stay valid for other ratios and limits."""
    scored = config.model_dump(mode="json", include={"data", "num_images", "criterion", "reduction"})
    return {**origin(config, model, subject.data), "config": scored}


def _check_ours(folder: Path) -> None:
    others = [path.name for path in folder.iterdir() if path.name[0] != "."] if folder.is_dir() else []
    if others and not (folder / _RECORD).is_file():
        raise RequestError(f"{folder}: holds other files, got {min(others)}; expected a new folder, or a study's own")


def _claim(folder: Path, made_from: Mapping[str, Any], config: SensitivityConfig, force: bool) -> None:
    """Mark the folder as this study's; with `force`, files of another study are deleted, and no others."""
    record = folder / _RECORD
    if record.is_file() and not _is_of(record, made_from):
        if not force:
            raise RequestError(
                f"{folder}: left by a study of another model, data or criterion, or damaged; "
                "give another --out, or --force"
            )
        for name in (_POINTS, FIGURES, PICTURE):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / DATA_FOLDER, ignore_errors=True)
    about = {"config": config.model_dump(mode="json"), "torch": torch.__version__}
    write_json(record, {"made_from": made_from, **about})


class _Study(BaseModel):
    made_from: dict[str, JsonValue]


def _is_of(record: Path, made_from: Mapping[str, Any]) -> bool:
    try:
        return model_from_json(_Study, record, "").made_from == made_from
    except RequestError:
        return False


class _Line(BaseModel):
    """A measured score."""

    model_config = ConfigDict(strict=True, extra="forbid")
    group: str
    num_kept: int = Field(ge=0)
    score: float = Field(ge=0, le=1)


class _Points:
    """Measured scores, one line each; a line that a kill cut short is measured again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with written_atomically(path) as partial:
                partial.write_bytes(whole)
        self.known = dict(map(self._parsed, whole.splitlines()))

    def add(self, trial: Trial, score: float) -> None:
        """Append a line."""
        with self._path.open("a") as file:
            file.write(json.dumps({**asdict(trial), "score": score}) + "\n")

    def _parsed(self, line: bytes) -> tuple[Trial, float]:
        try:
            point = _Line.model_validate_json(line)
        except ValidationError as error:
            got = line[:60].decode(errors="replace")
            raise RequestError(f"{self._path}: not a measured point, got {got!r}; delete that line") from error
        return Trial(point.group, point.num_kept), point.score


def _measure(subject: Subject, evaluate: Evaluate, points: _Points, model: Path, console: Console) -> Sensitivity:
    left = [trial for trial in subject.trials if trial not in points.known]
    if DENSE in points.known:
        _check_learned(model, subject.metric, points.known[DENSE])
    progress = RunProgress(console, [1.0])
    num_done = 0

    def measured(trial: Trial, score: float) -> None:
        nonlocal num_done
        num_done += 1
        points.add(trial, score)
        progress(num_done, len(left))
        if trial == DENSE:
            _check_learned(model, subject.metric, score)

    with progress.stage(f"evaluate {len(left)} models") if left else nullcontext():
        return sensitivity(subject.trials, evaluate, points.known, measured)


def _check_learned(model: Path, metric: str, score: float) -> None:
    if score <= 0:
        raise RequestError(f"{model}: has no accuracy to lose, got {metric} {score:g}; expected a trained model")
