"""Labelled images for training and validation, as a config names them.

A new kind of data is one class here and its place in `AnyImages`: commands, calibration and experiments know
`ImageData` alone.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset

from classify.arrays import ArrayImages, LabelledArrays, common_classes, read_npz
from classify.augmentation import Augmentation, centre_crops
from classify.cifar_files import cifar_place, read_cifar
from classify.data import Damaged, Split, check_folder, class_names, fingerprint, image_folder
from classify.synthetic import SHAPES, write_shapes
from command.config import Part, Seed
from command.errors import RequestError
from command.folders import generated

__all__ = ["AnyImages", "CifarData", "FolderData", "GivenImages", "ImageData", "NpzData", "ShapesData", "images_at"]


class ImageData(Part, ABC):
    """Labelled images, given or to be generated."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files and folders that it reads."""
        return ()

    @abstractmethod
    def check(self) -> tuple[str, ...]:
        """Check the data before any work; return the class names in the order of their labels.

        Raises:
            MissingFileError: If a file or folder is missing.
            RequestError: If something in it is wrong.
        """

    def fingerprints(self, *splits: Split) -> tuple[str, ...]:
        """Return a hash of the content of each split; none of data that is generated."""
        return ()

    @abstractmethod
    def placed(self, folder: Path, image_size: int) -> "GivenImages":
        """Return the images: those that are generated are made in `folder`, unless they are there."""


class GivenImages(ImageData):
    """Labelled images that exist."""

    @abstractmethod
    def fingerprint(self, split: Split) -> str:
        """Return a hash of the content of one split.

        Raises:
            RequestError: If an image does not decode.
        """

    @abstractmethod
    def images(
        self, split: Split, image_size: int, augmentation: Augmentation | None = None, crop_share: float = 1.0
    ) -> Dataset[tuple[Tensor, int]]:
        """Return (uint8 image (3, S, S), label) pairs of one split.

        Args:
            split: Which one.
            image_size: Side S in pixels.
            augmentation: Draws each image anew, to train on; None for the middle of each, to evaluate on.
            crop_share: How much the middle is; see `classify.augmentation.CropShare`.
        """

    def fingerprints(self, *splits: Split) -> tuple[str, ...]:
        """Return a hash of the content of each split."""
        return tuple(map(self.fingerprint, splits))

    def placed(self, folder: Path, image_size: int) -> "GivenImages":
        """Return itself."""
        return self


class ShapesData(ImageData):
    """Generated images of coloured shapes."""

    type: Literal["shapes"] = "shapes"
    num_train: int = Field(1200, ge=2, le=10**7)
    num_val: int = Field(300, ge=1, le=10**7)
    seed: Seed = 0

    def check(self) -> tuple[str, ...]:
        """Return the names of the shapes."""
        return SHAPES

    def placed(self, folder: Path, image_size: int) -> "GivenImages":
        """Return the image folder below `folder`, which has the settings in its name."""
        size = (self.num_train, self.num_val, image_size, self.seed)
        name = f"shapes2-{image_size}px-{self.num_train}-{self.num_val}-seed{self.seed}"  # the second way to draw seeds
        return FolderData(type="folder", root=generated(folder / name, lambda partial: write_shapes(partial, *size)))


class FolderData(GivenImages):
    """An image folder: `train/<class>/*` and `val/<class>/*`, as ImageNet's."""

    type: Literal["folder"]
    root: Path
    val_labels: Path | None = None
    """Text file with the classes of the images in `val`, where they lie without class folders; see
    `classify.val_labels`."""
    damaged: Damaged = "refuse"
    """`refuse`: an image that does not decode stops the work, before it or in it. `skip`: it is left out; in
    place of a training image that becomes unreadable comes the next one in the list, with its label."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The folder, and the file of labels."""
        return (self.root, *((self.val_labels,) if self.val_labels else ()))

    def check(self) -> tuple[str, ...]:
        """Return the names of the class folders."""
        check_folder(self.root, self.val_labels)
        return class_names(self.root)

    def fingerprint(self, split: Split) -> str:
        """Return a hash of names and content."""
        return fingerprint(self.root, split, self.val_labels, self.damaged)

    def images(
        self, split: Split, image_size: int, augmentation: Augmentation | None = None, crop_share: float = 1.0
    ) -> Dataset[tuple[Tensor, int]]:
        """Return crops of the photographs."""
        crops = augmentation.crops(image_size) if augmentation else centre_crops(image_size, crop_share)
        replaces = augmentation is not None and self.damaged == "skip"  # an evaluation counts each image once
        return image_folder(
            self.root, split, crops, val_labels=self.val_labels, damaged=self.damaged, replaces=replaces
        )


class _ArrayData(GivenImages):
    """Images that are read into memory."""

    @abstractmethod
    def arrays(self, split: Split) -> LabelledArrays:
        """Read one split."""

    def check(self) -> tuple[str, ...]:
        """Return the names that the files have, or numbered ones."""
        return common_classes(self.paths[-1], self.arrays("train"), self.arrays("val"))

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the images, labels and names."""
        return self.arrays(split).fingerprint()

    def images(
        self, split: Split, image_size: int, augmentation: Augmentation | None = None, crop_share: float = 1.0
    ) -> Dataset[tuple[Tensor, int]]:
        """Return crops of the images."""
        crops = augmentation.crops(image_size, is_array=True) if augmentation else centre_crops(image_size, crop_share)
        return ArrayImages(self.arrays(split), crops)


class NpzData(_ArrayData):
    """Two `.npz` files: `images` (N, H, W, 3) of uint8, `labels` (N,), and perhaps `classes`, the names."""

    type: Literal["npz"]
    train: Path
    val: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """The two files."""
        return self.train, self.val

    def arrays(self, split: Split) -> LabelledArrays:
        """Read one file."""
        return read_npz(self.train if split == "train" else self.val)


class CifarData(_ArrayData):
    """CIFAR-10 or CIFAR-100 (its 100 fine classes) in their original files; the test images are `val`."""

    type: Literal["cifar"]
    root: Path
    """The archive (`cifar-10-python.tar.gz`), the folder that was unpacked from it, or the folder that holds either."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The archive or folder."""
        return (self.root,)

    def arrays(self, split: Split) -> LabelledArrays:
        """Read one split."""
        return read_cifar(self.root, split)


AnyImages = ShapesData | FolderData | NpzData | CifarData


def images_at(path: Path, val_labels: Path | None = None) -> GivenImages:
    """Return the data at a path, to evaluate on: an `.npz` file, CIFAR's archive or folder, or an image folder.

    Raises:
        RequestError: If it is another file, or `val_labels` are given for anything but an image folder.
    """
    if path.is_file() and path.suffix not in (".npz", ".gz", ".tgz"):
        raise RequestError(f"{path}: not images with labels; expected an image folder, a .npz file or CIFAR's .tar.gz")
    if path.suffix != ".npz" and not cifar_place(path):
        return FolderData(type="folder", root=path, val_labels=val_labels)
    if val_labels:
        raise RequestError(f"--val-labels: not used with {path}, got {val_labels}; expected none, it has labels")
    return NpzData(type="npz", train=path, val=path) if path.suffix == ".npz" else CifarData(type="cifar", root=path)
