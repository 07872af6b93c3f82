"""The experiment as a typed description, checked before any work.

A config file is an mmengine Python config whose names are the fields of `ExperimentConfig`. Relative paths in it start
at the current folder.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
    with_config,
)

from classify.augmentation import Augmentation, CropShare
from classify.budget import SCRATCH_B_CAP, Budget
from classify.config import Backbone, Cap, FolderData, ShapesData
from classify.image_data import AnyImages
from classify.schedule import Schedule
from command.config import Part, Seed, Threads, check_name, checked
from command.errors import RequestError
from command.own_code import short_name
from detect.config import CocoData, ScenesData
from detect.model import DetectorSettings
from detect.orderings import ORDERINGS
from detect.traced import PARTS
from prune.choose.criteria import is_data_driven
from prune.choose.presets import PRESETS
from prune.choose.recipe import Recipe, check_ratio
from prune.learn.slimming import Shift
from prune.refitting import METHODS as REFITS

__all__ = [
    "LEARNED",
    "LEARNT_PARTS",
    "METHODS",
    "RANK",
    "Backbone",
    "Budget",
    "Calibration",
    "Classification",
    "CocoData",
    "Control",
    "CropsData",
    "Cut",
    "Detection",
    "ExperimentConfig",
    "FolderData",
    "LearntPart",
    "PruneConfig",
    "Pruning",
    "Ratio",
    "ScenesData",
    "ShapesData",
    "Timing",
]

MethodName = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
"""Part of a row's name."""

Control = Literal["dense_longer"]
"""What is trained besides, so that a difference is not taken for the effect of pruning."""


def _in_range(ratio: float) -> float:
    check_ratio(ratio)
    return ratio


Ratio = Annotated[float, AfterValidator(_in_range)]
"""Share of channels removed, in [0, 1)."""


def _check_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    # names give six digits of a ratio
    if len({f"{value:g}" if isinstance(value, float) else value for value in values}) < len(values):
        raise RequestError(f"repeats a value, got {values}; expected each once")
    return values


class CropsData(Part):
    """The annotated objects of the detection set, cut out: for pictures that no classification set resembles."""

    type: Literal["crops"]


class Classification(Part):
    """How the backbone learns to classify."""

    data: Annotated[AnyImages | CropsData, Field(discriminator="type")]
    image_size: int = Field(224, ge=32, le=4096)
    """Side of the crops in pixels."""
    crop_share: CropShare = 1.0
    """Side of the crop to evaluate on, as a share of the scaled image's shorter side."""
    augmentation: Augmentation = Augmentation()
    """How training images are drawn."""
    train: Schedule
    """Of the dense network, and of `scratch_e`; `scratch_b` stretches it, decay points included."""
    finetune: Schedule
    """Of the pruned network in `prune_transfer`."""
    learning: Schedule | None = None
    """Of the training in which a method such as slimming acts, from the dense network's weights; None = `train`."""


class Detection(Part):
    """How the detector learns."""

    data: Annotated[ScenesData | CocoData, Field(discriminator="type")]
    model: DetectorSettings
    train: Schedule
    """Of every detector that starts from a classifier."""
    finetune: Schedule
    """Of the detector pruned in `transfer_prune`."""
    learning: Schedule | None = None
    """Of the training in which a method such as slimming acts, in `transfer_prune`; None = `train`."""


class Calibration(Part):
    """How many training images are used by a criterion that measures on data."""

    num_batches: int = Field(32, ge=1, le=10**7)
    """Fewer if there are not enough images."""
    batch_size: int = Field(4, ge=1, le=65_536)


RANK = "rank"
METHODS = (RANK, *REFITS)
"""How channels are chosen in a trained network."""
STEP_SCHEDULES = ("linear", "exponential")
LEARNED = ("slimming", "soft_filters", "structure_selection")
"""How channels are chosen in a training."""
_PENALTIES = {"slimming": 1e-4, "structure_selection": 0.01}
"""Those of the papers, unless told otherwise."""
LearntPart = Literal["classification", "detection"]
LEARNT_PARTS: tuple[LearntPart, ...] = ("classification", "detection")
"""The parts of an experiment that have such a training."""


