"""COCO box AP by pycocotools, VOC's by mmdet's code, for predictions of mmdet and of deployed graphs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from classify.checkpoint import ModelCard
from classify.mmengine_runner import make_runner, silent
from deploy.fitting import Graph, boxes_by_graph, fit_image
from deploy.images import image_from_file
from deploy.tensors import TensorSpec
from detect.annotations import as_coco, numbers, read_annotations
from detect.data import CocoSet
from detect.train import coco_loader
from detect.voc_map import VocEvaluation, voc_averages, voc_evaluation

__all__ = [
    "Detections",
    "averages",
    "box_evaluation",
    "box_figures",
    "box_map",
    "coco_evaluation",
    "coco_map",
    "coco_rows",
    "detected_rows",
    "detections_by_graph",
    "evaluate_detector",
    "figures_of",
    "fitted_images",
    "found_by_detector",
    "metric_of",
]

_Progress = Callable[[int, int], object]
"""Called after every image with (images done, images in all)."""


@dataclass(frozen=True)
class Detections:
    """Detections in one image, in its own pixels, highest score first."""

    image_id: int
    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def metric_of(annotations: Path) -> str:
    """Return the name of the metric that annotations are scored by, `coco` or `voc07`."""
    return str(read_annotations(annotations).get("metric", "coco"))


def box_map(annotations: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    """Return `coco_map`, or `voc_averages` where the annotations are VOC's."""
    if metric_of(annotations) == "coco":
        return coco_map(annotations, results)
    return averages(box_evaluation(annotations, results))


