"""Training images of a classifier, and its losses on them, for methods that choose channels on data."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from classify.classifier_model import ClassifierModel, Normalized, collate
from classify.image_data import GivenImages
from prune.choose.measured import Losses
from prune.refit.rows import Batches

__all__ = ["calibration_batches", "classifier_inputs", "classifier_losses"]


def classifier_losses(card: ModelCard, images: GivenImages, batch_size: int, num_batches: int, seed: int = 0) -> Losses:
    """Return the cross entropy on training images, batch by batch, each time the same.

    The images are cropped as for evaluation. No image is read until the losses are iterated.

    Args:
        card: Of the classifier.
        images: Their training images are used.
        batch_size: Images per batch.
        num_batches: At most; fewer if there are not enough images.
        seed: Of the choice of images.
    """
    batches = _batches(card, images, batch_size, num_batches, seed)

    def losses(net: nn.Module) -> Iterator[Tensor]:
        model = ClassifierModel(net)
        for batch in batches():
            yield model(**batch, mode="loss")["loss"]

    return losses


def classifier_inputs(
    card: ModelCard, images: GivenImages, batch_size: int, num_batches: int, seed: int = 0
) -> Batches:
    """Return the training images as the network reads them, (N, 3, S, S); the arguments are `classifier_losses`'s."""
    batches = _batches(card, images, batch_size, num_batches, seed)
    return lambda: (batch["inputs"] for batch in batches())


def _batches(
    card: ModelCard, images: GivenImages, batch_size: int, num_batches: int, seed: int
) -> Callable[[], Iterator[dict[str, Any]]]:
    def batches() -> Iterator[dict[str, Any]]:
        side = card.preprocessing.image_hw[0]
        dataset: Any = images.images("train", side, crop_share=card.preprocessing.crop_share)
        preprocess = Normalized(card.preprocessing.mean_rgb, card.preprocessing.std_rgb)
        for places in calibration_batches(len(dataset), batch_size, num_batches, seed):
            yield preprocess(collate([dataset[i] for i in places]))

    return batches


def calibration_batches(num_images: int, batch_size: int, num_batches: int, seed: int) -> Iterator[list[int]]:
    """Yield the indices of the images of each batch, drawn without repetition; the last batch may be smaller."""
    places = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    for batch in places[: batch_size * num_batches].split(batch_size):
        yield batch.tolist()
