"""The experiment as a typed description, checked before any work.

A config file is an mmengine Python config whose names are the fields of `ExperimentConfig`. Relative paths in it start
at the current folder.
"""

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from classify.budget import SCRATCH_B_CAP, Budget
from classify.config import Backbone, Cap, FolderData, ShapesData
from classify.schedule import Schedule
from classify.tracking import Backend
from command.config import Part, Seed, Threads, check_name, checked
from command.errors import RequestError
from detect.config import CocoData, ScenesData
from detect.orderings import CONTROLS, ORDERINGS
from experiment.cuts import Pruning, check_once, varied
from experiment.sections import Classification, CropsData, Detection, Timing
from experiment.targets import Target
from prune.choose.presets import PRESETS

__all__ = [
    "LEARNT_PARTS",
    "Backbone",
    "Budget",
    "Classification",
    "CocoData",
    "Control",
    "CropsData",
    "Detection",
    "ExperimentConfig",
    "FolderData",
    "LearntPart",
    "ScenesData",
    "ShapesData",
    "Target",
    "Timing",
]

_LONGEST_NAME = 60
"""Letters of a name: four bytes each, with what is added, make a file name still."""
MethodName = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=_LONGEST_NAME)]
"""Of a method or a target, part of a row's name."""

Control = Literal["dense_longer"]
"""What is trained besides, so that a difference is not taken for the effect of pruning."""
LearntPart = Literal["classification", "detection"]
LEARNT_PARTS: tuple[LearntPart, ...] = ("classification", "detection")
"""The parts of an experiment that have such a training."""
Terms = Literal["paper", "equal_iterations", "equal_macs"]
"""How long detectors are trained beside each other."""


