"""`cut_model` prunes every model, classifier or detector, for `espalier prune` and for experiments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from classify.checkpoint import ModelCard, check_classes
from classify.image_data import AnyImages, GivenImages, ImageData
from classify.losses import classifier_inputs, classifier_losses
from classify.pruning import example_of, prune_classifier, with_card
from classify.synthetic import SHAPES
from command.errors import RequestError, WorkError
from detect.config import AnyBoxes, GivenBoxes
from detect.data import CocoSet, check_coco, fingerprint
from detect.losses import detector_inputs, detector_losses
from detect.pruning import prune_detector
from detect.synthetic import write_scenes
from experiment.cuts import RANK, Cut, PruneConfig, Pruning
from prune.choose.criteria import make_criterion
from prune.choose.measured import Losses
from prune.choose.recipe import Recipe
from prune.learn.early_bird import EarlyBird
from prune.learn.method import Method
from prune.learn.slimming import NetworkSlimming
from prune.learn.soft_filters import SoftFilterPruning
from prune.learn.structure_selection import StructureSelection
from prune.pruning import Decision, Pruned
from prune.recalibration import check_has_statistics, recalibrating
from prune.refit.rows import Batches
from prune.refitting import refit_model

__all__ = [
    "ModelData",
    "Train",
    "TrainingImages",
    "check_data_kind",
    "check_settled",
    "cut_by_config",
    "cut_in_steps",
    "cut_model",
    "method_on",
    "recalibrate",
]

ModelData = AnyImages | AnyBoxes
Train = Callable[[nn.Module, str], object]
"""Trains a model in place; the training has a name, under which one that was interrupted goes on."""


@dataclass(frozen=True)
class TrainingImages:
    """The images that a method chooses channels on; both functions take `batch_size`, `num_batches` and `seed`."""

    losses: Callable[..., Losses]
    inputs: Callable[..., Batches]

    @classmethod
    def of_classifier(cls, card: ModelCard, images: GivenImages) -> "TrainingImages":
        """Return those of a classifier."""
        return cls(partial(classifier_losses, card, images), partial(classifier_inputs, card, images))

    @classmethod
    def of_detector(cls, detector: nn.Module, card: ModelCard, coco: CocoSet) -> "TrainingImages":
        """Return those of a detector."""
        return cls(partial(detector_losses, card, coco), partial(detector_inputs, detector, card, coco))


def cut_model(
    model: nn.Module,
    card: ModelCard,
    recipe: Cut,
    data: TrainingImages | None,
    seed: int,
    parts: Sequence[str] = ("backbone",),
    between: Train | None = None,
) -> tuple[nn.Module, ModelCard, Pruned]:
    """Return the slim model, its card, and what was done; the given model is not changed.

    Args:
        model: A dense classifier or detector.
        card: Its card.
        recipe: What is cut.
        data: Not read where the recipe needs none.
        seed: Of the choice of images, and of random scores.
        parts: Those of a detector that are cut.
        between: Called with the name of each layer that a method has refitted; see `prune.refit_model`.

    Raises:
        RequestError: If the recipe does not fit the model.
    """
    if recipe.recalibrate:
        check_has_statistics(model)
    slim, card, pruned = _cut(model, card, recipe, data, seed, parts, between)
    recalibrate(slim, recipe, data, seed)
    return slim, card, pruned


def cut_in_steps(
    model: nn.Module,
    card: ModelCard,
    pruning: Pruning,
    data: TrainingImages,
    seed: int,
    train: Train,
) -> tuple[nn.Module, ModelCard, tuple[Decision, ...]]:
    """Return the slim model, its card, whose spec is that of all cuts in one, and the groups that stayed whole.

    The model is trained between the steps, or between the layers of a single one, as `pruning` says.

    Args:
        model: Dense; it is not changed.
        card: Its card.
        pruning: What is cut in the end, by a method that needs no training of its own.
        data: As for `cut_model`.
        seed: As for `cut_model`.
        train: Called between two cuts.
    """
    between, widths = train if pruning.epochs_per_layer else None, dict[str, int]()
    for step, recipe in enumerate(pruning.in_steps(), 1):
        counted = replace(recipe, dense_widths=widths)
        model, card, pruned = cut_model(model, card, counted, data, seed, between=between)
        widths = widths or {decision.group: decision.num_channels for decision in pruned.decisions}
        if step < pruning.steps:
            train(model, f"step_{step}")
    return model, card, tuple(one for one in pruned.untouched if one.num_kept == widths[one.group])


def recalibrate(slim: nn.Module, recipe: Cut, data: TrainingImages | None, seed: int) -> None:
    """Estimate BatchNorm's statistics of a slim model anew, in place, if the recipe says so."""
    if recipe.recalibrate:
        assert data is not None
        losses = data.losses(batch_size=recipe.calibration.batch_size, num_batches=recipe.recalibrate, seed=seed)
        with recalibrating(slim):
            for _ in losses(slim):
                pass


