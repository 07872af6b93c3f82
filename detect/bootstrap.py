"""How sure the difference of two mAPs is: both detectors are scored on the same images, drawn again many times."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from classify.resampling import image_draws
from detect.voc_map import VocEvaluation

__all__ = ["difference_interval", "drawn_maps", "map_of_draws"]

_VOC_RECALLS: NDArray[Any] = np.arange(0, 1.05, 0.1)  # as mmdet has them
_NO_POSITIVES = np.nan


@dataclass(frozen=True)
class _Hits:
    """The detections of one category that are true at one IoU threshold: precision is highest at these."""

    places: NDArray[np.int64]
    """Their places among all detections, (K,), highest score first."""
    ignored: NDArray[np.int64]
    """Places of the detections that do not count, (G,)."""
    passed: NDArray[np.int64]
    """How many of those come before each true one, (K,)."""

    def average_precision(
        self, draws_D: NDArray[np.int64], counts_D: NDArray[np.int64], num_positives: int, recalls: NDArray[np.float64]
    ) -> float:
        true_K = draws_D[self.places].cumsum()
        ignored = np.append(0, draws_D[self.ignored].cumsum())
        precision_K = true_K / np.maximum(counts_D[self.places] - ignored[self.passed], np.spacing(1))
        precision_K = np.maximum.accumulate(precision_K[::-1])[::-1]
        places = np.searchsorted(true_K / num_positives, recalls, side="left")
        return float(np.append(precision_K, 0.0)[places].mean())  # a recall that is not reached has precision 0


@dataclass(frozen=True)
class _Category:
    """The detections of one category, highest score first."""

    images: NDArray[np.int64]
    """Place of each detection's image, (D,)."""
    hits: list[_Hits]
    """By IoU threshold."""
    positives: NDArray[np.int64]
    """Objects to be found per image, (I,)."""

    def average_precision(self, draws_I: NDArray[np.int64], recalls: NDArray[np.float64]) -> float:
        """Return the average precision where each image counts as often as it was drawn; NaN without objects."""
        num_positives = int(self.positives @ draws_I)
        if not num_positives:
            return _NO_POSITIVES
        draws_D = draws_I[self.images]
        counts_D = draws_D.cumsum()
        return float(np.mean([hits.average_precision(draws_D, counts_D, num_positives, recalls) for hits in self.hits]))


def difference_interval(
    evaluation: COCOeval | VocEvaluation, reference: COCOeval | VocEvaluation, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of one mAP minus that of the reference, by a paired bootstrap over images.

    Args:
        evaluation: Of `detect.evaluate.box_evaluation`.
        reference: That of another detector on the same images.
        seed: Of the draws.
    """
    low, high = np.nanpercentile(drawn_maps(evaluation, seed) - drawn_maps(reference, seed), [2.5, 97.5])
    return float(low), float(high)


def drawn_maps(evaluation: COCOeval | VocEvaluation, seed: int = 0) -> NDArray[np.float64]:
    """Return the mAP on each of many draws of the images, the same for every detector; NaN where none has an object."""
    recalls, categories = _categories(evaluation)
    return np.array([_map(categories, draws_I, recalls) for draws_I in image_draws(_num_images(evaluation), seed)])


def _num_images(evaluation: COCOeval | VocEvaluation) -> int:
    return evaluation.num_images if isinstance(evaluation, VocEvaluation) else len(evaluation.params.imgIds)


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
        return _VOC_RECALLS, [
            _Category(one.images, [_hits(one.is_true, ~(one.is_true | one.is_false))], one.positives)
            for one in evaluation.classes
        ]
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
    hits = [
        _hits(matches_D & ~ignored_D, ignored_D) for matches_D, ignored_D in zip(matches_TD, ignored_TD, strict=True)
    ]
    return _Category(image_D[order].astype(np.int64), hits, positives_I)


def _hits(is_true_D: NDArray[np.bool_], is_ignored_D: NDArray[np.bool_]) -> _Hits:
    places_K, ignored_G = np.flatnonzero(is_true_D), np.flatnonzero(is_ignored_D)
    return _Hits(places_K, ignored_G, np.searchsorted(ignored_G, places_K))
