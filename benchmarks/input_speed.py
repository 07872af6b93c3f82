"""Measure how fast training images are delivered: ours beside other ways to decode, crop and scale them.

Run:     python benchmarks/input_speed.py RECORD.json --photos FOLDER [--rounds 5] [--images 192]
Needs:   an image folder, train/<class>/*. simplejpeg, torchcodec and nvidia-dali-cuda120 are measured where installed
Writes:  a record: images a second through a DataLoader with two processes, in alternating rounds, and how the pixels
         differ from those of torchvision's reference pipeline for the same part of the same image

Every way draws a part of 8 to 100 % of an image, scales it to 224 pixels and flips half of them. Generated photographs
are coloured noise whose amplitude rises with its wavelength: 500 x 375 pixels, ImageNet's usual size, and 1200 x 900.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision.io
from PIL import Image
from records import write_cpu_record
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from classify.augmentation import Augmentation
from classify.data import MEAN, STD
from classify.train import collate

SIDE, BATCH, WORKERS, SCALE = 224, 32, 2, (0.08, 1.0)
GENERATED = {"generated, 500 x 375": (500, 375), "generated, 1200 x 900": (1200, 900)}
QUALITY = 92
REFERENCE, OURS = "torchvision's reference: PIL, v1, float32", "ours"
Cut = Callable[[Path], Tensor]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _drafted(path: Path) -> Tensor:
    """Draw a part, then have libjpeg scale the whole image by eighths as long as the part is large enough."""
    with Image.open(path) as image:
        width0, height0 = image.size
        top, left, height, width = v1.RandomResizedCrop.get_params(image, list(SCALE), [3 / 4, 4 / 3])
        image.draft("RGB", (width0 * SIDE // width, height0 * SIDE // height))
        whole, shrunk = image.convert("RGB"), image.size[0] / width0
    box = tuple(shrunk * edge for edge in (left, top, left + width, top + height))
    part = whole.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
    return v1.functional.pil_to_tensor(v1.functional.hflip(part) if torch.rand(1) < 0.5 else part)


def _through_tensor(decode: Callable[[bytes], Tensor]) -> Cut:
    change = v2.Compose([v2.RandomResizedCrop(SIDE, SCALE), v2.RandomHorizontalFlip()])
    return lambda path: change(decode(path.read_bytes())).contiguous()


def _by_opencv(decode: Callable[[bytes], Any], path: Path) -> Tensor:
    """Cut and scale with OpenCV alone: means of areas where the part is larger than the crop."""
    image = decode(path.read_bytes())
    whole = torch.empty(1, *image.shape[:2], device="meta")
    top, left, height, width = v1.RandomResizedCrop.get_params(whole, list(SCALE), [3 / 4, 4 / 3])
    way = cv2.INTER_AREA if min(height, width) > SIDE else cv2.INTER_LINEAR
    found = cv2.resize(image[top : top + height, left : left + width], (SIDE, SIDE), interpolation=way)
    planes = np.stack(cv2.split(cv2.flip(found, 1) if torch.rand(1) < 0.5 else found))
    return torch.from_numpy(planes)


def _opencv(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def _torchvision(data: bytes) -> Tensor:
    return torchvision.io.decode_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB
    )


def ways() -> dict[str, Cut]:
    """Return every way that can be measured here: from a file to a tensor (3, 224, 224)."""
    drawn = [v1.RandomResizedCrop(SIDE, SCALE), v1.RandomHorizontalFlip()]
    normalise = v1.Normalize([m / 255 for m in MEAN], [s / 255 for s in STD])
    reference = v1.Compose([*drawn, v1.PILToTensor(), v1.ConvertImageDtype(torch.float), normalise])
    as_bytes, modern = (
        v1.Compose([*drawn, v1.PILToTensor()]),
        v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(SIDE, SCALE), v2.RandomHorizontalFlip()]),
    )
    found: dict[str, Cut] = {
        REFERENCE: lambda path: reference(_opened(path)),
        "PIL, v1, bytes": lambda path: as_bytes(_opened(path)),
        "PIL, v2, bytes": lambda path: modern(_opened(path)).contiguous(),
        "PIL draft, bytes": _drafted,
        "torchvision.io, v2": _through_tensor(_torchvision),
        "OpenCV, scaled by it": partial(_by_opencv, _opencv),
        OURS: Augmentation(crop_scale=SCALE).crops(SIDE).of_file,
    }
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        found["simplejpeg, v2"] = _through_tensor(
            lambda data: torch.from_numpy(simplejpeg.decode_jpeg(data)).permute(2, 0, 1)
        )
    if importlib.util.find_spec("torchcodec"):
        from torchcodec.decoders import decode_jpeg

        found["torchcodec, v2"] = _through_tensor(decode_jpeg)
    return found


class Cuts(Dataset[tuple[Tensor, int]]):
    """Images of one way, drawn by their number alone."""

    def __init__(self, files: Sequence[Path], cut: Cut) -> None:
        """Set files and way."""
        self.files, self.cut = files, cut

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image and a label."""
        torch.random.default_generator.manual_seed(index)
        return self.cut(self.files[index]), 0


