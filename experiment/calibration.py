"""From the name of a criterion to the criterion, measured on training images where it needs them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from classify.calibration import classifier_losses
from classify.checkpoint import ModelCard
from classify.commands import check_classes
from classify.config import FolderData, ShapesData
from classify.data import check_folder, class_names
from classify.data import fingerprint as folder_fingerprint
from classify.synthetic import SHAPES, write_shapes
from detect.calibration import detector_losses
from detect.config import CocoData, ScenesData
from detect.data import CocoSet, check_coco
from detect.data import fingerprint as coco_fingerprint
from detect.synthetic import write_scenes
from experiment.config import PruneConfig, Pruning
from prune.calibrate import Losses
from prune.criteria import make_criterion

__all__ = ["measured_on_data", "measured_options"]

_ModelData = ShapesData | FolderData | ScenesData | CocoData


def measured_options(
    cut: Pruning | PruneConfig, model: nn.Module, losses: Callable[..., Losses] | None, seed: int
) -> dict[str, Any]:
    """Return what is passed on to `prune.prune_model`, with the criterion made and measured where it needs data.

    Args:
        cut: Names the criterion.
        model: The dense classifier or detector; it is left as it was.
        losses: Takes `batch_size`, `num_batches` and `seed`; not needed where the criterion needs no data.
        seed: Of the images that are looked at, and of random scores.
    """
    data = losses(**cut.calibration.model_dump(), seed=seed) if losses and cut.needs_data else None
    return {**cut.options(), "criterion": make_criterion(cut.criterion, model, data, seed)}


def measured_on_data(
    cut: PruneConfig, path: Path, model: nn.Module, card: ModelCard
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return `measured_options` of a model file, and the fingerprint of the training set that was looked at, if any.

    Raises:
        FileNotFoundError: If the data is missing.
        ValueError: If it is not data for this model.
    """
    if cut.data is None:
        return measured_options(cut, model, None, cut.seed), ()
    _check_fits(path, card, cut.data)
    with _training_set(card, cut.data) as images:
        if isinstance(images, CocoSet):
            options = measured_options(cut, model, partial(detector_losses, card, images), cut.seed)
            return options, (coco_fingerprint(images),)
        options = measured_options(cut, model, partial(classifier_losses, card, images), cut.seed)
        return options, (folder_fingerprint(images),)


def _check_fits(path: Path, card: ModelCard, data: _ModelData) -> None:
    if isinstance(data, ShapesData | FolderData) != (card.kind == "classifier"):
        expected = "shapes or folder" if card.kind == "classifier" else "scenes or coco"
        raise ValueError(
            f"data.type: not for {path}, which holds a {card.kind}, got {data.type!r}; expected {expected}"
        )
    if isinstance(data, FolderData):
        check_folder(data.root)
        check_classes(path, card, class_names(data.root))
    else:
        check_classes(path, card, check_coco(data.train) if isinstance(data, CocoData) else SHAPES)


@contextmanager
def _training_set(card: ModelCard, data: _ModelData) -> Iterator[Path | CocoSet]:
    """Yield an image folder for a classifier, a COCO set for a detector; what is generated goes afterwards."""
    if isinstance(data, FolderData | CocoData):
        yield data.root if isinstance(data, FolderData) else data.train
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        if isinstance(data, ShapesData):
            write_shapes(folder, data.num_train, data.num_val, card.preprocessing["image_size"], data.seed)
            yield folder
        else:
            yield write_scenes(folder, data.num_train, card.preprocessing["image_size_hw"], data.seed)
