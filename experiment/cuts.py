"""What is cut: recipes of experiments, and of `espalier prune`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, with_config

from classify.image_data import AnyImages
from command.config import Part, Seed, check_name, checked
from command.errors import RequestError
from command.own_code import short_name
from detect.config import AnyBoxes
from detect.traced import PARTS
from prune.choose.criteria import is_data_driven
from prune.choose.presets import PRESETS
from prune.choose.recipe import Recipe, check_ratio
from prune.learn.slimming import Shift
from prune.refitting import METHODS as REFITS

__all__ = [
    "LEARNED",
    "METHODS",
    "RANK",
    "Calibration",
    "Cut",
    "PruneConfig",
    "Pruning",
    "Ratio",
    "check_once",
    "varied",
]


def _in_range(ratio: float) -> float:
    check_ratio(ratio)
    return ratio


Ratio = Annotated[float, AfterValidator(_in_range)]
"""Share of channels removed, in [0, 1)."""
KeptShare = Annotated[float, Field(gt=0, lt=1)]


def check_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values; raise RequestError if one is there twice."""
    # names give six digits of a ratio
    if len({f"{value:g}" if isinstance(value, float) else value for value in values}) < len(values):
        raise RequestError(f"repeats a value, got {values}; expected each once")
    return values


class Calibration(Part):
    """How many training images are used by a criterion that measures on data."""

    num_batches: int = Field(32, ge=1, le=10**7)
    """Fewer if there are not enough images."""
    batch_size: int = Field(4, ge=1, le=65_536)


