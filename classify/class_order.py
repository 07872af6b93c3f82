"""Which class a label means, where the data or the weights name none: then the order of the labels alone is known."""

import re

from torchvision.models import ResNet50_Weights

__all__ = ["IMAGENET", "best_names", "is_same_order", "numbered"]

IMAGENET = tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
"""ImageNet's names, in the order of its sorted synsets."""
_SYNSET = re.compile(r"n\d{8}")


def numbered(num: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(f"class {label}" for label in range(num))


def is_same_order(known: tuple[str, ...], given: tuple[str, ...]) -> bool:
    """Return whether labels of the classes `given` may be taken for labels of the classes `known`.

    Names must be equal. Classes that are only numbered fit any, as ImageNet's synsets fit its names; data without names
    may lack the last classes.
    """
    if _is_numbered(given):
        return len(given) <= len(known)
    is_unnamed = _is_numbered(known) or (known == IMAGENET and all(map(_SYNSET.fullmatch, given)))
    return known == given or (is_unnamed and len(known) == len(given))


def best_names(known: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of classes in the same order: those known, unless they are only numbers."""
    return given if _is_numbered(known) and len(given) == len(known) else known


def _is_numbered(classes: tuple[str, ...]) -> bool:
    return classes == numbered(len(classes))