@dataclass(frozen=True)
class Cut(Recipe):
    """What is cut from a model file: a recipe with rounding, and the images for criteria that need data."""

    round_to: int = 8
    """Kept channels are moved to the nearest multiple of it."""
    calibration: Calibration = field(default_factory=Calibration)
    """Of taylor, mean_activation, average_rank, and of methods other than rank; the other criteria use no images.
    Its `batch_size` is that of `recalibrate` too."""
    method: Annotated[str, AfterValidator(lambda name: check_name(name, METHODS))] = RANK
    """`rank`: the criterion ranks the channels. `thinet`, `thinet_forward`, `lasso`: they are chosen layer by layer on
    training images, and the next layer is refitted; see `prune.refit_model`."""
    recalibrate: Annotated[int, Field(ge=0, le=10**7)] = 0
    """Batches of training images on which the slim network's BatchNorm statistics are estimated anew, as their plain
    mean, before it is measured or saved; 0 = they stay the dense network's. See `prune.recalibrating`."""

    @property
    def needs_data(self) -> bool:
        """Whether training images are read."""
        return self.is_calibrated or self.recalibrate > 0

    @property
    def is_calibrated(self) -> bool:
        """Whether the channels are chosen on the images of `calibration`."""
        return self.method in REFITS or (self.method == RANK and is_data_driven(self.criterion))

    @property
    def chosen_by(self) -> str:
        """The method's name in rows and file names: the criterion's where it decides."""
        return short_name(self.criterion) if self.method == RANK else self.method


def _check_method(name: str) -> str:
    if name == "magnitude":
        raise RequestError(
            "magnitude: leaves zeros that a dense engine multiplies like other numbers, so that a timed row would say "
            'nothing; expected espalier classify train with method=dict(type="magnitude")'
        )
    return check_name(name, (*METHODS, *LEARNED))


@dataclass(frozen=True)
class Pruning(Cut):
    """What is cut, in the classifier and in the detector alike. In patterns, layers have the classifier's names."""

    prune_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1), AfterValidator(_check_once)] = (0.5,)
    """Shares of channels removed from every group; of structure_selection least shares of the residual blocks: 0.0
    removes those whose factor is zero, as in the paper, a higher one those of the smallest factors too."""
    method: Annotated[str, AfterValidator(_check_method)] = RANK
    """As in `Cut`, or `slimming`, `soft_filters` or `structure_selection`: the dense network is trained on with the
    method and then cut, and the ordering goes on. See `prune.learn`."""
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Of slimming: weight of the BatchNorm scales' sum in the loss, None = 1e-4. Of structure_selection: of the
    factors' sum, None = 0.01."""
    shift: Shift = "zeroed"
    """Of slimming: what becomes of the shifts of cut channels."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 1
    """Cuts in which a ratio is reached: the network is cut a little, trained on, cut again, and so on."""
    step_schedule: Annotated[str, AfterValidator(lambda name: check_name(name, STEP_SCHEDULES))] = "linear"
    """How much the k-th of n steps leaves: `linear` 1 - p k / n; `exponential` (1 - p)^(k / n), the same share of what
    is there in every step."""
    epochs_per_step: Annotated[int, Field(ge=1, le=100_000)] = 1
    """Epochs that the network is trained after every step but the last, with the rest of the schedule `finetune`."""
    epochs_per_layer: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Of thinet, thinet_forward and lasso in a classifier: epochs that it is trained after each refitted layer, with
    the rest of the schedule `finetune`."""

    def __post_init__(self) -> None:
        """Raise RequestError for settings that contradict each other."""
        super().__post_init__()
        if self.steps > 1 and (self.is_learned or self.epochs_per_layer):
            what = self.method if self.is_learned else "epochs_per_layer"
            raise RequestError(f"steps: not used with {what}, got {self.steps}; expected 1")
        if self.steps > 1 and self.widths:
            raise RequestError(f"steps: each goes by ratios, got widths for {', '.join(self.widths)}; expected ratios")
        if self.epochs_per_layer and self.method not in REFITS:
            raise RequestError(
                f"epochs_per_layer: not used with {self.chosen_by}, got {self.epochs_per_layer}; expected 0"
            )
        for name in ("ratios", "widths") if self.method == "structure_selection" else ():
            if getattr(self, name):
                raise RequestError(f"{name}: not used with structure_selection, which removes blocks; expected none")

    @property
    def effective_penalty(self) -> float | None:
        """The penalty of the method; None if it has none."""
        default = _PENALTIES.get(self.method)
        return default and (self.penalty or default)

    @property
    def is_learned(self) -> bool:
        """Whether the method acts in a training of its own."""
        return self.method in LEARNED

    @property
    def needs_data(self) -> bool:
        """Whether training images are read."""
        return super().needs_data or self.is_learned or self.steps > 1

    @property
    def epochs_between(self) -> int:
        """Epochs of each training between two cuts; 0 where there is none."""
        return self.epochs_per_step if self.steps > 1 else self.epochs_per_layer

    def _check_amount(self) -> None:
        """Raise RequestError for a single ratio, which only `at` sets, for limits, and for what `steps` sets."""
        for name in (*Recipe.amounts, "dense_widths"):
            if self.prune_ratios and getattr(self, name) not in (None, {}):
                raise RequestError(f"{name}: not used in an experiment, got {getattr(self, name)}; give prune_ratios")

    def at(self, prune_ratio: float) -> "Pruning":
        """Return the recipe of one ratio."""
        return replace(self, prune_ratio=prune_ratio, prune_ratios=())

    def in_steps(self) -> Iterator["Pruning"]:
        """Yield the recipe of each step to a single ratio; all ratios are shares of the dense network."""
        assert self.prune_ratio is not None
        for step in range(1, self.steps + 1):
            ratios = {pattern: self._reached(ratio, step) for pattern, ratio in self.ratios.items()}
            yield replace(self.at(self._reached(self.prune_ratio, step)), ratios=ratios)

    def _reached(self, prune_ratio: float, step: int) -> float:
        share = step / self.steps
        reached = prune_ratio * share if self.step_schedule == "linear" else 1 - (1 - prune_ratio) ** share
        return prune_ratio if step == self.steps else round(reached, 12)  # 0.9 x 2/3 is above 0.6 in floats


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class PruneConfig(Cut):
    """What `espalier prune` cuts from a model file: a ratio, one limit, or a preset of the literature."""

    amounts: ClassVar[tuple[str, ...]] = ("preset", *Recipe.amounts)

    preset: str | None = None
    """Name of a slim network in `prune.choose.presets`; the criterion chooses which channels are kept."""
    parts: tuple[str, ...] = ("backbone",)
    """Parts of a detector that are cut: any of backbone, neck, rpn_head, roi_head. In patterns, layers of the last
    three have their own names (`neck.*`)."""
    data: Annotated[AnyImages | ScenesData | CocoData, Field(discriminator="type")] | None = None
    """Its training images are used by the calibration; None for a criterion that needs no data."""
    seed: Seed = 0
    """Seed of the choice of those images, and of random scores."""

    def __post_init__(self) -> None:
        """Raise RequestError for settings that contradict each other."""
        super().__post_init__()
        for name in self.parts:
            check_name(name, PARTS, "parts")
        if self.preset is not None:
            check_name(self.preset, PRESETS, "preset")
            self._check_alone(self.preset)
        if self.needs_data and self.data is None:
            what = f"{self.chosen_by} measures" if self.is_calibrated else "recalibrate estimates"
            raise RequestError(f"data: {what} on training images, got none; expected data=dict(type=...)")
        if self.data and not self.needs_data:
            raise RequestError(f"data: not used with {self.chosen_by}, got {self.data.type}; expected none")

    def _check_alone(self, preset: str) -> None:
        """Raise RequestError if a field is given that a preset sets."""
        plain = PruneConfig(0.0)
        free = {
            "criterion",
            "method",
            "reduction",
            "calibration",
            "recalibrate",
            "preset",
            "data",
            "seed",
            *Recipe.amounts,
        }
        for name in (one.name for one in fields(self) if one.name not in free):
            if getattr(self, name) != getattr(plain, name):
                raise RequestError(
                    f"{name}: not used with a preset, got preset {preset}; expected none, as it sets all widths"
                )

    @property
    def recipe(self) -> "PruneConfig":
        """The recipe with the preset's widths in it, if there is one."""
        if self.preset is None:
            return self
        found = PRESETS[self.preset]
        selects = found.selects_channels
        return replace(self, preset=None, prune_ratio=0.0, round_to=1, widths=found.kept, select_channels=selects)

    @property
    def label(self) -> str:
        """Name part of a file that was cut this way: `l1-0.5`, `l1-max_macs-1000000`, `resnet34-A`."""
        if self.preset:
            return self.preset
        amount = "-".join(map(str, self.limit)) if self.limit else f"{self.prune_ratio:g}"
        return f"{self.chosen_by}-{amount}"