class DaliLoader:
    """Batches by NVIDIA's DALI with two threads, which decodes only the part that it draws."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Build the pipeline."""
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def(batch_size=BATCH, num_threads=WORKERS, device_id=None)
        def described() -> Any:
            data, _ = fn.readers.file(files=[str(file) for file in files], labels=[0] * len(files))
            part = fn.decoders.image_random_crop(data, random_area=list(SCALE), random_aspect_ratio=[3 / 4, 4 / 3])
            scaled = fn.resize(part, size=[SIDE, SIDE], antialias=True)
            flip = fn.random.coin_flip()
            return fn.crop_mirror_normalize(scaled, mirror=flip, dtype=types.UINT8, output_layout="CHW", mean=0, std=1)

        self.pipeline, self.num = described(), -(-len(files) // BATCH)
        self.pipeline.build()

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch."""
        return (self.pipeline.run() for _ in range(self.num))


def per_second(num_images: int, loader: Iterable[Any]) -> float:
    """Return how many images a second are delivered in an epoch."""
    begun = time.perf_counter()
    for _ in loader:
        pass
    return num_images / (time.perf_counter() - begun)


def speeds(files: Sequence[Path], cuts: dict[str, Cut], rounds: int) -> dict[str, list[float]]:
    """Return the images a second of every way in each round; all ways take turns, with processes that run already."""
    loaders: dict[str, Iterable[Any]] = {
        name: DataLoader(Cuts(files, cut), BATCH, num_workers=WORKERS, collate_fn=collate, persistent_workers=True)
        for name, cut in cuts.items()
    }
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        loaders["NVIDIA DALI on the CPU"] = DaliLoader(files)
    found: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds + 1):
        for name, loader in loaders.items():
            found[name].append(per_second(len(files), loader))
    return {name: values[1:] for name, values in found.items()}  # the first one starts the processes


def pixels(files: Sequence[Path], cuts: dict[str, Cut]) -> dict[str, dict[str, Any]]:
    """Return mean, deviation and sharpness of each way's pixels, 0 to 255, and their distance to the reference's.

    Parts and flips are equal, as the drawn numbers are.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    made = {name: torch.stack([image.float() for image, _ in Cuts(files, cut)]) for name, cut in cuts.items()}
    made[REFERENCE] = made[REFERENCE] * std + mean
    return {
        name: {
            "mean_rgb": images.mean((0, 2, 3)).tolist(),
            "std_rgb": images.std((0, 2, 3)).tolist(),
            "sharpness": images.diff(dim=3).abs().mean().item(),
            "difference": (images - made[REFERENCE]).abs().mean().item(),
        }
        for name, images in made.items()
    }


def generate(folder: Path, num: int, size_wh: tuple[int, int]) -> list[Path]:
    """Write generated photographs."""
    width, height = size_wh
    folder.mkdir()
    for i in range(num):
        rng, image = np.random.default_rng(i), np.zeros((height, width, 3), np.float32)
        for octave in range(9):
            step = 2**octave
            noise = rng.normal(size=(height // step + 2, width // step + 2, 3)).astype(np.float32)
            grey = 0.8 * noise.mean(2, keepdims=True) + 0.3 * noise
            image += cv2.resize(grey, size_wh, interpolation=cv2.INTER_CUBIC) * step**0.55
        image = (image - image.mean()) / image.std() * 55 + 115
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        picture.save(folder / f"{i:04}.jpg", quality=QUALITY)
    return sorted(folder.iterdir())


def rows_of(what: str, files: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each way."""
    cuts = ways()
    found, seen = speeds(files, cuts, rounds), pixels(files[:64], cuts)
    ratios = {
        name: statistics.median(ours / reference for ours, reference in zip(values, found[REFERENCE], strict=True))
        for name, values in found.items()
    }
    num_bytes = round(statistics.mean(file.stat().st_size for file in files))
    return [
        {
            "images": what,
            "bytes_per_image": num_bytes,
            "way": name,
            "images_per_s": statistics.median(values),
            "ratio": ratios[name],
            "samples": values,
            **seen.get(name, {}),
        }
        for name, values in found.items()
    ]


def _row(row: dict[str, Any]) -> list[str]:
    told = [f"{row[key]:.2f}" if key in row else "other parts" for key in ("difference", "sharpness")]
    return [f"{row['images']}, {row['bytes_per_image'] / 1000:.0f} kB", row["way"], f"{row['images_per_s']:.0f}",
            f"{row['ratio']:.2f}", *told]  # fmt: skip


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=192)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    photos = sorted((arguments.photos / "train").glob("*/*.jpg"))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for what, size_wh in GENERATED.items():
            num = arguments.images // (1 if size_wh[0] < 1000 else 4)
            results += rows_of(what, generate(Path(folder) / what, num, size_wh), arguments.rounds)
        results += rows_of("real photographs", photos[:: max(1, len(photos) // arguments.images)], arguments.rounds)
    columns = ["images", "way", "images/s", "x the reference", "mean difference of pixels", "sharpness"]
    conditions = {"rounds": arguments.rounds, "processes": WORKERS, "batch": BATCH, "load": os.getloadavg()}
    write_cpu_record(arguments.record, "input of training", conditions, results, columns, [_row(r) for r in results])


if __name__ == "__main__":
    main()
