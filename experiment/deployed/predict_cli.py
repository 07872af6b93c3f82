"""The command `espalier detect predict`: here, for it serves deployed models too, which `detect` does not know."""

import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from classify.cli import AsJson, Force, closing, refuse_existing
from classify.progress import RunProgress
from deploy.cli import RuntimeName
from deploy.runtimes import ENGINE
from detect import load_detector
from detect.cli import app
from detect.fitting import read_image
from detect.predict import Found, draw, input_files, picture_name
from detect.predict import predict as predictions
from detect.video import is_video, open_video, written_video
from experiment.deployed.detector import Detector
from experiment.deployed.folder import ONNX

__all__ = ["app", "predict"]

_Pixels = NDArray[np.uint8]
_Find = Callable[[Iterable[_Pixels]], Iterator[list[Found]]]


@app.command()
def predict(
    model: Annotated[
        Path,
        typer.Argument(help="Model file, or folder that deploy export wrote (or the ONNX file or an engine in it)."),
    ],
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Images, videos, or folders of them.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for the pictures.")] = Path("runs/predictions"),
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Boxes below this score are left out.")] = 0.3,
    runtime: RuntimeName = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Draw the boxes that a detector finds in images and videos."""
    files = input_files(inputs)
    if out.resolve() in {file.resolve().parent for file in files}:
        raise ValueError(f"--out {out}: holds the images themselves; expected another folder")
    refuse_existing(force, *(out / picture_name(file) for file in files))
    find, command = _finder(model, min_score, runtime)
    progress = RunProgress(Console(stderr=True), [1.0])
    with progress.stage("predict"), _filled(out) as work:
        rows = _rows(find, files, work, progress)
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            typer.echo(_told(row))
    closing(f"wrote {len(files)} pictures to {out}", command)


def _finder(model: Path, min_score: float, runtime: str | None) -> tuple[_Find, str]:
    """Return what finds things in images, and the command to run next."""
    if model.is_dir() or model.suffix in (Path(ONNX).suffix, ENGINE):
        found = partial(Detector.load(model, runtime).stream, min_score=min_score)
        return found, f"espalier deploy package {model if model.is_dir() else model.parent}"
    if runtime:
        raise ValueError(f"--runtime {runtime}: a model file runs in PyTorch, got {model}; export it first")
    detector, card = load_detector(model)
    return lambda images: predictions(detector, card, images, min_score), f"espalier deploy export {model}"


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """Yield a folder whose files are put into `folder` when the block ends; nothing is if it raises."""
    beside = next(path for path in (folder, *folder.parents) if path.exists())  # on the same disk, so moved at once
    with tempfile.TemporaryDirectory(dir=beside, prefix=".espalier-") as work:
        yield Path(work)
        folder.mkdir(parents=True, exist_ok=True)
        for file in Path(work).iterdir():
            file.replace(folder / file.name)


def _rows(find: _Find, files: Sequence[Path], folder: Path, progress: RunProgress) -> list[dict[str, Any]]:
    """Write the picture of every file into `folder`, and return what was found in it, in their order."""
    images = [file for file in files if not is_video(file)]
    videos = [open_video(file) for file in files if is_video(file)]
    total = len(images) + sum(video.num_frames for video in videos)
    ticks = itertools.count(1)

    def found_in(pictures: Iterable[_Pixels]) -> Iterator[tuple[_Pixels, list[Found]]]:
        shown, given = itertools.tee(pictures)
        for pair in zip(shown, find(given), strict=True):
            yield pair
            progress(min(next(ticks), total), total)

    rows: dict[Path, dict[str, Any]] = {}
    # images fill the batches of a graph together, whatever file they come from
    for file, (pixels, found) in zip(images, found_in(read_image(file) for file in images), strict=True):
        draw(Image.fromarray(pixels), found).save(folder / picture_name(file))
        rows[file] = {"file": str(file), "found": [asdict(thing) for thing in found]}
    for video in videos:
        frames = _draw_video(found_in(video.frames()), video.fps, folder / picture_name(video.path))
        rows[video.path] = {"file": str(video.path), "fps": video.fps, "frames": frames}
    return [rows[file] for file in files]


def _draw_video(found: Iterator[tuple[_Pixels, list[Found]]], fps: float, path: Path) -> list[list[dict[str, Any]]]:
    """Write the frames with their boxes, and return what was found frame by frame."""
    frames = []
    first = next(found)
    with written_video(path, fps, (first[0].shape[0], first[0].shape[1])) as write:
        for pixels, things in itertools.chain([first], found):
            write(np.asarray(draw(Image.fromarray(pixels), things)))
            frames.append([asdict(thing) for thing in things])
    return frames


def _told(row: dict[str, Any]) -> str:
    things = row["found"] if "found" in row else itertools.chain.from_iterable(row["frames"])
    counts = Counter(thing["name"] for thing in things)
    text = ", ".join(f"{n} {name}" for name, n in counts.items()) or "nothing"
    return f"{row['file']}: {text}" + (f" in {len(row['frames'])} frames" if "frames" in row else "")