class ExperimentConfig(Part):
    """Orderings x budgets x ratios x seeds on one backbone and one detection set."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=_LONGEST_NAME)
    """Also the name of the run's folder."""
    backbone: Backbone
    classification: Classification
    detection: Detection | None = None
    """None: the classifiers are the result; they are not transferred, and `ordering` tells where weights come from."""
    backbones: dict[MethodName, dict[str, Any]] = Field({})
    """Several backbones side by side: the name of each in the rows, what it has other than `backbone`, and perhaps
    `methods`, the names of those that it is pruned by; default: all."""
    pruning: Pruning = Pruning()
    methods: dict[MethodName, dict[str, Any]] = Field({})
    """Several methods side by side: the name of each in the rows, and what it has other than `pruning`."""
    latency: Timing = Timing()
    targets: dict[MethodName, Target] = Field({"onnxruntime": Target()}, min_length=1)
    """Where every model runs: a row for each, with the mAP and the latency of one file."""
    orderings: Annotated[tuple[str, ...], AfterValidator(check_once)] = tuple(ORDERINGS)
    """The dense reference is always run, and `transfer_prune` only with `detection`."""
    controls: Annotated[tuple[Control, ...], AfterValidator(check_once)] = ()
    """`dense_longer`: the dense detector, trained once for the epochs of `detection.train` and `detection.finetune`
    together, and those between steps, as many as `transfer_prune` has. The schedule is that of `detection.train`,
    stretched."""
    terms: Terms = "paper"
    """How long detectors are trained beside each other, where there are any, see `experiment.terms`. `paper`: as
    published, so that `transfer_prune` alone has both `detection.train` and `detection.finetune`."""
    budgets: Annotated[tuple[Budget, ...], AfterValidator(check_once)] = ("scratch_e", "scratch_b")
    """How long `scratch_transfer` trains its classifier."""
    scratch_b_cap: Cap = SCRATCH_B_CAP
    """Most times the dense epochs that `scratch_b` trains: 2 as the paper on ImageNet, None = no limit as on CIFAR."""
    strict_budget: bool = False
    """Whether the epochs of `classification.finetune`, and those between cuts, are added to those of `budgets`."""
    seeds: Annotated[tuple[Seed, ...], AfterValidator(check_once)] = Field((0,), min_length=1)
    num_threads: Threads = 1
    """CPU threads of torch in every stage; weights depend on it. Times are taken with `latency.num_threads`."""
    tracking: Annotated[tuple[Backend, ...], AfterValidator(check_once)] = ()
    """Where curves are written while training, and in the end the figures of every row; changes no result."""

    @field_validator("methods")
    @classmethod
    def _differ_from_pruning(
        cls, methods: dict[str, dict[str, Any]], info: ValidationInfo
    ) -> dict[str, dict[str, Any]]:
        for name, changed in methods.items():
            if "pruning" in info.data:
                varied(info.data["pruning"], name, changed)
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
    def _names_no_method_as_the_reference(self) -> "ExperimentConfig":
        for name in self.prunings:
            if name in (taken := ("dense", *CONTROLS)):
                raise RequestError(
                    f"methods: a row of what is not cut has that name, got {name}; expected none of {taken}"
                )
        return self

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
    def _has_targets_of_its_models(self) -> "ExperimentConfig":
        for name, target in self.targets.items():
            got = "int8" if target.precision == "int8" else f"size_hw={target.size_hw}" if target.size_hw else None
            if got and self.detection is None:
                raise RequestError(f"targets.{name}: for detectors alone, got {got}; expected detection=dict(...)")
        return self

    @model_validator(mode="after")
    def _has_what_is_not_trained(self) -> "ExperimentConfig":
        """Raise RequestError for what needs images of classes, where classifiers are not fine-tuned on any."""
        asked = self.orderings if "orderings" in self.model_fields_set else ()
        lacks = {
            "backbone.weights": not (self.backbones or self.backbone.weights) and "none; expected a file",
            "detection": self.detection is None and "none; expected detection=dict(...)",
            "orderings": "scratch_transfer" in asked and "scratch_transfer; expected others",
            "strict_budget": self.strict_budget and "True; expected False",
        }
        learn = [name for name, pruning in self.prunings.items() if pruning.needs_data or pruning.epochs_between]
        lacks["pruning"] = bool(learn) and f"{learn[0]}, which reads images; expected a criterion of weights alone"
        for name, got in lacks.items():
            if got and self.classification.finetune is None:
                raise RequestError(f"{name}: does not fit classification.finetune=None, got {got}")
        return self

    @model_validator(mode="after")
    def _has_the_network_of_its_presets(self) -> "ExperimentConfig":
        got = self.backbone.name, self.backbone.base_channels
        if self.backbones:  # each is checked by itself
            return self
        for preset in filter(None, (pruning.preset for pruning in self.prunings.values())):
            if got != (PRESETS[preset].backbone, 64):
                raise RequestError(
                    f"preset: {preset} is for {PRESETS[preset].backbone} with base_channels 64, "
                    f"got {got[0]} with base_channels {got[1]}; expected that backbone"
                )
        return self

    @model_validator(mode="after")
    def _equal_terms_are_possible(self) -> "ExperimentConfig":
        if self.terms != "paper" and self.controls and self.detection:
            raise RequestError(
                f"controls: not used with terms={self.terms}, where dense is trained as long; expected none"
            )
        trainings = (self.detection.train, self.detection.finetune) if self.detection else ()
        sizes = [schedule.batch_size for schedule in trainings]
        if self.terms != "paper" and len(set(sizes)) > 1:
            raise RequestError(
                f"terms: iterations of different batches, got {sizes[0]} images in detection.train and {sizes[1]} in "
                f'detection.finetune; expected the same, or terms="paper"'
            )
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

    @model_validator(mode="after")
    def _draws_tickets_of_classifiers(self) -> "ExperimentConfig":
        tickets = [pruning for pruning in self.prunings.values() if pruning.is_ticket]
        if tickets and self.detection and "transfer_prune" in self.orderings:
            raise RequestError(
                f"pruning.method: {tickets[0].method} begins with random weights, and a detector that is pruned with "
                "those of a classifier, got transfer_prune among orderings; expected orderings without it"
            )
        for pruning in tickets:
            schedule = self.learning_of("classification", pruning)
            if schedule and schedule.epochs < pruning.window:
                raise RequestError(
                    f"pruning.window: more masks than epochs to draw them in, got {pruning.window} for "
                    f"{schedule.epochs} epochs; expected a smaller one, or a longer classification.learning"
                )
        return self

    @model_validator(mode="after")
    def _trains_by_mmdet_once(self) -> "ExperimentConfig":
        """Raise RequestError for what changes the length of a training, which a config of mmdet sets."""
        stepped = [name for name, one in self.prunings.items() if one.steps > 1 and "transfer_prune" in self.orderings]
        asked = {
            "controls": (self.controls, "()"),
            "pruning.steps": (stepped, "1, or no transfer_prune"),
            "terms": ([self.terms] if self.terms != "paper" else [], "paper"),
        }
        for name, (got, remedy) in asked.items():
            if got and self.detection and self.detection.given:
                raise RequestError(
                    f"{name}: not used with mmdet_config, whose training has its own length, got {', '.join(got)}; "
                    f"expected {remedy}"
                )
        return self

    @model_validator(mode="after")
    def _is_possible_with_each_backbone(self) -> "ExperimentConfig":
        faults = []
        for name in self.backbones:
            try:
                self._with_backbone(name)
            except RequestError as error:
                faults.append(str(error))
        if faults:
            raise RequestError("; ".join(faults))
        return self

    @property
    def by_backbone(self) -> dict[str, "ExperimentConfig"]:
        """The experiment of each backbone by itself."""
        return {name: self._with_backbone(name) for name in self.backbones} or {self.backbone.name: self}

    def _with_backbone(self, name: str) -> "ExperimentConfig":
        changed = dict(self.backbones[name])
        methods = changed.pop("methods", None) if "methods" in changed else tuple(self.methods)
        if not isinstance(methods, tuple | list) or (not methods and self.methods):
            raise RequestError(f"backbones.{name}.methods: wrong, got {methods!r:.80}; expected names of methods")
        for method in methods:
            check_name(method, self.methods or ["none, without methods"], f"backbones.{name}.methods")
        settings: dict[str, Any] = {one: getattr(self, one) for one in self.model_fields_set - {"backbones"}}
        settings["backbone"] = {**self.backbone.model_dump(exclude_unset=True), **changed}
        settings["methods"] = {method: self.methods[method] for method in methods}
        return checked(settings, TypeAdapter(ExperimentConfig), f"backbones.{name}")

    @property
    def prunings(self) -> dict[str, Pruning]:
        """What is compared: the name of each method in the rows, and what it cuts."""
        if not self.methods:
            return {self.pruning.chosen_by: self.pruning}
        return {name: varied(self.pruning, name, changed) for name, changed in self.methods.items()}

    @property
    def detecting(self) -> Detection:
        """How detectors learn, where there are any."""
        assert self.detection is not None
        return self.detection

    @property
    def added_epochs(self) -> int:
        """Epochs that the strict budget adds to a training from random weights."""
        finetune = self.classification.finetune
        return finetune.epochs if finetune and self.strict_budget else 0

    def learning_of(self, part: LearntPart, pruning: Pruning | None) -> Schedule | None:
        """Return the schedule of the training in which the method acts; None where it acts in none."""
        if pruning and pruning.is_ticket and part == "detection":
            return None
        settings = self.classification if part == "classification" else self.detection
        return (settings.learning or settings.train) if settings and pruning and pruning.is_learned else None

    def between_cuts(self, part: LearntPart, pruning: Pruning | None) -> Schedule | None:
        """Return the schedule of each training between two cuts; None where there is one cut."""
        settings = self.classification if part == "classification" else self.detection
        epochs = pruning.epochs_between if pruning else 0
        return replace(settings.finetune, epochs=epochs) if settings and settings.finetune and epochs else None

    def with_longer_training(self) -> "ExperimentConfig":
        """Return the experiment that `dense_longer` is the dense row of."""
        detection, finetune = self.detecting, self.detecting.finetune.epochs
        between = max((pruning.steps - 1) * pruning.epochs_per_step for pruning in self.prunings.values())
        train = replace(detection.train, epochs=detection.train.epochs + finetune + between)
        return self.model_copy(update={"detection": detection.model_copy(update={"train": train})})
