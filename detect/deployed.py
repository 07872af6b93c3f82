"""The mAP of a deployed file, ONNX or engine, compared with that of the model file it was exported from."""

import itertools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from classify.checkpoint import ModelCard, check_classes
from command.errors import RequestError
from command.files import existing_file, sha256_of
from command.progress import RunProgress
from deploy.deployment import DEPLOYMENT, Deployed, open_deployment
from deploy.runtimes.module import exact_float32
from deploy.runtimes.runner import FileRunner
from deploy.tensors import Arrays
from deploy.text import printable
from detect.annotations import read_annotations
from detect.bootstrap import difference_interval
from detect.data import CocoSet, check_coco, coco_subset
from detect.detector_file import load_detector
from detect.evaluate import averages, box_evaluation, detected_rows, found_by_detector, metric_of
from detect.export import notes_on_limit

__all__ = ["Evaluated", "evaluate_deployed"]

_MAX_DIFFERENCE = 0.001  # of mAP; PyTorch and ONNX Runtime differ by less in fp32


@dataclass(frozen=True)
class Evaluated:
    """Result of `evaluate_deployed`."""

    file: Path
    model: Path | None
    """The model file that the file was compared with."""
    figures: dict[str, Any]
    """`map` and `map50` of the file by `metric`, as `detect.evaluate.box_map` has them, `num_images`, `precision`,
    `runtime`, `device`, `file_sha256`; `num_unsettled`, the images for which its NMS iterations were too few, None if
    the file has no such output; `framework_map` and `framework_map50` of the model file, the `difference` of both mAPs
    and its `difference_interval` (95 %, by a paired bootstrap over images), None without a model file."""
    notes: tuple[str, ...]
    """Notes on the figures, one line each."""

    @property
    def warning(self) -> str | None:
        """One line, if the mAP is below the model's by more than the choice of images accounts for; else None."""
        if not self._differs or self.figures["difference_interval"][1] >= 0:
            return None
        return (
            f"warning: {self._comparison}, got {self.figures['map']:.4f} in {self.figures['precision']}; expected "
            f"{self.figures['framework_map']:.4f} within 0.1 points, find the cause before you deploy it"
        )

    @property
    def remark(self) -> str | None:
        """One line, if the mAP differs but gives no cause for a warning; else None."""
        if not self._differs or self.warning:
            return None
        low, high = (100 * bound for bound in self.figures["difference_interval"])
        sure = "more than" if low > 0 else "no more than"
        return f"note: {self._comparison}: {sure} the choice of images accounts for, 95 % of {low:+.2f} to {high:+.2f}"

    @property
    def _differs(self) -> bool:
        difference = self.figures["difference"]
        return difference is not None and abs(difference) > _MAX_DIFFERENCE

    @property
    def _comparison(self) -> str:
        points = 100 * self.figures["difference"]
        side = "below" if points < 0 else "above"
        return f"{self.file}: mAP is {abs(points):.2f} points {side} that of {self.model}"

    def table(self) -> Table:
        """Return a table of both mAPs."""
        figures = self.figures
        table = Table("", "mAP", "mAP50", caption=f"{figures['num_images']:,} images")
        table.add_row(f"{figures['runtime']}, {figures['precision']}", *_formatted(figures["map"], figures["map50"]))
        if self.model:
            table.add_row(
                f"PyTorch, {self.model.name}", *_formatted(figures["framework_map"], figures["framework_map50"])
            )
            table.add_row("difference", f"{figures['difference']:+.4f}", "")
        return table


def evaluate_deployed(
    path: Path,
    coco: CocoSet,
    model: Path | None,
    limit: int | None,
    console: Console,
    *,
    mmdet: Path | None = None,
    runtime: str | None = None,
) -> Evaluated:
    """Score an exported detector, and the model file it was exported from, if that is given or found.

    In PyTorch the images are scaled to the graph's shape too.

    Args:
        path: An ONNX file or engine with `deploy.json` beside it, or the folder (its ONNX file is used).
        coco: The set to score on.
        model: The model file; default: searched by its name and hash in `deploy.json`.
        limit: Number of images, from the first; None for all.
        console: Shows progress.
        mmdet: mmdet's config, for a checkpoint of mmdet.
        runtime: A name in `deploy.runtimes.registry.RUNTIMES`; default: the one for this kind of file.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If the file is not an Espalier detector or not for the runtime, the runtime is not installed, the
            set is invalid or has other classes, or the model is not the one it was exported from.
        WorkError: If the runtime needs a GPU and finds none.
    """
    deployed = open_deployment(path, may_differ=True)
    runner = deployed.runner(runtime)
    model, notes = _source(deployed, model, mmdet)
    framework = _framework(deployed, model, mmdet) if model else None
    with tempfile.TemporaryDirectory() as folder:
        some = _first_of(coco, limit, Path(folder))
        _check_same_classes(deployed, coco, check_coco(some))
        data = read_annotations(some.annotations)
        images = data["images"]
        settled: list[NDArray[Any]] = []
        rows, reference = _rows(runner, settled, framework, some, Path(folder), console)
        figures = _figures(runner, some, rows, reference)
    # the last batch may be padded with repeated images
    num_unsettled = int((~np.concatenate(settled)[: len(images)]).sum()) if settled else None
    notes += [*_notes_on_running(runner, num_unsettled, len(images))]
    notes += _notes_on_shape(deployed.network_hw, images) if framework else []
    notes += notes_on_limit(deployed.outputs["scores"].fixed_shape("scores")[1], data["annotations"])
    details = {"num_unsettled": num_unsettled, "file_sha256": runner.file_sha256}
    evaluated = Evaluated(deployed.file, model, figures | details, tuple(notes))
    return replace(evaluated, notes=(*notes, *filter(None, [evaluated.remark])))