RANK = "rank"
METHODS = (RANK, *REFITS)
"""How channels are chosen in a trained network."""
STEP_SCHEDULES = ("linear", "exponential")
EARLY = "early_bird"
LEARNED = ("slimming", "soft_filters", "structure_selection", EARLY)
"""How channels are chosen in a training."""
_PENALTIES = {"slimming": 1e-4, EARLY: 1e-4, "structure_selection": 0.01}
"""Those of the papers, unless told otherwise."""


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
    preset: str | None = None
    """Name of a slim network in `prune.choose.presets`; the criterion chooses which channels are kept."""

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

    def _check_preset(self, plain: "Cut", *free: str) -> None:
        """Raise RequestError if the preset is unknown, or a field is not as in `plain` that it sets: all but `free`."""
        check_name(str(self.preset), PRESETS, "preset")
        free = (*free, "preset", "criterion", "method", "reduction", "calibration", "recalibrate")
        for name in (one.name for one in fields(self) if one.name not in free):
            if getattr(self, name) != getattr(plain, name):
                raise RequestError(
                    f"{name}: not used with a preset, got preset {self.preset}; leave it out, as that sets all widths"
                )

    def _of_preset(self) -> dict[str, Any]:
        """Return the fields of the preset's recipe."""
        found = PRESETS[str(self.preset)]
        selects = found.selects_channels
        return {"prune_ratio": 0.0, "round_to": 1, "widths": found.kept, "select_channels": selects}


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

    prune_ratios: Annotated[tuple[Ratio, ...], Field(min_length=1), AfterValidator(check_once)] = (0.5,)
    """Shares of channels removed from every group, without preset or limit; of structure_selection least shares of
    the residual blocks: 0.0 removes those whose factor is zero, as in the paper, a higher one those of the smallest
    factors too."""
    kept_macs: Annotated[tuple[KeptShare, ...], AfterValidator(check_once)] = ()
    """Limits instead of ratios: shares of the dense classifier's MACs that are kept at most. Every group loses the same
    share of its channels, and detectors are cut to the widths of the classifier; see `experiment.limits`."""
    kept_params: Annotated[tuple[KeptShare, ...], AfterValidator(check_once)] = ()
    """Limits instead of ratios, on parameters."""
    kept: tuple[str, float] | None = None
    """Of one of `recipes`: the cost that is limited, and the share."""
    method: Annotated[str, AfterValidator(_check_method)] = RANK
    """As in `Cut`, or `slimming`, `soft_filters` or `structure_selection`: the dense network is trained on with the
    method and then cut, and the ordering goes on. `early_bird`: the same from random weights, until its choice of
    channels has settled; of classifiers alone. See `prune.learn`."""
    penalty: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Of slimming and early_bird: weight of the BatchNorm scales' sum in the loss, None = 1e-4. Of structure_selection:
    of the factors' sum, None = 0.01."""
    shift: Shift = "zeroed"
    """Of slimming: what becomes of the shifts of cut channels."""
    window: Annotated[int, Field(ge=2, le=1000)] = 5
    """Of early_bird: masks of as many epochs are compared."""
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Of early_bird: largest share of channels in which the newest mask may differ from each of the others."""
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
        if self.preset and self.is_learned:
            raise RequestError(f"preset: not used with {self.method}, got {self.preset}; expected prune_ratios")
        if self.preset is not None and self.prune_ratios:  # without ratios, it is one of `recipes`
            self._check_preset(Pruning(), "epochs_per_layer")
        if self.steps > 1 and (self.is_learned or self.epochs_per_layer):
            what = self.method if self.is_learned else "epochs_per_layer"
            raise RequestError(f"steps: not used with {what}, got {self.steps}; expected 1")
        if self.steps > 1 and self.widths:
            raise RequestError(f"steps: each goes by ratios, got widths for {', '.join(self.widths)}; expected ratios")
        if self.epochs_per_layer and self.method not in REFITS:
            raise RequestError(
                f"epochs_per_layer: not used with {self.chosen_by}, got {self.epochs_per_layer}; expected 0"
            )
        if self.limits and self.prune_ratios:
            self._check_limits()
        for name in ("ratios", "widths") if self.method == "structure_selection" else ():
            if getattr(self, name):
                raise RequestError(f"{name}: not used with structure_selection, which removes blocks; expected none")

    def _check_limits(self) -> None:
        """Raise RequestError for what limits, which become widths, do not go with."""
        plain = Pruning(criterion=self.criterion)
        for name in ("prune_ratios", "ranking", "steps", "widths"):
            if (got := getattr(self, name)) != getattr(plain, name):
                raise RequestError(f"{name}: not used with limits, which set all widths, got {got}; leave it out")
        if self.is_learned:
            raise RequestError(f"method: {self.method} goes by ratios, got limits; expected prune_ratios")

    @property
    def limits(self) -> tuple[tuple[str, float], ...]:
        """Names of costs, and the shares of them that are kept at most."""
        return tuple((cost, share) for cost in ("macs", "params") for share in getattr(self, f"kept_{cost}"))

    @property
    def amount(self) -> str | None:
        """How much one of `recipes` cuts, as part of a name; None of a preset."""
        if self.kept:
            return "{}{:g}".format(*self.kept)
        return None if self.preset else f"{self.prune_ratio:g}"

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
    def is_ticket(self) -> bool:
        """Whether that training begins with random weights, and ends when it is known what is cut."""
        return self.method == EARLY

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
        for name in (*Recipe.amounts, "dense_widths", "kept"):
            if self.prune_ratios and (got := getattr(self, name)) not in (None, {}):
                raise RequestError(f"{name}: not used in an experiment, got {got}; give prune_ratios or kept_macs")

    def at(self, prune_ratio: float) -> "Pruning":
        """Return the recipe of one ratio."""
        return replace(self, prune_ratio=prune_ratio, prune_ratios=())

    @property
    def recipes(self) -> tuple["Pruning", ...]:
        """The recipe of each ratio, or of each limit without its widths, or that of the preset."""
        if self.limits:
            return tuple(replace(self.at(0.0), kept_macs=(), kept_params=(), kept=limit) for limit in self.limits)
        if self.preset is None:
            return tuple(map(self.at, self.prune_ratios))
        return (replace(self, prune_ratios=(), **self._of_preset()),)

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

    parts: tuple[str, ...] = ("backbone",)
    """Parts of a detector that are cut: any of backbone, neck, rpn_head, roi_head. In patterns, layers of the last
    three have their own names (`neck.*`)."""
    data: Annotated[AnyImages | AnyBoxes, Field(discriminator="type")] | None = None
    """Its training images are used by the calibration; None for a criterion that needs no data."""
    seed: Seed = 0
    """Seed of the choice of those images, and of random scores."""

    def __post_init__(self) -> None:
        """Raise RequestError for settings that contradict each other."""
        super().__post_init__()
        for name in self.parts:
            check_name(name, PARTS, "parts")
        if self.preset is not None:
            self._check_preset(PruneConfig(0.0), "data", "seed", *Recipe.amounts)
        if self.needs_data and self.data is None:
            what = f"{self.chosen_by} measures" if self.is_calibrated else "recalibrate estimates"
            raise RequestError(f"data: {what} on training images, got none; expected data=dict(type=...)")
        if self.data and not self.needs_data:
            raise RequestError(f"data: not used with {self.chosen_by}, got {self.data.type}; expected none")

    @property
    def recipe(self) -> "PruneConfig":
        """The recipe with the preset's widths in it, if there is one."""
        return self if self.preset is None else replace(self, preset=None, **self._of_preset())

    @property
    def label(self) -> str:
        """Name part of a file that was cut this way: `l1-0.5`, `l1-max_macs-1000000`, `resnet34-A`."""
        if self.preset:
            return self.preset
        amount = "-".join(map(str, self.limit)) if self.limit else f"{self.prune_ratio:g}"
        return f"{self.chosen_by}-{amount}"


with_config(ConfigDict(extra="forbid"))(Pruning)


_PRUNING = TypeAdapter(Pruning)


def varied(pruning: Pruning, name: str, changed: Mapping[str, Any]) -> Pruning:
    """Return a method's pruning; raise RequestError if what is changed is no setting, or does not fit the rest.

    How much is cut is the method's own where it says so in another way: ratios beside a limit or a preset are not
    taken over, nor is what shapes the widths beside a preset.
    """
    own = next((one for one in ("preset", *_LIMITS) if one in changed), None)
    if own and "prune_ratios" in changed:
        raise RequestError(f"methods.{name}.prune_ratios: not used with {own}, got both; expected one of them")
    left = [*_AMOUNTS, *(_SHAPES if own == "preset" else ())] if own else []
    settings = {one.name: getattr(pruning, one.name) for one in fields(pruning) if one.name not in left}
    return checked({**settings, **changed}, _PRUNING, f"methods.{name}")


_LIMITS = ("kept_macs", "kept_params")
_AMOUNTS = ("prune_ratios", "preset", *_LIMITS)
_SHAPES = ("round_to", "ratios", "widths", "skip", "min_channels", "ranking", "steps", "select_channels")
