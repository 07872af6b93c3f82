"""What `results.json` holds. It is checked when it is read, because a file may be damaged, or written by anyone."""

import posixpath
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationInfo, field_validator

from command.errors import RequestError
from command.files import make_folder, model_from_json
from experiment.comparison import family_of

__all__ = ["REPORT", "RESULTS", "RUN", "Results", "read_results", "set_aside"]

RESULTS = "results.json"
RUN = "run.json"
"""What a run writes first: its command, settings and stages."""
REPORT = (
    *("report.html", "results.csv", "summary.csv", "methods.csv", "differences.csv", "classes.csv", "widths.csv"),
)
"""What is written of the results."""
_EARLIER = "earlier"


def _relative(path: str) -> str:
    if posixpath.isabs(path) or posixpath.normpath(path) != path:
        raise RequestError(f"not a relative path, {path!r:.99}")
    return path


def _inside(path: str) -> str:
    if _relative(path).startswith(".."):
        raise RequestError(f"outside the run folder, {path!r:.99}")
    return path


# Bounds that no real figure reaches, so that sums and plots of what passes are finite.
_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Positive = Annotated[float, Field(gt=0, lt=1e12)]
_Rate = Annotated[float, Field(gt=0, le=1e30)]
_Share = Annotated[float, Field(ge=0, le=1)]
_Pixels = Annotated[int, Field(gt=0, lt=2**31)]
_Place = Annotated[float, Field(gt=-1e9, lt=1e9)]
_Inside = Annotated[str, AfterValidator(_inside)]


class _Checked(BaseModel):
    """Base of every part: no conversions, no NaN; keys that a later version adds are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Row(_Checked):
    """One detector; the order is that of the columns in `results.csv`."""

    __pydantic_extra__: dict[str, str | _Count | float | None] = Field(init=False)
    name: str
    ordering: Literal["dense", "dense_longer", "prune_transfer", "transfer_prune", "scratch_transfer"]
    budget: Literal["finetune", "untrained", "scratch_e", "scratch_b"] | None
    backbone: str | None = None
    """None in earlier versions, which had one."""
    method: str | None
    prune_ratio: Annotated[float, Field(ge=0, lt=1)] | None
    """None where there is a preset."""
    limit: str | None = None
    """Share of a cost that was kept, as "macs 0.5", in place of a ratio; earlier versions had none."""
    preset: str | None = None
    """Name of a slim network of the literature; earlier versions had none."""
    seed: _Count
    map: _Share | None
    """None where classifiers are the result, like the next two."""
    map50: _Share | None
    metric: Literal["coco", "voc07"] | None = "coco"
    """What both are: COCO's, or of VOC the AP at an IoU of 0.5, over 11 recalls, twice. Earlier versions had COCO's."""
    map_framework: _Share | None
    map_small: _Share | None = None
    """Of objects by their size, like the next two; None where there are none, and in earlier versions."""
    map_medium: _Share | None = None
    map_large: _Share | None = None
    top1: _Share | None
    macs: Annotated[_Count, Field(gt=0)]
    params: Annotated[_Count, Field(gt=0)]
    runtime: str
    precision: str
    latency_ms: _Positive
    latency_p90_ms: _Positive
    latency_p99_ms: _Positive
    speedup: _Positive
    speedup_low: _Positive | None
    speedup_high: _Positive | None
    mac_reduction: _Positive
    device: str
    train_epochs: dict[str, _Count]
    train_macs: Annotated[int, Field(ge=0, lt=10**30)] | None = None
    """Multiply-adds of all trainings that its weights went through; None in earlier versions."""
    train_lr: dict[str, _Rate] = {}
    """Training's name -> its peak learning rate; earlier versions had none."""
    target: str | None = None
    """Name of where it runs; None in earlier versions, like the next two."""
    precision_asked: str | None = None
    """`precision` is what was found."""
    engine: _Inside | None = None
    """File that is run, where it is not the ONNX file."""
    model: _Inside
    onnx: _Inside
    stages: list[str] = []
    """Names of the folders of all stages that lead to its figures, in their order; earlier versions had none."""


class _Box(_Checked):
    box_xyxy: tuple[_Place, _Place, _Place, _Place]
    label: _Count


class _Detection(_Box):
    score: _Share


class _Picture(_Checked):
    file: Annotated[str, AfterValidator(_relative)]
    """Images of a data set may lie anywhere, but only what decodes as an image of this size is shown."""
    size_hw: tuple[_Pixels, _Pixels]
    truth: list[_Box]
    detections: dict[str, list[_Detection]]


class _Dataset(_Checked):
    name: str
    num_train: _Count
    num_val: _Count
    classes: list[str]
    val: str | None = None
    """Hash of the validation images and what is known of them; earlier versions had none."""


