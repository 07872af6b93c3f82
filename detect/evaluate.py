"""COCO box AP by pycocotools, for mmdet's own predictions and for those of a deployed graph alike."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from classify.checkpoint import ModelCard
from classify.train import Progress, make_runner, silent
from detect.data import CocoSet, read_annotations
from detect.train import coco_loader

__all__ = [
    "Detections",
    "Graph",
    "agreement",
    "coco_map",
    "coco_rows",
    "detections_by_graph",
    "evaluate_detector",
    "fit_image",
    "fitted_images",
]

Graph = Callable[[dict[str, NDArray[Any]]], dict[str, NDArray[Any]]]
"""A fixed-shape detector: {"image", "image_hw"} -> {"boxes_xyxy", "scores", "labels"}."""


@dataclass(frozen=True)
class Detections:
    """What was found in one image, in its own pixels, highest score first."""

    image_id: int
    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


def coco_map(annotations: Path, results: list[dict[str, Any]]) -> dict[str, float]:
    """Return {"map", "map50", "map75"}, each in [0, 1], over every image of the annotation file.

    Args:
        annotations: COCO ground truth, with at least one box.
        results: COCO result rows (image_id, category_id, bbox as x, y, w, h, score); images without rows count too.
    """
    names = ("map", "map50", "map75")
    if not results:
        return dict.fromkeys(names, 0.0)
    with silent():  # pycocotools prints its tables
        truth = COCO(str(annotations))
        _renumber(truth)
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(value) for name, value in zip(names, evaluation.stats[:3], strict=True)}


def evaluate_detector(
    detector: nn.Module, card: ModelCard, coco: CocoSet, work_dir: Path, progress: Progress | None = None
) -> dict[str, float]:
    """Return `coco_map` of mmdet's own predictions through mmengine's Runner; `progress` is told of every image."""
    prefix = work_dir / "predictions"
    metric = {
        "type": "CocoMetric",
        "ann_file": str(coco.annotations),
        "format_only": True,  # it would round to three digits; the rows it writes are scored here
        "outfile_prefix": str(prefix),
    }
    runner = make_runner(
        detector,
        work_dir,
        scope="mmdet",
        test_dataloader=coco_loader(card, coco),
        test_cfg={},
        test_evaluator=[metric],
        custom_hooks=[_Told(progress)] if progress else None,
    )
    with silent():
        runner.test()
    detector.cpu().eval()
    return coco_map(coco.annotations, json.loads(Path(f"{prefix}.bbox.json").read_text()))


def detections_by_graph(
    graph: Graph, coco: CocoSet, size_hw: tuple[int, int], batch_size: int = 1
) -> Iterator[Detections]:
    """Run a deployed graph over a whole set, with the preprocessing of mmdet's test pipeline.

    It always gets `batch_size` images: the last image is repeated to fill the last batch, and counted once.

    It differs for pictures that stand where the shape lies, or lie where it stands: mmdet turns the shape for them, a
    graph cannot, so they are scaled to fit into it as it is.
    """
    images = fitted_images(coco, size_hw)
    while batch := list(itertools.islice(images, batch_size)):
        outputs = graph(_stacked([inputs for _, inputs, _ in batch], batch_size))
        boxes, scores, labels = (outputs[name] for name in ("boxes_xyxy", "scores", "labels"))
        for i, (image_id, _, grew_xyxy) in enumerate(batch):
            found = labels[i] >= 0
            in_image = (boxes[i][found] / grew_xyxy).astype(np.float32)
            yield Detections(image_id, in_image, scores[i][found], labels[i][found])


def fitted_images(
    coco: CocoSet, size_hw: tuple[int, int]
) -> Iterator[tuple[int, dict[str, NDArray[np.float32]], NDArray[np.float32]]]:
    """Yield (image id, graph inputs, factors) of every image of a set; see `fit_image`.

    Raises:
        ValueError: If an image does not decode.
    """
    for row in read_annotations(coco.annotations)["images"]:
        path = coco.images / row["file_name"]
        image_HW3 = mmcv.imread(str(path))
        if image_HW3 is None:
            raise ValueError(f"{path}: does not decode; expected an image")
        yield row["id"], *fit_image(mmcv.bgr2rgb(image_HW3), size_hw)


def agreement(expected: dict[str, NDArray[Any]], actual: dict[str, NDArray[Any]]) -> tuple[int, int]:
    """Return how many expected detections a graph found too, and how many there are, over the batch.

    There are as many as the larger of both counts, so that what a graph finds beyond the expected ones counts against
    it. Found too: the same label, a score within 1e-4 and a box within 1e-4 of the largest coordinate. Order does not
    count: two whose scores agree to the last digits may come in either order.

    Args:
        expected: {"boxes_xyxy", "scores", "labels"} of the module, with their batch dimension.
        actual: The same of the exported file.
    """
    limit = 1e-4 * max(1.0, float(np.abs(expected["boxes_xyxy"]).max(initial=0.0)))
    boxes, scores, labels = (
        np.abs(expected[name][:, :, None].astype(np.float64) - actual[name][:, None])
        for name in ("boxes_xyxy", "scores", "labels")
    )
    is_same = (boxes.max(-1) <= limit) & (scores <= 1e-4) & (labels == 0)
    is_detection = expected["labels"] >= 0
    num_found = int((actual["labels"] >= 0).sum())
    return int((is_same.any(-1) & is_detection).sum()), max(int(is_detection.sum()), num_found)


def fit_image(
    image_HW3: NDArray[np.uint8], size_hw: tuple[int, int]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.float32]]:
    """Scale an RGB image into a fixed shape, ratio kept, padded right and below.

    Returns:
        The graph's inputs (batch 1: `image` float32 RGB 0..255, `image_hw` the part that is image), and the factors
        by which x0, y0, x1, y1 grew.
    """
    height, width = size_hw
    # a factor: given a size, imrescale would turn it to portrait or landscape as the image is
    scaled = mmcv.imrescale(image_HW3, min(height / image_HW3.shape[0], width / image_HW3.shape[1]))
    h, w = scaled.shape[:2]
    image = np.zeros((1, 3, height, width), np.float32)
    image[0, :, :h, :w] = scaled.transpose(2, 0, 1)
    grew_x, grew_y = w / image_HW3.shape[1], h / image_HW3.shape[0]
    inputs = {"image": image, "image_hw": np.array([[h, w]], np.float32)}
    return inputs, np.array([grew_x, grew_y, grew_x, grew_y], np.float32)


def coco_rows(detections: Detections, category_ids: list[int]) -> list[dict[str, Any]]:
    """Return COCO result rows; `category_ids[label]` is the category of a label."""
    rows = []
    for (x0, y0, x1, y1), score, label in zip(
        detections.boxes_xyxy.tolist(), detections.scores.tolist(), detections.labels.tolist(), strict=True
    ):
        bbox = [x0, y0, x1 - x0, y1 - y0]
        row = {"image_id": detections.image_id, "category_id": category_ids[label], "bbox": bbox, "score": score}
        rows.append(row)
    return rows


def _stacked(inputs: Sequence[dict[str, NDArray[Any]]], batch_size: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of single images as those of one batch, filled up with the last."""
    filled = [*inputs, *[inputs[-1]] * (batch_size - len(inputs))]
    return {name: np.concatenate([one[name] for one in filled]) for name in filled[0]}


class _Told(Hook):
    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def after_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.progress(batch_idx + 1, len(runner.test_dataloader))


def _renumber(truth: COCO) -> None:
    """Count annotations from 1: COCOeval takes an id of 0 for "no box matched"."""
    for number, row in enumerate(truth.dataset["annotations"], start=1):
        row["id"] = number
    truth.createIndex()
