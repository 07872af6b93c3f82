"""Draws the boxes that a detector finds into images and videos: a model file in PyTorch, or a deployed detector."""

import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from command.errors import RequestError
from command.extras import loading
from command.folders import filled_folder
from command.options import refuse_existing
from command.progress import RunProgress
from deploy.detector import Detector, Found
from deploy.images import image_from_file
from deploy.pictures import draw, input_files, picture_name
from deploy.runtimes.registry import ENGINE, ONNX
from deploy.text import printable
from deploy.video import is_video, open_video, written_video
from detect.mmdet_option import next_step

__all__ = ["found_text", "predict_files"]

_Pixels = NDArray[np.uint8]
_Find = Callable[[Iterable[_Pixels]], Iterator[list[Found]]]


def predict_files(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    min_score: float,
    runtime: str | None,
    force: bool,
    console: Console,
    mmdet: Path | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write an image or video with boxes into `out` for every input, all of them or none.

    Args:
        model: Model file, deployed folder, or the ONNX file or an engine in it.
        inputs: Images, videos and folders of them.
        out: Created.
        min_score: Boxes below it are left out.
        runtime: A name in `deploy.runtimes.registry.RUNTIMES`; default: the one for this kind of file.
        force: Whether files in `out` may be replaced.
        console: Shows progress.
        mmdet: mmdet's config, for a detector of mmdet's own parts.

    Returns:
        The detections of each file as JSON values, and the words of the command to run next.
    """
    files = input_files(inputs)
    if out.resolve() in {file.resolve().parent for file in files}:
        raise RequestError(
            f"--out {out}: would overwrite inputs, got the folder of the images; expected another folder"
        )
    refuse_existing(force, *(out / picture_name(file) for file in files))
    find, command = _finder(model, min_score, runtime, mmdet)
    progress = RunProgress(console, [1.0])
    with progress.stage("predict"), filled_folder(out) as work:
        return _rows(find, files, work, progress), command


def found_text(row: dict[str, Any]) -> str:
    """Return one line with the number of detections in a file, by class."""
    things = row["found"] if "found" in row else itertools.chain.from_iterable(row["frames"])
    counts = Counter(thing["name"] for thing in things)
    text = ", ".join(f"{n} {printable(name)}" for name, n in counts.items()) or "nothing"
    return f"{printable(row['file'])}: {text}" + (f" in {len(row['frames'])} frames" if "frames" in row else "")


def _finder(model: Path, min_score: float, runtime: str | None, mmdet: Path | None) -> tuple[_Find, list[str]]:
    """Return a function that finds objects in images, and the words of the command to run next."""
    if model.is_dir() or model.suffix in (ONNX, ENGINE):
        found = partial(Detector.load(model, runtime).stream, min_score=min_score)
        return found, ["espalier", "deploy", "package", str(model if model.is_dir() else model.parent)]
    export = [str(word) for word in next_step(model, mmdet)]
    if runtime:
        raise RequestError(
            f"--runtime {runtime}: not used with a model file, got {model}; export it first: {shlex.join(export)}"
        )
    with loading("torch and mmdet", "a model file needs"):
        from detect.detector_file import load_detector
        from detect.predict import predict

    detector, card = load_detector(model, mmdet)
    return lambda images: predict(detector, card, images, min_score), export


def _rows(find: _Find, files: Sequence[Path], folder: Path, progress: RunProgress) -> list[dict[str, Any]]:
    """Write every file with its boxes into `folder`, and return the detections in the order of the files."""
    images = [file for file in files if not is_video(file)]
    videos = [open_video(file) for file in files if is_video(file)]
    total = len(images) + sum(video.num_frames for video in videos)
    ticks = itertools.count(1)

    def found_in(pictures: Iterable[_Pixels]) -> Iterator[tuple[_Pixels, list[Found]]]:
        drawn, searched = itertools.tee(pictures)
        for pair in zip(drawn, find(searched), strict=True):
            yield pair
            progress(min(next(ticks), total), total)

    rows: dict[Path, dict[str, Any]] = {}
    # images of all files share the batches of a graph
    for file, (pixels, found) in zip(images, found_in(image_from_file(file) for file in images), strict=True):
        draw(Image.fromarray(pixels), found).save(folder / picture_name(file))
        rows[file] = {"file": str(file), "found": [asdict(thing) for thing in found]}
    for video in videos:
        frames = _draw_video(found_in(video.frames()), video.fps, folder / picture_name(video.path))
        rows[video.path] = {"file": str(video.path), "fps": video.fps, "frames": frames}
    return [rows[file] for file in files]


def _draw_video(found: Iterator[tuple[_Pixels, list[Found]]], fps: float, path: Path) -> list[list[dict[str, Any]]]:
    """Write the frames with their boxes, and return the detections of each frame."""
    frames = []
    first = next(found)
    with written_video(path, fps, (first[0].shape[0], first[0].shape[1])) as write:
        for pixels, things in itertools.chain([first], found):
            write(np.asarray(draw(Image.fromarray(pixels), things)))
            frames.append([asdict(thing) for thing in things])
    return frames