def _check_same_classes(deployed: Deployed, coco: CocoSet, classes: tuple[str, ...]) -> None:
    """Raise RequestError at the first class that differs from the deployed detector's."""
    known = deployed.deployment.classes
    for label, (got, expected) in enumerate(itertools.zip_longest(classes, known, fillvalue="none")):
        if got != expected:
            raise RequestError(
                f"{coco.annotations}: classes differ from those of {deployed.file}, got {got} as number {label + 1} "
                f"of {len(classes)}; expected {expected}, {len(known)} in all"
            )


def _framework(deployed: Deployed, model: Path, mmdet: Path | None) -> tuple[nn.Module, ModelCard]:
    """Return the detector in PyTorch, and its card with the graph's shape."""
    detector, card = load_detector(model, mmdet)
    check_classes(model, card, deployed.deployment.classes)
    return detector, replace(card, preprocessing=replace(card.preprocessing, image_hw=deployed.network_hw))


def _source(deployed: Deployed, given: Path | None, mmdet: Path | None) -> tuple[Path | None, list[str]]:
    """Return the model file that the graph was exported from, None if it is not found, and notes."""
    deployment, folder = deployed.deployment, deployed.file.resolve().parent
    notes = []
    if not deployed.is_as_exported:
        notes.append(f"note: {deployed.file}: changed since its export, its {DEPLOYMENT} has another sha256")
    if given:
        _check_source(existing_file(given, "expected a model file"), deployed)
        return given, notes
    if deployment.mmdet and not mmdet:
        options = printable(f"--model {deployment.model} --mmdet {deployment.mmdet}")
        return None, [*notes, f"note: not compared with its mmdet checkpoint; to compare, add {options}"]
    beside = [place / deployment.model for place in (folder.parent, folder)]
    found = [path for path in beside if path.is_file() and sha256_of(path) == deployment.model_sha256]
    if not found:
        option = printable(f"--model {deployment.model}")
        notes.append(f"note: not compared, no model file is given or found beside the folder; to compare, add {option}")
    return found[0] if found else None, notes


def _check_source(model: Path, deployed: Deployed) -> None:
    recorded = deployed.deployment.model_sha256
    if recorded and sha256_of(model) != recorded:
        raise RequestError(
            f"{model}: not the model that {deployed.file} was exported from, got another sha256; "
            f"expected {deployed.deployment.model}, unchanged since the export"
        )


def _first_of(coco: CocoSet, limit: int | None, folder: Path) -> CocoSet:
    """Return the set of the first `limit` images, with its annotations written into `folder`; all without a limit."""
    return coco if limit is None else coco_subset(coco, range(limit), folder / "instances.json", f"--limit {limit}")


def _rows(
    runner: FileRunner,
    settled: list[NDArray[Any]],
    framework: tuple[nn.Module, ModelCard] | None,
    coco: CocoSet,
    folder: Path,
    console: Console,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return what the file finds, and the model file if there is one; append `nms_converged` to `settled`."""

    def graph_run(inputs: Arrays) -> Arrays:
        outputs = runner.run(inputs)
        if "nms_converged" in outputs:
            settled.append(outputs["nms_converged"])
        return outputs

    progress = RunProgress(console, [1.0, 2.0] if framework else [1.0])
    with progress.stage(f"the file in {runner.runtime}"):
        graph = detected_rows(graph_run, runner.inputs["image"], coco, progress)
    if framework is None:
        return graph, None
    with progress.stage("its model file in PyTorch"), exact_float32():
        return graph, found_by_detector(*framework, coco, folder, progress)


def _notes_on_running(runner: FileRunner, num_unsettled: int | None, num_images: int) -> Iterator[str]:
    """Yield notes on NMS that did not converge, and on fp16 that runs as fp32."""
    if num_unsettled:
        yield (
            f"warning: NMS did not converge in {num_unsettled} of {num_images} images; export with "
            f"more nms_iterations, or "
            f"with images like these as `pictures`"
        )
    if runner.precision == "fp16" and runner.device == "cpu":
        yield f"note: {runner.runtime} has fp16 weights but computes in fp32 on a CPU; a GPU rounds more"


def _notes_on_shape(size_hw: tuple[int, int], images: list[dict[str, Any]]) -> list[str]:
    """Return a note on images of the other orientation than the graph: for these both mAPs can differ."""
    height, width = size_hw
    num = sum((image["height"] - image["width"]) * (height - width) < 0 for image in images)
    if not num:
        return []
    image, shape = ("portrait", "landscape") if height < width else ("landscape", "portrait")
    return [
        f"note: {num} of {len(images)} images are {image}, the export is {shape} ({height} x {width}): PyTorch rotates "
        f"its input shape for them, the graph scales them down to fit"
    ]


def _figures(
    runner: FileRunner, coco: CocoSet, rows: list[dict[str, Any]], reference: list[dict[str, Any]] | None
) -> dict[str, Any]:
    evaluation = box_evaluation(coco.annotations, rows)
    known = None if reference is None else box_evaluation(coco.annotations, reference)
    own, framework = averages(evaluation), known and averages(known)
    interval = known and difference_interval(evaluation, known)
    return {
        "map": own["map"],
        "map50": own["map50"],
        "metric": metric_of(coco.annotations),
        "num_images": len(read_annotations(coco.annotations)["images"]),
        "precision": runner.precision,
        "runtime": runner.runtime,
        "device": runner.device,
        "framework_map": framework and framework["map"],
        "framework_map50": framework and framework["map50"],
        "difference": framework and own["map"] - framework["map"],
        "difference_interval": interval,
    }


def _formatted(*figures: float) -> list[str]:
    return [f"{figure:.4f}" for figure in figures]
