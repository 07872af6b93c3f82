"""The mAP of a file as it is deployed, ONNX or engine, beside that of the model file it was made from."""

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
from detect.data import CocoSet, check_coco, coco_subset, read_annotations
from detect.evaluate import coco_map, detected_rows, evaluate_detector
from detect.foreign import load_foreign
from detect.model import load_detector

__all__ = ["Evaluated", "evaluate_deployed"]

_MOST_LOST = 0.001  # of mAP: what PyTorch and ONNX Runtime differ by in float32 stays below it


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate_deployed` found out."""

    file: Path
    model: Path | None
    """What the file was compared with."""
    figures: dict[str, Any]
    """`map` and `map50` of the file, `num_images`, `precision`, `runtime`, `device`, `file_sha256`; `num_unsettled`
    images in which its rounds of suppression were too few, None where the file does not tell; `framework_map` and
    `framework_map50` of the model file and the `difference` of both mAPs, None without a model file."""
    notes: tuple[str, ...]
    """What to know about the figures, one line each."""

    @property
    def warning(self) -> str | None:
        """One line, if the graph is not worth what its model is."""
        difference = self.figures["difference"]
        if difference is None or abs(difference) <= _MOST_LOST:
            return None
        return (
            f"WARNING: {self.file}: in {self.figures['precision']} {100 * abs(difference):.2f} points of mAP "
            f"{'below' if difference < 0 else 'above'} {self.model}, got {self.figures['map']:.4f}; "
            f"expected {self.figures['framework_map']:.4f} within 0.1 points, do not deploy it before you know why"
        )

    def table(self) -> Table:
        """Return both mAPs below each other."""
        figures = self.figures
        table = Table("", "mAP", "mAP50", caption=f"{figures['num_images']:,} images")
        table.add_row(f"{figures['runtime']}, {figures['precision']}", *_shown(figures["map"], figures["map50"]))
        if self.model:
            table.add_row(f"PyTorch, {self.model.name}", *_shown(figures["framework_map"], figures["framework_map50"]))
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
    """Score an exported detector, and the model file it was made from if that is given or found.

    PyTorch scales the images to the graph's own shape, too.

    Args:
        path: An ONNX file or an engine with their `deploy.json` beside it, or the folder, whose ONNX file is taken.
        coco: What to score on.
        model: The model file; looked for by its name and hash in `deploy.json` unless given.
        limit: Only the first so many images; None: all.
        console: Told of progress.
        mmdet: mmdet's config, where the model is a checkpoint of mmdet's own.
        runtime: A name in `deploy.runtimes.RUNTIMES`; that of the file's kind unless given.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If the file is no detector of ours or not for the runtime, that is not installed, the set is wrong
            or has other classes, or the model is another.
        WorkError: If the runtime needs a GPU and finds none.
    """
    deployed = open_deployment(path, may_differ=True)
    _check_same_classes(deployed, coco, check_coco(coco))
    runner = deployed.runner(runtime)
    model, notes = _source(deployed, model, mmdet)
    framework = _framework(deployed, model, mmdet) if model else None
    with tempfile.TemporaryDirectory() as folder:
        some = _first_of(coco, limit, Path(folder))
        images = read_annotations(some.annotations)["images"]
        settled: list[NDArray[Any]] = []
        graph, source = _scores(runner, settled, framework, some, Path(folder), console)
    # the last batch may be filled up with more
    num_unsettled = int((~np.concatenate(settled)[: len(images)]).sum()) if settled else None
    notes += [*_notes_on_running(runner, num_unsettled, len(images))]
    notes += _notes_on_shape(deployed.network_hw, images) if framework else []
    told = {"num_unsettled": num_unsettled, "file_sha256": runner.file_sha256}
    return Evaluated(deployed.file, model, _figures(runner, len(images), graph, source) | told, tuple(notes))


def _check_same_classes(deployed: Deployed, coco: CocoSet, classes: tuple[str, ...]) -> None:
    """Raise RequestError at the first class that is not the deployed detector's."""
    known = deployed.deployment.classes
    for label, (got, expected) in enumerate(itertools.zip_longest(classes, known, fillvalue="none")):
        if got != expected:
            raise RequestError(
                f"{coco.annotations}: other classes than {deployed.file} knows, got {got} as number {label + 1} "
                f"of {len(classes)}; expected {expected}, {len(known)} in all"
            )


def _framework(deployed: Deployed, model: Path, mmdet: Path | None) -> tuple[nn.Module, ModelCard]:
    """Return the detector in PyTorch, and its card with the shape that the graph has."""
    detector, card = load_foreign(mmdet, model) if mmdet else load_detector(model)
    check_classes(model, card, deployed.deployment.classes)
    return detector, replace(card, preprocessing=replace(card.preprocessing, image_hw=deployed.network_hw))


def _source(deployed: Deployed, given: Path | None, mmdet: Path | None) -> tuple[Path | None, list[str]]:
    """Return the model file that the graph was made from, None if it is not there, and what to say about both."""
    deployment, folder = deployed.deployment, deployed.file.resolve().parent
    notes = []
    if not deployed.is_as_exported:
        notes.append(f"note: {deployed.file}: not as exported, its {DEPLOYMENT} records another sha256")
    if given:
        _check_source(existing_file(given, "expected a model file"), deployed)
        return given, notes
    if deployment.mmdet and not mmdet:
        named = f"--model {deployment.model} --mmdet {deployment.mmdet}"
        return None, [*notes, f"note: made from a checkpoint of mmdet's, not compared with; {named} compares"]
    beside = [place / deployment.model for place in (folder.parent, folder)]
    found = [path for path in beside if path.is_file() and sha256_of(path) == deployment.model_sha256]
    if not found:
        notes.append(f"note: no model file given, nor found beside the folder; --model {deployment.model} compares")
    return found[0] if found else None, notes


def _check_source(model: Path, deployed: Deployed) -> None:
    recorded = deployed.deployment.model_sha256
    if recorded and sha256_of(model) != recorded:
        raise RequestError(
            f"{model}: not the model that {deployed.file} was made from, got another sha256; "
            f"expected {deployed.deployment.model} as it was then"
        )


def _first_of(coco: CocoSet, limit: int | None, folder: Path) -> CocoSet:
    """Return the set of the first `limit` images, its annotations written into `folder`; without limit all."""
    return coco if limit is None else coco_subset(coco, range(limit), folder / "instances.json", f"--limit {limit}")


def _scores(
    runner: FileRunner,
    settled: list[NDArray[Any]],
    framework: tuple[nn.Module, ModelCard] | None,
    coco: CocoSet,
    folder: Path,
    console: Console,
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Return `coco_map` of what runs, and of the model file if there is one; add whether suppression ended."""

    def graph_run(inputs: Arrays) -> Arrays:
        outputs = runner.run(inputs)
        if "nms_converged" in outputs:
            settled.append(outputs["nms_converged"])
        return outputs

    progress = RunProgress(console, [1.0, 2.0] if framework else [1.0])
    with progress.stage(f"the file in {runner.runtime}"):
        graph = coco_map(coco.annotations, detected_rows(graph_run, runner.inputs["image"], coco, progress))
    if framework is None:
        return graph, None
    with progress.stage("its model file in PyTorch"), exact_float32():
        return graph, evaluate_detector(*framework, coco, folder, progress)


def _notes_on_running(runner: FileRunner, num_unsettled: int | None, num_images: int) -> Iterator[str]:
    """Say what the figures do not show of the file, or show of nothing but this runtime."""
    if num_unsettled:
        yield (
            f"WARNING: suppression had not ended in {num_unsettled} of {num_images} images; export with more "
            f"nms_rounds, or with pictures like these"
        )
    if runner.precision == "fp16" and runner.device == "cpu":
        yield (f"note: {runner.runtime} has the weights in fp16 and computes in fp32 on this CPU; a GPU rounds more")


def _notes_on_shape(size_hw: tuple[int, int], images: list[dict[str, Any]]) -> list[str]:
    """Say how many pictures stand where the shape lies, or the other way: there both mAPs may rightly differ."""
    height, width = size_hw
    num = sum((image["height"] - image["width"]) * (height - width) < 0 for image in images)
    if not num:
        return []
    line = (
        f"note: {num} of {len(images)} images stand where the shape of {height} x {width} lies, or lie where it stands"
    )
    return [f"{line}: PyTorch turns the shape for them, the graph scales them down to fit"]


def _figures(
    runner: FileRunner, num_images: int, graph: dict[str, float], framework: dict[str, float] | None
) -> dict[str, Any]:
    return {
        "map": graph["map"],
        "map50": graph["map50"],
        "num_images": num_images,
        "precision": runner.precision,
        "runtime": runner.runtime,
        "device": runner.device,
        "framework_map": framework and framework["map"],
        "framework_map50": framework and framework["map50"],
        "difference": framework and graph["map"] - framework["map"],
    }


def _shown(*figures: float) -> list[str]:
    return [f"{figure:.4f}" for figure in figures]