class _Latency(_Checked):
    device: str
    is_gpu: bool
    runtime: str
    precision: str
    input_shape: list[_Count]
    warmup: _Count
    rounds: _Count
    order: str
    throttled_rounds: _Count | None = None
    """Rounds that were left out; None where clocks are not known."""
    record: _Inside | None = None
    """The record of all samples; None in earlier versions."""


class _Histogram(_Checked):
    """As `patterns.Histogram`."""

    widest: _Positive
    counts: Annotated[list[_Count], Field(min_length=1, max_length=1000)]
    std: Annotated[float, Field(ge=0, lt=1e12)]
    num: Annotated[_Count, Field(gt=0)]
    num_zeros: _Count


class _NotRun(_Checked):
    """A target without rows."""

    target: str
    reason: str


class _Failed(_Checked):
    """A row that is missing."""

    name: str
    reason: str


class Results(_Checked):
    """The whole file."""

    version: Literal[1]
    experiment: str
    created: str
    command: str
    git_commit: str | None
    versions: dict[str, str]
    config: dict[str, JsonValue]
    wall_s: Annotated[float, Field(ge=0, lt=1e12)]
    dataset: _Dataset
    rows: list[_Row]
    latency: _Latency
    targets: dict[str, _Latency] = {}
    """Of each target, where there are several; `latency` is that of the first."""
    not_run: list[_NotRun] = []
    """Targets that were not run on this machine."""
    pictures: list[_Picture]
    notes: list[str]
    failed: list[_Failed] = []
    """Rows of which a stage failed; earlier versions had none."""
    curves: dict[str, dict[str, _Inside]] = {}
    """Row's name -> training's name -> its curve; earlier versions had none."""
    draws: dict[str, list[_Share]] = {}
    """Row's name -> its mAP, or top-1, on each draw of the validation images, which are the same for all rows."""
    per_class: dict[str, dict[str, _Share | None]] = {}
    """Row's name -> class -> its mAP; None where there is no such object."""
    widths: dict[str, dict[str, _Count]] = {}
    """Row's name -> convolution of its backbone -> its output channels; earlier versions had none, like the next."""
    weights: dict[str, dict[str, _Histogram]] = {}
    """Name of a row of the first seed -> a few of its convolutions -> their weights, in the same bins for all rows."""

    @field_validator("rows")
    @classmethod
    def _compared_with_dense(cls, rows: list[_Row]) -> list[_Row]:
        dense = [row for row in rows if row.ordering == "dense"]
        families = [{family_of(row.model_dump()) for row in some} for some in (rows, dense)]
        if {(row.budget, row.prune_ratio) for row in dense} != {(None, 0.0)} or families[0] != families[1]:
            raise RequestError("no dense row with budget null and prune_ratio 0, which all others are compared with")
        if len(metrics := {row.metric for row in rows}) > 1:
            raise RequestError(f"rows of several metrics, got {' and '.join(sorted(map(str, metrics)))}")
        if len({row.name for row in rows}) < len(rows):
            raise RequestError("two rows of one name")
        return rows

    @field_validator("draws")
    @classmethod
    def _of_one_length(cls, draws: dict[str, list[float]]) -> dict[str, list[float]]:
        lengths = {len(figures) for figures in draws.values()} - {0}
        if len(lengths) > 1 or 1 in lengths:
            raise RequestError(f"not the same draws, got {sorted(lengths)} of them; expected one number above 1")
        return draws

    @field_validator("pictures")
    @classmethod
    def _labelled(cls, pictures: list[_Picture], info: ValidationInfo) -> list[_Picture]:
        num = len(info.data["dataset"].classes) if "dataset" in info.data else 0
        for picture in pictures:
            for box in (*picture.truth, *chain.from_iterable(picture.detections.values())):
                if box.label >= num:
                    raise RequestError(f"label {box.label} has no class, there are {num}")
        return pictures


def set_aside(folder: Path) -> None:
    """Move what an earlier run reported into the folder `earlier` in its own: it is no result of the one that begins.

    Raises:
        RequestError: If `earlier` is a file, or holds a folder in a report's place.
    """
    earlier = folder / _EARLIER
    found = [name for name in (RESULTS, *REPORT) if (folder / name).is_file()]
    if found:
        make_folder(earlier)
    for name in (RESULTS, *REPORT) if found else ():  # nothing of one before it stays beside it
        if (earlier / name).is_dir():
            raise RequestError(f"{earlier / name}: a folder where a report was moved to; move it away")
        (earlier / name).unlink(missing_ok=True)
    for name in found:
        (folder / name).replace(earlier / name)


def read_results(path: Path) -> dict[str, Any]:
    """Read a run's `results.json`.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If the file holds anything else.
    """
    return model_from_json(Results, path, "expected a finished run, made by espalier run").model_dump(
        mode="json", exclude_unset=True
    )
