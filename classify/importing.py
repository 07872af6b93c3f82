"""Classifiers from weights of others, or from none: the way into espalier for a network that one has."""

from pathlib import Path

import torch
from torch import Tensor, nn

from classify.backbones import (
    Architecture,
    build_classifier,
    check_backbone,
    default_crop_share,
    default_side,
    heads_of,
)
from classify.checkpoint import ModelCard, Preprocessing, load_weights, read_weights
from classify.class_order import IMAGENET, numbered
from classify.data import class_names
from classify.naming import IN_TIMM
from classify.provenance import origin, outcome
from command.errors import MissingFileError, RequestError
from command.own_code import is_own_code

__all__ = ["class_list", "import_classifier"]

_HEADS = {"fc", "head", "classifier", "linear", "last_linear"}
"""Parts of the names of heads in torchvision, timm and mmpretrain."""


def import_classifier(
    name: str, file: Path | None, classes: str | None = None, image_size: int | None = None, seed: int = 0
) -> tuple[nn.Module, ModelCard]:
    """Return a classifier in eval mode, and its card.

    Args:
        name: A key of `BACKBONES`, or of your own code, `package.module:function`; it is run.
        file: Weights of torchvision's, timm's or mmdet's (mmpretrain's) network of that name; random ones if None.
            Nothing in it is executed. It may have no head: that stays random.
        classes: See `class_list`; default: as many as the file's head has, or 1000.
        image_size: Side of the crops that it classifies, in pixels; None for that of the published weights.
        seed: Of random weights.

    Raises:
        MissingFileError: If the file is missing.
        RequestError: If the file's weights are of another network, or its classes of another number.
    """
    if is_own_code(name):
        check_backbone(name)
    side = image_size or default_side(name)
    weights = read_weights(file) if file else {}
    names = class_list(classes, _num_classes(weights))
    torch.manual_seed(seed)
    architecture = Architecture(name, len(names))
    net = build_classifier(architecture)
    if file:
        load_weights(
            net,
            weights,
            str(file),
            optional=heads_of(name) if _is_headless(weights) else (),
            in_same_order=name in IN_TIMM,
        )
    provenance = {**origin({"import": name, "seed": seed}, file), **outcome({})}
    seen = Preprocessing.of(name, (side, side), default_crop_share(name))
    card = ModelCard("classifier", architecture, names, seen, provenance=provenance)
    return net.eval(), card


def class_list(classes: str | None, num_classes: int) -> tuple[str, ...]:
    """Return class names, in the order of their labels.

    Args:
        classes: A number; a text file with a name in each line; a folder with train/<class>/. None for ImageNet's
            names if there are 1000, else numbered ones.
        num_classes: How many there are, where `classes` does not say.

    Raises:
        MissingFileError: If it is neither a number nor an existing path.
        RequestError: If the file has no names.
    """
    if classes is None or classes.isdecimal():
        num = int(classes) if classes else num_classes
        return IMAGENET if num == len(IMAGENET) else numbered(num)
    path = Path(classes)
    if path.is_dir():
        return class_names(path)
    if not path.is_file():
        raise MissingFileError(f"--classes {path}: no such file; expected a number, a list of names or an image folder")
    names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    if not names:
        raise RequestError(f"--classes {path}: has no names, got an empty file; expected one in each line")
    return names


def _num_classes(weights: dict[str, Tensor]) -> int:
    """Return the outputs of the last linear layer in a file; ImageNet's if it has none."""
    linear = [tensor for name, tensor in weights.items() if name.endswith("weight") and tensor.ndim == 2]
    return len(linear[-1]) if linear and not _is_headless(weights) else len(IMAGENET)


def _is_headless(weights: dict[str, Tensor]) -> bool:
    """Return whether no head of a classifier is among these weights, as in a detector's or a pretrained backbone's."""
    return not any(_HEADS.intersection(name.split(".")) for name in weights)