def box_figures(annotations: Path, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `figures_of` the evaluation of result rows."""
    return figures_of(box_evaluation(annotations, results), annotations)


def box_evaluation(annotations: Path, results: list[dict[str, Any]]) -> COCOeval | VocEvaluation:
    """Return `coco_evaluation`, or `voc_evaluation` where the annotations are VOC's."""
    data = read_annotations(annotations)
    return voc_evaluation(data, results) if "metric" in data else coco_evaluation(annotations, results)


def coco_map(annotations: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    """Return {"map", "map50", "map75"}, each in [0, 1], over every image of the annotation file.

    Args:
        annotations: COCO annotation file with at least one box.
        results: COCO result rows (image_id, category_id, bbox as x, y, w, h, score); images without rows count too.
    """
    return averages(coco_evaluation(annotations, results)) if results else dict.fromkeys(_AVERAGES, 0.0)


_AVERAGES = ("map", "map50", "map75")


def averages(evaluation: COCOeval | VocEvaluation) -> dict[str, float]:
    """Return what `box_map` does, of an evaluation."""
    if isinstance(evaluation, VocEvaluation):
        return voc_averages(evaluation)
    with silent():  # pycocotools prints its tables
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(_AVERAGES, evaluation.stats[:3], strict=True)}


def figures_of(evaluation: COCOeval | VocEvaluation, annotations: Path) -> dict[str, Any]:
    """Return `averages`, the mAP of small, medium and large objects, and `per_class`, the mAP of each by its name.

    The bands are those of COCO, by area: up to 32 x 32, up to 96 x 96, and above; VOC has none. None where there are
    no such objects.
    """
    if isinstance(evaluation, VocEvaluation):
        per_class = {one.name: one.average_precision("11points") for one in evaluation.classes}
        return {**voc_averages(evaluation), "per_class": per_class}
    categories = read_annotations(annotations)["categories"]
    order = numbers(categories)
    whole = averages(evaluation)
    precision = evaluation.eval["precision"]  # (IoU thresholds, recalls, categories, bands, limits of detections)
    bands = {f"map_{name}": _mean(precision[..., band, -1]) for band, name in enumerate(_BANDS, start=1)}
    places = {number: place for place, number in enumerate(evaluation.params.catIds)}
    per_class = {
        category["name"]: _mean(precision[:, :, places[order[category["id"]]], 0, -1]) for category in categories
    }
    return {**whole, **bands, "per_class": per_class}


_BANDS = ("small", "medium", "large")


def _mean(precisions: NDArray[np.float64]) -> float | None:
    known = precisions[precisions > -1]
    return float(known.mean()) if known.size else None


def coco_evaluation(annotations: Path, results: list[dict[str, Any]]) -> COCOeval:
    """Return pycocotools' evaluation after it has matched result rows with boxes; see `coco_map`."""
    data = read_annotations(annotations)
    images, categories = numbers(data["images"]), numbers(data["categories"])
    results = [
        {**row, "image_id": images[row["image_id"]], "category_id": categories[row["category_id"]]} for row in results
    ]
    with silent():
        truth = as_coco(COCO, annotations)
        evaluation = COCOeval(truth, truth.loadRes(results) if results else COCO(), "bbox")
        evaluation.evaluate()
    return evaluation


def evaluate_detector(
    detector: nn.Module, card: ModelCard, coco: CocoSet, work_dir: Path, progress: _Progress | None = None
) -> dict[str, float]:
    """Return `box_map` of `found_by_detector`."""
    return box_map(coco.annotations, found_by_detector(detector, card, coco, work_dir, progress))


def found_by_detector(
    detector: nn.Module, card: ModelCard, coco: CocoSet, work_dir: Path, progress: _Progress | None = None
) -> list[dict[str, Any]]:
    """Return COCO result rows of mmdet's predictions, by mmengine's Runner; `progress` is called after every image."""
    found = _Rows(read_annotations(coco.annotations))
    runner = make_runner(
        detector,
        work_dir,
        scope="mmdet",
        test_dataloader=coco_loader(card, coco),
        test_cfg={},
        test_evaluator=[found],
        custom_hooks=[_ProgressHook(progress)] if progress else None,
    )
    with silent():
        runner.test()
    detector.cpu().eval()
    return found.rows


def detections_by_graph(
    graph: Graph, coco: CocoSet, size_hw: tuple[int, int], batch_size: int = 1, dtype: str = "float32"
) -> Iterator[Detections]:
    """Run a deployed graph over a whole set, with the preprocessing of mmdet's test pipeline.

    The graph always gets `batch_size` images of dtype `dtype`: the last one is repeated to fill the last batch, and
    counts once.

    It differs from mmdet for portrait images in a landscape shape, and the reverse: mmdet rotates the shape for them, a
    graph cannot, so they are scaled down to fit.
    """
    images = (image for _, image in _images(coco))
    ids = (row["id"] for row in read_annotations(coco.annotations)["images"])
    for image_id, boxes in zip(ids, boxes_by_graph(graph, images, size_hw, batch_size, dtype), strict=True):
        yield Detections(image_id, *boxes)


def fitted_images(
    coco: CocoSet, size_hw: tuple[int, int], dtype: str = "float32"
) -> Iterator[tuple[int, dict[str, NDArray[Any]], NDArray[np.float32]]]:
    """Yield (image id, graph inputs, factors) of every image of a set; see `fit_image`.

    Raises:
        RequestError: If an image does not decode.
    """
    return ((image_id, *fit_image(image, size_hw, dtype)) for image_id, image in _images(coco))


def detected_rows(graph: Graph, image: TensorSpec, coco: CocoSet, progress: _Progress) -> list[dict[str, Any]]:
    """Return COCO result rows of all detections of a deployed graph in a set; `image` is the spec of its input."""
    batch, _, height, width = image.fixed_shape("image")
    truth = read_annotations(coco.annotations)
    category_ids = [category["id"] for category in truth["categories"]]
    rows = []
    found = detections_by_graph(graph, coco, (height, width), batch, image.dtype)
    for i, detections in enumerate(found):
        rows += coco_rows(detections, category_ids)
        progress(i + 1, len(truth["images"]))
    return rows


def coco_rows(detections: Detections, category_ids: list[int]) -> list[dict[str, Any]]:
    """Return COCO result rows; `category_ids` has the category of each label."""
    rows = []
    for (x0, y0, x1, y1), score, label in zip(
        detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
    ):
        bbox = [x0, y0, x1 - x0, y1 - y0]
        row = {"image_id": detections.image_id, "category_id": category_ids[label], "bbox": bbox, "score": score}
        rows.append(row)
    return rows


def _images(coco: CocoSet) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for row in read_annotations(coco.annotations)["images"]:
        yield row["id"], image_from_file(coco.images / row["file_name"])


class _ProgressHook(Hook):
    def __init__(self, progress: _Progress) -> None:
        self.progress = progress

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.progress(batch_idx + 1, len(runner.test_dataloader))


class _Rows(BaseMetric):
    """The rows of what mmdet finds, with the ids of the annotation file."""

    def __init__(self, data: dict[str, Any]) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._image_ids = {number: own for own, number in numbers(data["images"]).items()}
        self._category_ids = [category["id"] for category in data["categories"]]

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Take note of what was found in a batch."""
        for sample in data_samples:
            found = sample["pred_instances"]
            arrays = (found[key].cpu().numpy() for key in ("bboxes", "scores", "labels"))
            rows = coco_rows(Detections(self._image_ids[sample["img_id"]], *arrays), self._category_ids)
            self.results.append(rows)  # one item an image, as mmengine counts them

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Keep the rows of all processes; they are scored together, by `box_map`."""
        self.rows = [row for rows in results for row in rows]
        return {}
