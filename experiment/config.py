"""The experiment as a typed description, checked before anything runs.

A config file is an mmengine Python config whose names are the fields of `ExperimentConfig`. Relative paths in it start
at the current folder.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from classify.config import Backbone, FolderData, Part, Seed, ShapesData, check_name, read_config
from classify.train import Schedule
from detect import DetectorSettings
from detect.config import CocoData, ScenesData
from detect.orderings import ORDERINGS
from detect.pruning import PARTS
from prune.criteria import CRITERIA, REDUCTIONS, DataDriven
from prune.presets import PRESETS
from prune.recipe import LIMITS, Ranking, Recipe, check_ratio

__all__ = [
    "Backbone",
    "Budget",
    "Calibration",
    "Classification",
    "CocoData",
    "CropsData",
    "Detection",
    "ExperimentConfig",
    "FolderData",
    "PruneConfig",
    "Pruning",
    "Ratio",
    "ScenesData",
    "ShapesData",
    "Timing",
    "load_config",
]

Budget = Literal["scratch_e", "scratch_b"]
"""How long `scratch_transfer` trains its classifier."""

_RECIPE = {field.name for field in fields(Recipe)}
_BUDGETS = ("preset", "prune_ratio", *LIMITS)


def _in_range(ratio: float) -> float:
    check_ratio(ratio)
    return ratio


Ratio = Annotated[float, AfterValidator(_in_range)]
"""Share of channels removed, in [0, 1)."""


def _check_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    # ratios are told apart in names by six digits
    if len({f"{value:g}" if isinstance(value, float) else value for value in values}) < len(values):
        raise ValueError(f"repeats a value, got {values}; expected each once")
    return values


class CropsData(Part):
    """The annotated objects of the detection set, cut out: for sets of pictures no classification set resembles."""

    type: Literal["crops"]


class Classification(Part):
    """How the backbone learns to classify."""

    data: Annotated[ShapesData | FolderData | CropsData, Field(discriminator="type")]
    image_size: int = Field(224, ge=32)
    """Side of the training crops in pixels."""
    train: Schedule
    """Of the dense network, and of `scratch_e`; `scratch_b` stretches it."""
    finetune: Schedule
    """Of the pruned network in `prune_transfer`."""


class Detection(Part):
    """How the detector learns."""

    data: Annotated[ScenesData | CocoData, Field(discriminator="type")]
    model: DetectorSettings
    train: Schedule
    """Of every detector that starts from a classifier."""
    finetune: Schedule
    """Of the detector pruned in `transfer_prune`."""


class Calibration(Part):
    """How many training images a criterion that measures on data looks at."""

    num_batches: int = Field(32, ge=1)
    """Fewer where the images run out."""
    batch_size: int = Field(4, ge=1)


class _Cut(Part):
    criterion: str = "l1"
    calibration: Calibration = Calibration()
    """Of taylor, mean_activation and average_rank; the other criteria look at no images."""
    reduction: str = "sum"
    """How the scores of layers that are cut together become one: sum, mean, max or first."""
    ranking: Ranking = "uniform"
    """`uniform`: the same share from every group; `global`: the lowest scores of all groups together."""
    round_to: int = Field(8, ge=1)
    """Kept channels are moved to the nearest multiple of it."""
    min_channels: int = Field(1, ge=1)
    """Every layer keeps at least so many, where it has them."""
    skip: tuple[str, ...] = ()
    """Layer patterns of the classifier (`layer1.*`) that stay whole."""

    @property
    def needs_data(self) -> bool:
        """Whether the criterion measures on training images."""
        return issubclass(CRITERIA[self.criterion], DataDriven)

    def options(self) -> dict[str, Any]:
        """Return what is passed on to `prune.prune_model`, the criterion by name."""
        return self.model_dump(include={"criterion", "reduction", *_RECIPE})

    @field_validator("criterion")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name, CRITERIA)

    @field_validator("reduction")
    @classmethod
    def _known_reduction(cls, name: str) -> str:
        return check_name(name, REDUCTIONS)


class Pruning(_Cut):
    """What is cut, in the classifier and in the detector alike."""

    prune_ratios: Annotated[tuple[Ratio, ...], AfterValidator(_check_once)] = (0.5,)
    """Shares of channels removed from every group."""


class PruneConfig(_Cut):
    """What `espalier prune` cuts from a model file: a ratio, one limit, or a preset of the literature."""

    preset: str | None = None
    """Name of a slim network in `prune.presets`; the criterion says which channels fill its widths."""
    prune_ratio: Ratio | None = None
    """Share of channels removed: of every group, or of all together where the ranking is global."""
    max_macs: int | None = Field(None, ge=1)
    """Limit for one image; as much is kept as fits."""
    max_params: int | None = Field(None, ge=1)
    max_activations: int | None = Field(None, ge=1)
    """Limit on the outputs' elements of all convolutions and linear layers."""
    ratios: dict[str, Ratio] = Field(default_factory=dict)
    """Layer pattern -> its own ratio; the first match counts."""
    widths: dict[str, int] = Field(default_factory=dict)
    """Layer pattern -> channels kept, exactly; the first match counts, before `ratios`."""

    parts: tuple[str, ...] = ("backbone",)
    """Parts of a detector that are cut: any of backbone, neck, rpn_head, roi_head. Layers of the last three go by
    their own names in the patterns (`neck.*`)."""
    data: Annotated[ShapesData | FolderData | ScenesData | CocoData, Field(discriminator="type")] | None = None
    """Its training images are what the calibration looks at; of a criterion that needs none, None."""
    seed: Seed = 0
    """Of the choice of those images, and of random scores."""

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str | None) -> str | None:
        return name and check_name(name, PRESETS)

    @field_validator("parts")
    @classmethod
    def _known_parts(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_name(name, PARTS) for name in names)

    @model_validator(mode="after")
    def _one_budget(self) -> "PruneConfig":
        asked = [name for name in _BUDGETS if getattr(self, name) is not None]
        if len(asked) != 1:
            got = " and ".join(asked) or "none"
            raise ValueError(f"budget: not clear, got {got}; expected one of {', '.join(_BUDGETS)}")
        said = sorted(self.model_fields_set & {*_RECIPE - {*_BUDGETS}, "parts"})
        if self.preset and said:
            raise ValueError(
                f"{said[0]}: of no use, got one with a preset; expected none, {self.preset} says all widths"
            )
        self.recipe()
        return self

    @model_validator(mode="after")
    def _data_counts(self) -> "PruneConfig":
        if self.needs_data and self.data is None:
            raise ValueError(
                f"data: {self.criterion} measures on training images, got none; expected data=dict(type=...)"
            )
        if self.data and not self.needs_data:
            raise ValueError(
                f"data: of no use, got {self.data.type}; expected none, {self.criterion} looks at no images"
            )
        return self

    def recipe(self) -> Recipe:
        """Return how much is cut, and where."""
        if self.preset:
            return Recipe(0.0, widths=PRESETS[self.preset].kept)
        return Recipe(**self.model_dump(include=_RECIPE))

    def options(self) -> dict[str, Any]:
        """Return what is passed on to `prune.prune_model`, the criterion by name."""
        return {"criterion": self.criterion, "reduction": self.reduction, **vars(self.recipe())}

    @property
    def label(self) -> str:
        """How a file is called that was cut so: `l1-0.5`, `l1-max_macs-1000000`, `resnet34-A`."""
        if self.preset:
            return self.preset
        limit = self.recipe().limit
        amount = "-".join(map(str, limit)) if limit else f"{self.prune_ratio:g}"
        return f"{self.criterion}-{amount}"


class Timing(Part):
    """How time is taken."""

    warmup: int = Field(10, ge=1)
    rounds: int = Field(50, ge=10)
    num_threads: int = Field(1, ge=1)


class ExperimentConfig(Part):
    """Orderings x budgets x ratios x seeds on one backbone and one detection set."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Also the name of the run's folder."""
    backbone: Backbone
    classification: Classification
    detection: Detection
    pruning: Pruning = Pruning()
    latency: Timing = Timing()
    orderings: Annotated[tuple[str, ...], AfterValidator(_check_once)] = tuple(ORDERINGS)
    """The dense reference is always run."""
    budgets: Annotated[tuple[Budget, ...], AfterValidator(_check_once)] = ("scratch_e", "scratch_b")
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_check_once)] = Field((0,), min_length=1)

    @field_validator("orderings")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_name(name, ORDERINGS) for name in names)


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a config file and check it.

    Args:
        path: mmengine Python config.
        overrides: `a.b=value` texts; the value is a Python literal, or else a string.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or a value does not fit.
    """
    return read_config(path, overrides, ExperimentConfig)