with_config(ConfigDict(extra="forbid"))(Pruning)


_PRUNING = TypeAdapter(Pruning)


def _varied(pruning: Pruning, name: str, changed: Mapping[str, Any]) -> Pruning:
    """Return a method's pruning; raise RequestError if what is changed is no setting, or does not fit the rest."""
    settings = {one.name: getattr(pruning, one.name) for one in fields(pruning)}
    return checked({**settings, **changed}, _PRUNING, f"methods.{name}")


class Timing(Part):
    """How time is taken."""

    warmup: int = Field(10, ge=1, le=10**6)
    rounds: int = Field(50, ge=10, le=10**6)
    num_threads: Threads = 1


class ExperimentConfig(Part):
    """Orderings x budgets x ratios x seeds on one backbone and one detection set."""

    name: str = Field(pattern=r"^\w[\w.-]*$")
    """Also the name of the run's folder."""
    backbone: Backbone
    classification: Classification
    detection: Detection | None = None
    """None: the classifiers are the result; they are not transferred, and `ordering` tells where weights come from."""
    pruning: Pruning = Pruning()
    methods: dict[MethodName, dict[str, Any]] = Field({})
    """Several methods side by side: the name of each in the rows, and what it has other than `pruning`."""
    latency: Timing = Timing()
    orderings: Annotated[tuple[str, ...], AfterValidator(_check_once)] = tuple(ORDERINGS)
    """The dense reference is always run, and `transfer_prune` only with `detection`."""
    controls: Annotated[tuple[Control, ...], AfterValidator(_check_once)] = ()
    """`dense_longer`: the dense detector, trained once for the epochs of `detection.train` and `detection.finetune`
    together, and those between steps, as many as `transfer_prune` has. The schedule is that of `detection.train`,
    stretched."""
    budgets: Annotated[tuple[Budget, ...], AfterValidator(_check_once)] = ("scratch_e", "scratch_b")
    """How long `scratch_transfer` trains its classifier."""
    scratch_b_cap: Cap = SCRATCH_B_CAP
    """Most times the dense epochs that `scratch_b` trains: 2 as the paper on ImageNet, None = no limit as on CIFAR."""
    strict_budget: bool = False
    """Whether the epochs of `classification.finetune`, and those between cuts, are added to those of `budgets`."""
    seeds: Annotated[tuple[Seed, ...], AfterValidator(_check_once)] = Field((0,), min_length=1)
    num_threads: Threads = 1
    """CPU threads of torch in every stage; weights depend on it. Times are taken with `latency.num_threads`."""

    @field_validator("methods")
    @classmethod
    def _differ_from_pruning(
        cls, methods: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        for name, changed in methods.items():
            if "pruning" in info.data:
                _varied(info.data["pruning"], name, changed)
        return methods

    @field_validator("orderings")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_name(name, ORDERINGS) for name in names)

    @field_validator("controls")
    @classmethod
    def _differ_from_dense(cls, controls: tuple[Control, ...], info: ValidationInfo) -> tuple[Control, ...]:
        if controls and "transfer_prune" not in info.data.get("orderings", ORDERINGS):
            raise RequestError(
                f"not used without transfer_prune, which alone trains its detector longer than dense, got {controls}; "
                "expected none, or transfer_prune among orderings"
            )
        return controls

    @model_validator(mode="after")
    def _needs_detection(self) -> "ExperimentConfig":
        """Raise RequestError for what only detectors have, where there are none."""
        asked = self.orderings if "orderings" in self.model_fields_set else ()
        needs = {
            "orderings": "transfer_prune" in asked and "transfer_prune",
            "controls": bool(self.controls) and ", ".join(self.controls),
            "classification.data": isinstance(self.classification.data, CropsData) and "crops",
        }
        for name, got in needs.items():
            if got and self.detection is None:
                raise RequestError(f"{name}: not used without detection, got {got}; expected detection=dict(...)")
        return self

    @model_validator(mode="after")
    def _trains_between_layers_of_classifiers(self) -> "ExperimentConfig":
        has_detectors = self.detection is not None and "transfer_prune" in self.orderings
        if has_detectors and any(pruning.epochs_per_layer for pruning in self.prunings.values()):
            raise RequestError(
                "pruning.epochs_per_layer: for classifiers alone, got transfer_prune among orderings; "
                "expected orderings without it, or epochs_per_layer=0"
            )
        return self

    @property
    def prunings(self) -> dict[str, Pruning]:
        """What is compared: the name of each method in the rows, and what it cuts."""
        if not self.methods:
            return {self.pruning.chosen_by: self.pruning}
        return {name: _varied(self.pruning, name, changed) for name, changed in self.methods.items()}

    @property
    def detecting(self) -> Detection:
        """How detectors learn, where there are any."""
        assert self.detection is not None
        return self.detection

    @property
    def added_epochs(self) -> int:
        """Epochs that the strict budget adds to a training from random weights."""
        return self.classification.finetune.epochs if self.strict_budget else 0

    def learning_of(self, part: LearntPart, pruning: Pruning | None) -> Schedule | None:
        """Return the schedule of the training in which the method acts; None where it acts in none."""
        settings = self.classification if part == "classification" else self.detection
        return (settings.learning or settings.train) if settings and pruning and pruning.is_learned else None

    def between_cuts(self, part: LearntPart, pruning: Pruning | None) -> Schedule | None:
        """Return the schedule of each training between two cuts; None where there is one cut."""
        settings = self.classification if part == "classification" else self.detection
        epochs = pruning.epochs_between if pruning else 0
        return replace(settings.finetune, epochs=epochs) if settings and epochs else None

    def with_longer_training(self) -> "ExperimentConfig":
        """Return the experiment that `dense_longer` is the dense row of."""
        detection, finetune = self.detecting, self.detecting.finetune.epochs
        between = max((pruning.steps - 1) * pruning.epochs_per_step for pruning in self.prunings.values())
        train = replace(detection.train, epochs=detection.train.epochs + finetune + between)
        return self.model_copy(update={"detection": detection.model_copy(update={"train": train})})