def _cut(
    model: nn.Module,
    card: ModelCard,
    recipe: Cut,
    data: TrainingImages | None,
    seed: int,
    parts: Sequence[str],
    between: Train | None,
) -> tuple[nn.Module, ModelCard, Pruned]:
    some = {"batch_size": recipe.calibration.batch_size, "num_batches": recipe.calibration.num_batches, "seed": seed}
    if recipe.method != RANK:
        assert data is not None
        if "roi_head" in parts:
            raise RequestError(
                f"parts: {recipe.method} fits layers to what they read, and regions come from a whole detector, got "
                f"{', '.join(parts)}; expected parts without roi_head"
            )
        refit = partial(refit_model, batches=data.inputs(**some), method=recipe.method, seed=seed, between=between)
        if card.kind == "detector":
            return prune_detector(model, card, recipe, parts=parts, pruner=refit)
        return with_card(card, refit(model, example_of(card), recipe=recipe))
    losses = data.losses(**some) if data and recipe.is_calibrated else None
    criterion = make_criterion(recipe.criterion, model, losses, seed)
    if card.kind == "detector":
        return prune_detector(model, card, recipe, criterion, parts=parts)
    return prune_classifier(model, card, recipe, criterion)


def method_on(
    model: nn.Module, example: tuple[Tensor, ...], recipe: Recipe, pruning: Pruning
) -> NetworkSlimming | SoftFilterPruning | StructureSelection:
    """Return the method of an experiment that acts in training, made on a model.

    Args:
        model: The network, or a detector's layers.
        example: Its arguments.
        recipe: What is cut, in the model's names.
        pruning: Names the method, with its settings.

    Raises:
        RequestError: If the recipe does not fit the model or the method.
    """
    if pruning.effective_penalty is None:
        return SoftFilterPruning(model, example, recipe)
    if pruning.is_ticket:
        watched = (recipe.prune_ratio or 0.0,)
        return EarlyBird(model, example, recipe, watched, pruning.window, pruning.tolerance, pruning.effective_penalty)
    if pruning.method == "slimming":
        return NetworkSlimming(model, example, recipe, pruning.effective_penalty, pruning.shift)
    ratio, penalty = recipe.prune_ratio or 0.0, pruning.effective_penalty
    return StructureSelection(model, example, penalty=penalty, prune_ratio=ratio, skip=tuple(recipe.skip))


def check_settled(method: Method, num_epochs: int) -> None:
    """Raise WorkError if the method had to settle in a training of so many epochs, and has not."""
    if isinstance(method, EarlyBird) and not method.is_settled:
        (ratio,) = method.ratios
        raise WorkError(
            f"early_bird: no ticket of {ratio:g} after {num_epochs} epochs, the last of {method.window} masks differs "
            f"from another in {method.distance(ratio):.3g} of all channels; expected at most {method.tolerance:g}: "
            "give classification.learning more epochs, or pruning.tolerance a larger share"
        )


def cut_by_config(
    model: nn.Module, card: ModelCard, config: PruneConfig, path: Path
) -> tuple[tuple[nn.Module, ModelCard, Pruned], tuple[str, ...]]:
    """Return what `cut_model` does, and the fingerprint of the training set that was used, if any.

    Raises:
        MissingFileError: If the data is missing.
        RequestError: If it is not data for this model, or the recipe does not fit the model.
    """
    cut = partial(cut_model, model, card, config.recipe, seed=config.seed, parts=config.parts)
    if config.data is None:
        return cut(data=None), ()
    check_data_kind(path, card, config.data)
    _check_data(path, card, config.data)
    with TemporaryDirectory() as folder:
        size_hw = card.preprocessing.image_hw
        if isinstance(config.data, ImageData):
            images = config.data.placed(Path(folder), size_hw[0])
            return cut(data=TrainingImages.of_classifier(card, images)), images.fingerprints("train")
        coco = _training_set(config.data, Path(folder), size_hw)
        return cut(data=TrainingImages.of_detector(model, card, coco)), (fingerprint(coco),)


def check_data_kind(path: Path, card: ModelCard, data: ModelData) -> None:
    """Raise RequestError unless the data is for classifiers where the model file holds one, or for detectors."""
    if isinstance(data, ImageData) != (card.kind == "classifier"):
        expected = "shapes, folder, npz or cifar" if card.kind == "classifier" else "scenes, coco or voc"
        raise RequestError(
            f"data.type: not for {path}, which holds a {card.kind}, got {data.type!r}; expected {expected}"
        )


def _check_data(path: Path, card: ModelCard, data: ModelData) -> None:
    if isinstance(data, ImageData):
        check_classes(path, card, data.check())
    else:
        check_classes(path, card, check_coco(data.train) if isinstance(data, GivenBoxes) else SHAPES)


def _training_set(data: AnyBoxes, folder: Path, size_hw: tuple[int, int]) -> CocoSet:
    """Return the training set of a detector; a generated one is made in `folder`."""
    return data.train if isinstance(data, GivenBoxes) else write_scenes(folder, data.num_train, size_hw, data.seed)
