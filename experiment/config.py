"""The experiment as a typed description, checked before anything runs.

A config file is an mmengine Python config whose names are the fields of `ExperimentConfig`. Relative paths in it start
at the current folder.
"""

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from mmengine.config import Config
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, with_config

from classify.backbones import BACKBONES
from classify.train import Schedule
from detect import DetectorSettings
from detect.orderings import ORDERINGS
from prune.allocate import check_ratio
from prune.criteria import CRITERIA

__all__ = [
    "Backbone",
    "Budget",
    "Classification",
    "CocoData",
    "CropsData",
    "Detection",
    "ExperimentConfig",
    "FolderData",
    "Latency",
    "Pruning",
    "ScenesData",
    "ShapesData",
    "load_config",
]

Budget = Literal["scratch_e", "scratch_b"]
"""How long `scratch_transfer` trains its classifier."""

for _described_elsewhere in (Schedule, DetectorSettings):
    with_config(ConfigDict(extra="forbid"))(_described_elsewhere)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Backbone(_Part):
    """The dense classification network."""

    name: str = "resnet18"
    """A torchvision ResNet or VGG: see `classify.backbones.BACKBONES`."""
    base_channels: int = Field(64, ge=8)
    """Channels of the stem; the stages follow in proportion."""
    weights: Path | None = None
    """Trained weights (.safetensors, or a PyTorch file of tensors); the dense network is then not trained."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return _one_of(name, BACKBONES)


class ShapesData(_Part):
    """Generated images of coloured shapes."""

    type: Literal["shapes"] = "shapes"
    num_train: int = Field(1200, ge=1)
    num_val: int = Field(300, ge=1)
    seed: int = 0


class FolderData(_Part):
    """An image folder: `train/<class>/*` and `val/<class>/*`, as ImageNet's."""

    type: Literal["folder"]
    root: Path


class CropsData(_Part):
    """The annotated objects of the detection set, cut out: for sets of pictures no classification set resembles."""

    type: Literal["crops"]


class Classification(_Part):
    """How the backbone learns to classify."""

    data: Annotated[ShapesData | FolderData | CropsData, Field(discriminator="type")]
    image_size: int = Field(224, ge=32)
    """Side of the training crops in pixels."""
    train: Schedule
    """Of the dense network, and of `scratch_e`; `scratch_b` stretches it."""
    finetune: Schedule
    """Of the pruned network in `prune_transfer`."""


class ScenesData(_Part):
    """Generated scenes of coloured shapes, of the detector's image size."""

    type: Literal["scenes"] = "scenes"
    num_train: int = Field(300, ge=1)
    num_val: int = Field(60, ge=1)
    seed: int = 0


class CocoData(_Part):
    """Any folder in COCO format."""

    type: Literal["coco"]
    root: Path
    """The other paths are relative to it."""
    train_annotations: Path = Path("annotations/instances_train2017.json")
    train_images: Path = Path("train2017")
    val_annotations: Path = Path("annotations/instances_val2017.json")
    val_images: Path = Path("val2017")


class Detection(_Part):
    """How the detector learns."""

    data: Annotated[ScenesData | CocoData, Field(discriminator="type")]
    model: DetectorSettings
    train: Schedule
    """Of every detector that starts from a classifier."""
    finetune: Schedule
    """Of the detector pruned in `transfer_prune`."""


class Pruning(_Part):
    """What is cut, in the classifier and in the detector alike."""

    prune_ratios: tuple[float, ...] = (0.5,)
    """Shares of channels removed from every group, each in [0, 1)."""
    criterion: str = "l1"
    round_to: int = Field(8, ge=1)
    """Kept channels are moved to the nearest multiple of it."""
    skip: tuple[str, ...] = ()
    """Layer patterns of the classifier (`layer1.*`) that stay whole."""

    @field_validator("prune_ratios")
    @classmethod
    def _in_range(cls, ratios: tuple[float, ...]) -> tuple[float, ...]:
        for ratio in ratios:
            check_ratio(ratio)
        return ratios

    @field_validator("criterion")
    @classmethod
    def _known(cls, name: str) -> str:
        return _one_of(name, CRITERIA)


class Latency(_Part):
    """How time is taken."""

    warmup: int = Field(10, ge=1)
    rounds: int = Field(50, ge=10)
    num_threads: int = Field(1, ge=1)


class ExperimentConfig(_Part):
    """Orderings x budgets x ratios x seeds on one backbone and one detection set."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Also the name of the run's folder."""
    backbone: Backbone
    classification: Classification
    detection: Detection
    pruning: Pruning = Pruning()
    latency: Latency = Latency()
    orderings: tuple[str, ...] = tuple(ORDERINGS)
    """The dense reference is always run."""
    budgets: tuple[Budget, ...] = ("scratch_e", "scratch_b")
    seeds: tuple[int, ...] = Field((0,), min_length=1)

    @field_validator("orderings")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_one_of(name, ORDERINGS) for name in names)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a config file and check it.

    Args:
        path: mmengine Python config.
        overrides: `a.b=value` texts; the value is a Python literal, or else a string.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or a value does not fit.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected an experiment config, as configs/experiment/*.py")
    try:
        raw = Config.fromfile(path, use_predefined_variables=False, import_custom_modules=False)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read, {' '.join(str(error).split())}; expected Python") from error
    raw.merge_from_dict(dict(_override(text) for text in overrides))
    try:
        return ExperimentConfig.model_validate(raw.to_dict())
    except ValidationError as error:
        raise ValueError(_one_line(Path(path), error)) from error


def _override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {text}: no key and value; expected a.b=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _one_line(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    tags = {"shapes", "folder", "crops", "scenes", "coco"}
    key = ".".join(str(part) for part in first["loc"] if part not in tags)
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        last = str(first["loc"][-1])
        near = difflib.get_close_matches(last, sorted(_all_fields()), n=3, cutoff=0.5)
        return f"{path}: unknown key {key}; nearest valid ones: {', '.join(near) or 'none'}"
    message = first["msg"].removeprefix("Value error, ")
    got = "" if "got" in message or first["type"] == "missing" else f", got {first['input']!r}"
    return f"{path}: {key}: {message}{got}"


def _all_fields() -> set[str]:
    names = {field for part in _Part.__subclasses__() for field in part.model_fields}
    return names | set(Schedule.__dataclass_fields__) | set(DetectorSettings.__dataclass_fields__)


def _one_of(name: str, known: Any) -> str:
    if name not in known:
        raise ValueError(f"unknown, got {name!r}; expected one of {', '.join(sorted(known))}")
    return name
