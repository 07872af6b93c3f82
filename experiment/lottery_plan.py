"""A study of lottery tickets as a graph of stages: the dense trainings, what is cut from them, tickets and controls."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic_core import to_jsonable_python
from safetensors.torch import save_file
from torch import nn
from torch.nn.modules.conv import _ConvNd

from classify.backbones import build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, read_weights, save_model
from classify.curve import CURVE, save_curve
from classify.evaluate import evaluate_classifier
from classify.image_data import GivenImages
from classify.provenance import provenance
from classify.pruning import example_of, with_card
from classify.schedule import Schedule
from classify.train import train_classifier
from command.errors import WorkError
from experiment.cuts import PruneConfig
from experiment.cutting import cut_model
from experiment.lottery_config import LotteryConfig
from experiment.stages import CHECKPOINTS, Figures, Report, Stage, StageStore
from experiment.steps import MODEL
from prune.cost import cost_of
from prune.cut.spec import PruneSpec
from prune.learn.magnitude import HeldMasks, Scale, magnitude_masks
from prune.learn.method import Method
from prune.learn.tickets import Rewinding, channel_control, channel_ticket, weight_control, weight_ticket
from prune.pruning import Pruned

__all__ = ["MASKS", "SPEC", "START", "Row", "Study", "new_classifier", "plan_of"]

START, MASKS, SPEC = "start.safetensors", "masks.safetensors", "spec.json"
"""Files of stages besides the model: the network to rewind to; what a cut leaves of single weights, or of channels."""
_CONTROL_SEED = 1_000_003
"""Added to a seed, for the weights of its controls."""
_STARTS: tuple[tuple[Literal["ticket", "control"], Scale], ...] = (
    *(("ticket", "dense"), ("ticket", "sparse")),
    *(("control", "dense"), ("control", "sparse")),
)


@dataclass(frozen=True)
class Row:
    """A training whose accuracy is compared."""

    pruning: str
    """`dense`, `one_shot`, `iterative`, `channels` or `channel_rounds`."""
    cut: str
    """How much of it, in words; empty for the dense network."""
    start: str | None
    """`ticket` or `control`; None for the dense network."""
    scale: str | None
    """Of its first weights, `dense` or `sparse`."""
    lr: float
    seed: int
    training: Stage
    """Whose figures and model it has."""
    cutting: Stage | None = None
    """What it started from."""


@dataclass(frozen=True)
class Study:
    """The settings of a study, with the images that it reads."""

    config: LotteryConfig
    images: GivenImages
    classes: tuple[str, ...]
    prints: tuple[str, ...]
    """Fingerprints of the images when the study began."""
    store: StageStore


def new_classifier(config: LotteryConfig, classes: tuple[str, ...], seed: int) -> tuple[nn.Module, ModelCard]:
    """Return a dense network with random weights, and its card."""
    arch = config.architecture(len(classes))
    seen = Preprocessing((config.image_size, config.image_size), crop_share=config.crop_share)
    torch.manual_seed(seed)
    return build_classifier(arch), ModelCard("classifier", arch, classes, seen)


def plan_of(study: Study) -> tuple[list[Row], list[Stage]]:
    """Return the rows, and all their stages, each once, in an order in which they can run."""
    branches = [_Branch(study, lr, seed) for lr in study.config.rates for seed in study.config.seeds]
    rows = [row for branch in branches for row in branch.rows()]
    stages = {stage.hash: stage for branch in branches for stage in branch.stages}
    return rows, [*stages.values()]


@dataclass(frozen=True)
class _Branch:
    """All of a study that shares a dense training: one learning rate and one seed."""

    study: Study
    lr: float
    seed: int
    stages: list[Stage] = field(default_factory=list)
    """In an order in which they can run; `rows` fills it."""

    @property
    def schedule(self) -> Schedule:
        return replace(self.study.config.schedule, lr=self.lr)

    def rows(self) -> Iterator[Row]:
        dense = self._dense()
        yield Row("dense", "", None, None, self.lr, self.seed, dense)
        config = self.study.config
        for ratio in config.one_shot:
            yield from self._compared("one_shot", f"{ratio:g}", dense, self._masks(ratio, ratio, dense))
        if config.iterative:
            yield from self._rounds(dense, config.iterative.share, config.iterative.rounds)
        for cut in config.channels:
            yield from self._compared("channels", cut.label, dense, self._channels(cut, dense))
        for one in config.channel_rounds:
            yield from self._rounds_of_channels(dense, one.cut, one.rounds)

    def _rounds(self, dense: Stage, share: float, compared: tuple[int, ...]) -> Iterator[Row]:
        trained, masks = dense, None
        for number in range(1, max(compared) + 1):
            masks = self._masks(share, 1 - (1 - share) ** number, trained, masks)
            trained = self._start(dense, masks, "ticket", "dense")
            if number in compared:
                yield from self._compared("iterative", f"{number} x {share:g}", dense, masks)

    def _rounds_of_channels(self, dense: Stage, cut: PruneConfig, compared: tuple[int, ...]) -> Iterator[Row]:
        trained = dense
        for number in range(1, max(compared) + 1):
            cutting = self._channels(cut, trained, number)
            trained = self._start(dense, cutting, "ticket", "dense")
            if number in compared:
                yield from self._compared("channel_rounds", f"{number} x {cut.label}", dense, cutting)

    def _compared(self, pruning: str, cut: str, dense: Stage, cutting: Stage) -> Iterator[Row]:
        for start, scale in _STARTS:
            training = self._start(dense, cutting, start, scale)
            yield Row(pruning, cut, start, scale, self.lr, self.seed, training, cutting)

    def _dense(self) -> Stage:
        config = self.study.config
        settings = {
            "data": list(self.study.prints),
            "classes": list(self.study.classes),
            "backbone": config.backbone.model_dump(exclude={"weights"}),
            "image_size": config.image_size,
            "crop_share": config.crop_share,
            "augmentation": config.augmentation.effective(),
            "schedule": self.schedule.effective(),
            "rewind": [config.rewind_iterations, config.rewind_epochs],
            "num_threads": config.num_threads,
            "seed": self.seed,
        }

        def work(folder: Path, progress: Report) -> Figures:
            net, card = new_classifier(config, self.study.classes, self.seed)
            rewinding = Rewinding(net, config.rewind_iterations, config.rewind_epochs)
            figures = self._trained(net, card, rewinding, folder, progress)
            save_model(folder / START, weight_ticket(net, rewinding.start, {}), card)
            return figures

        return self._stage("dense", settings, (), work, self.schedule.epochs)

    def _masks(self, ratio: float, removed: float, trained: Stage, before: Stage | None = None) -> Stage:
        """Return the stage that removes a share of the weights left, of a network trained with the masks before."""
        inputs = (trained, before) if before else (trained,)
        files = [self.study.store.folder(stage) for stage in inputs]

        def work(folder: Path, progress: Report) -> Figures:
            net, _ = load_classifier(files[0] / MODEL)
            masks = magnitude_masks(net, ratio, within=read_weights(files[1] / MASKS) if before else None)
            save_file({name: mask.clone() for name, mask in masks.items()}, folder / MASKS)
            return {"removed": 1 - sum(int(mask.sum()) for mask in masks.values()) / _num_weights(net)}

        return self._stage(f"masks-{removed:.4g}", {"prune_ratio": ratio}, inputs, work)

    def _channels(self, cut: PruneConfig, trained: Stage, number: int = 1) -> Stage:
        """Return the stage that cuts what the rounds before have left; its specification counts from dense."""
        source = self.study.store.folder(trained)

        def work(folder: Path, progress: Report) -> Figures:
            net, card = load_classifier(source / MODEL)
            slim, card, _ = cut_model(net, card, cut.recipe, None, self.seed)
            assert card.prune_spec is not None
            (folder / SPEC).write_text(card.prune_spec.to_json())
            dense, _ = new_classifier(self.study.config, self.study.classes, self.seed)
            return {"removed": 1 - _num_weights(slim) / _num_weights(dense)}

        settings = {"cut": json.dumps(to_jsonable_python(cut))}  # as text: of patterns the first that matches counts
        rounds = f"{number}x" if number > 1 else ""  # the first is a single cut, which is done once
        return self._stage(f"channels-{rounds}{cut.label}", settings, (trained,), work)

    def _start(self, dense: Stage, cutting: Stage, start: str, scale: Scale) -> Stage:
        """Return the training of a ticket or a control."""
        sources = [self.study.store.folder(stage) for stage in (dense, cutting)]
        control_seed = (self.seed + _CONTROL_SEED) % 2**31
        about = {"start": start, "scale": scale, "cut": cutting.name}

        def work(folder: Path, progress: Report) -> Figures:
            first, card = load_classifier(sources[0] / START)
            new, _ = new_classifier(self.study.config, self.study.classes, control_seed)
            if (sources[1] / MASKS).is_file():
                masks = read_weights(sources[1] / MASKS)
                if start == "ticket":
                    net = weight_ticket(first, first.state_dict(), masks, scale)
                else:
                    net = weight_control(new, masks, scale, control_seed)
                return self._trained(net, card, HeldMasks(net, masks), folder, progress, sources[0] / START, about)
            spec = PruneSpec.from_json((sources[1] / SPEC).read_bytes())
            if start == "ticket":
                net = channel_ticket(first, first.state_dict(), spec, scale)
            else:
                net = channel_control(new, spec, scale, control_seed)
            net, card, _ = with_card(card, Pruned(net, spec, ()))
            return self._trained(net, card, None, folder, progress, sources[0] / START, about)

        name = f"{start}-{scale}_scale-{cutting.name.partition('-lr')[0]}"
        return self._stage(name, {"start": start, "scale": scale}, (dense, cutting), work, self.schedule.epochs)

    def _stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: Iterable[Stage],
        work: Callable[[Path, Report], Figures],
        cost: float = 0.1,
    ) -> Stage:
        stage = Stage(f"{name}-lr{self.lr:g}-seed{self.seed}", settings, tuple(inputs), work, cost)
        self.stages.append(stage)
        return stage

    def _trained(
        self,
        net: nn.Module,
        card: ModelCard,
        method: Method | None,
        folder: Path,
        progress: Report,
        parent: Path | None = None,
        about: Mapping[str, str] | None = None,
    ) -> Figures:
        """Train, evaluate and save a network."""
        study, config, side = self.study, self.study.config, self.study.config.image_size
        train = study.images.images("train", side, config.augmentation)
        work = folder / CHECKPOINTS
        curve = train_classifier(net, train, self.schedule, work, self.seed, progress, method=method)
        val = study.images.images("val", side, crop_share=config.crop_share)
        accuracy = evaluate_classifier(net, val, work / "evaluation")
        if study.images.fingerprints("train", "val") != study.prints:
            shutil.rmtree(folder)
            raise WorkError(f"{folder.name}: its data was changed while it ran; give the same command again")
        save_curve(curve.evaluated(accuracy), folder / CURVE)
        cost = cost_of(net, example_of(card))
        figures = {**accuracy, "macs": cost.macs, "params": cost.params}
        made = provenance(config, parent, figures, self.schedule)
        made |= {"seed": self.seed, "data": list(study.prints), **(about or {})}
        save_model(folder / MODEL, net, replace(card, provenance=made))
        return figures


def _num_weights(net: nn.Module) -> int:
    """Return the number of weights of all convolutions, biases aside."""
    return sum(layer.weight.numel() for layer in net.modules() if isinstance(layer, _ConvNd))
