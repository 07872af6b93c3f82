"""How sure the difference of two mAPs is: both detectors are scored on the same images, drawn again many times."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from detect.voc_map import VocEvaluation

__all__ = ["difference_interval", "map_of_draws"]

_NUM_DRAWS = 100
_VOC_RECALLS: NDArray[Any] = np.arange(0, 1.05, 0.1)  # as mmdet has them
_NO_POSITIVES = np.nan


@dataclass(frozen=True)
class _Category:
    """The detections of one category, highest score first."""

    images: NDArray[np.int64]
    """Place of each detection's image, (D,)."""
    is_true: NDArray[np.bool_]
    """By IoU threshold, (T, D); neither true nor false where a detection does not count."""
    is_false: NDArray[np.bool_]
    positives: NDArray[np.int64]
    """Objects to be found per image, (I,)."""

    def average_precision(self, draws_I: NDArray[np.int64], recalls: NDArray[np.float64]) -> float:
        """Return the average precision where each image counts as often as it was drawn; NaN without objects."""
        num_positives = self.positives @ draws_I
        if not num_positives:
            return _NO_POSITIVES
        if not len(self.images):
            return 0.0
        draws_D = draws_I[self.images]
        true_TD, false_TD = ((hit * draws_D).cumsum(1) for hit in (self.is_true, self.is_false))
        precision_TD = true_TD / np.maximum(true_TD + false_TD, np.spacing(1))
        precision_TD = np.maximum.accumulate(precision_TD[:, ::-1], 1)[:, ::-1]
        found = []
        for recall_D, precision_D in zip(true_TD / num_positives, precision_TD, strict=True):
            places = np.searchsorted(recall_D, recalls, side="left")
            found.append(np.append(precision_D, 0.0)[places].mean())  # a recall that is not reached has precision 0
        return float(np.mean(found))


def difference_interval(
    evaluation: COCOeval | VocEvaluation, reference: COCOeval | VocEvaluation, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of one mAP minus that of the reference, by a paired bootstrap over images.

    Args:
        evaluation: Of `detect.evaluate.box_evaluation`.
        reference: That of another detector on the same images.
        seed: Of the draws.
    """
    both = [_categories(one) for one in (evaluation, reference)]
    num_images = len(both[0][1][0].positives) if both[0][1] else 0
    rng = np.random.default_rng(seed)
    differences = []
    for _ in range(_NUM_DRAWS):
        draws_I = np.bincount(rng.integers(0, num_images, num_images), minlength=num_images)
        one, other = (_map(categories, draws_I, recalls) for recalls, categories in both)
        differences.append(one - other)
    low, high = np.nanpercentile(differences, [2.5, 97.5])
    return float(low), float(high)


def map_of_draws(evaluation: COCOeval | VocEvaluation, draws_I: NDArray[np.int64]) -> float:
    """Return the mAP where each image, in the order of their ids, counts as often as it was drawn."""
    recalls, categories = _categories(evaluation)
    return _map(categories, draws_I, recalls)


def _map(categories: list[_Category], draws_I: NDArray[np.int64], recalls: NDArray[np.float64]) -> float:
    found = [category.average_precision(draws_I, recalls) for category in categories]
    return float(np.nanmean(found)) if not np.isnan(found).all() else np.nan


def _categories(evaluation: COCOeval | VocEvaluation) -> tuple[NDArray[np.float64], list[_Category]]:
    """Return the recalls at which precision is read, and the detections of every category."""
    if isinstance(evaluation, VocEvaluation):
        voc = [
            _Category(one.images, one.is_true[None], one.is_false[None], one.positives) for one in evaluation.classes
        ]
        return _VOC_RECALLS, voc
    params = evaluation.params
    num_images, num_areas = len(params.imgIds), len(params.areaRng)
    found = []
    for place in range(len(params.catIds)):
        start = place * num_areas * num_images  # of the first band, which has objects of every size
        images = dict(enumerate(evaluation.evalImgs[start : start + num_images]))
        found.append(_category({i: image for i, image in images.items() if image}, num_images, len(params.iouThrs)))
    return np.asarray(params.recThrs), found


def _category(images: dict[int, dict[str, Any]], num_images: int, num_thresholds: int) -> _Category:
    positives_I = np.zeros(num_images, np.int64)
    for i, image in images.items():
        positives_I[i] = np.count_nonzero(np.asarray(image["gtIgnore"]) == 0)
    image_D = np.concatenate([np.full(len(image["dtScores"]), i) for i, image in images.items()] or [np.zeros(0)])
    scores_D = np.concatenate([image["dtScores"] for image in images.values()] or [np.zeros(0)])
    order = np.argsort(-scores_D, kind="mergesort")  # as pycocotools sorts
    none = np.zeros((num_thresholds, 0))
    matches_TD, ignored_TD = (
        np.concatenate([image[key] for image in images.values()] or [none], axis=1)[:, order].astype(bool)
        for key in ("dtMatches", "dtIgnore")
    )
    return _Category(image_D[order].astype(np.int64), matches_TD & ~ignored_TD, ~matches_TD & ~ignored_TD, positives_I)
