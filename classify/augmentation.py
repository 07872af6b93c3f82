"""Squares of one size from pictures: parts drawn at random for training, the middle for evaluation."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2.functional import resized_crop

from command.config import Part
from command.errors import RequestError
from deploy.images import REDUCTIONS, image_from_bytes, image_from_file, jpeg_hw

__all__ = ["Augmentation", "CropShare", "Crops", "centre_crops", "scaled_side"]

CropShare = Annotated[float, Field(gt=0, le=1)]
"""Side of the crop in the middle as a share of the scaled image's shorter side: 0.875 for 224 of 256 pixels."""
_SCALE = (0.5, 1.0)
_MOST_PADDED = 64
"""Side of the largest arrays that are padded unless told otherwise, in pixels."""
_LARGE = 150_000
"""Bytes of a file; in smaller ones fewer pixels save less time than it takes to look at the header."""
_ERASED = [124, 116, 104]
"""ImageNet's mean, which is 0 to the network."""
_POLICIES: dict[str, Callable[..., nn.Module]] = {
    "trivial_augment": v2.TrivialAugmentWide,
    "rand_augment": v2.RandAugment,
}


class Crops:
    """What makes a square of one size from a picture.

    Args:
        first: Makes the square.
        then: Change it, in this order.
    """

    def __init__(self, first: nn.Module, then: Sequence[nn.Module] = ()) -> None:
        self._first, self._then = first, then

    def of_image(self, image: Tensor) -> Tensor:
        """Return the square (3, S, S) of an image (3, H, W), both uint8."""
        return self._changed(self._first(image))

    def of_file(self, path: Path) -> Tensor:
        """Return the square of an image file, in the pixels that detectors read.

        Raises:
            OSError: If it cannot be read.
            RequestError: If it does not decode.
        """
        if isinstance(self._first, v2.RandomResizedCrop):
            return self._changed(_random_part(path, self._first))
        return self.of_image(torch.from_numpy(image_from_file(path)).permute(2, 0, 1))

    def _changed(self, image: Tensor) -> Tensor:
        for change in self._then:
            image = change(image)
        return image.contiguous()


class Augmentation(Part):
    """How training images are drawn; every draw depends on the seed, the epoch and the image alone."""

    crop_scale: tuple[float, float] | None = None
    """Least and most of the image's area in a crop, which has sides as 3:4 to 4:3 and is scaled. None = half to all of
    it, if there is no padding."""
    padding: int | None = Field(None, ge=0, le=4096)
    """Pixels of black around the whole image, of which a part is taken without scaling. None = an eighth of the size
    around arrays of up to 64 pixels, unless `crop_scale` is set; no padding around others."""
    policy: Literal["trivial_augment", "rand_augment"] | None = None
    """Colours, turns and shears, drawn for each image: torchvision's TrivialAugmentWide or RandAugment."""
    erasing: float = Field(0.0, ge=0, le=1)
    """Share of the images in which a rectangle is replaced by ImageNet's mean (Zhong et al. 2020)."""

    @model_validator(mode="after")
    def _check_crop(self) -> "Augmentation":
        least, most = self.crop_scale or _SCALE
        if not 0 < least <= most <= 1:
            raise RequestError(f"crop_scale: not two ascending shares, got {self.crop_scale}; expected as (0.08, 1.0)")
        if self.crop_scale and self.padding is not None:
            raise RequestError(f"padding: not used with crop_scale, got {self.padding}; expected one of the two")
        return self

    def crops(self, side: int, is_array: bool = False) -> Crops:
        """Return what makes a training image.

        Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2: 4 pixels around 32.

        Args:
            side: Of the square, in pixels.
            is_array: Whether the images are arrays, which are all of one size.
        """
        is_small = is_array and side <= _MOST_PADDED and not self.crop_scale
        padding = side // 8 if self.padding is None and is_small else self.padding
        then = [v2.RandomHorizontalFlip()]
        if self.policy:
            then.append(_POLICIES[self.policy](interpolation=InterpolationMode.BILINEAR))
        if self.erasing:
            then.append(v2.RandomErasing(self.erasing, value=_ERASED))
        if padding is None:
            return Crops(v2.RandomResizedCrop(side, self.crop_scale or _SCALE), then)
        return Crops(v2.Compose([*_middle(side), v2.RandomCrop(side, padding)]), then)

    def effective(self) -> dict[str, Any]:
        """Return the settings that are not the defaults, as JSON values: what a training depends on."""
        return self.model_dump(mode="json", exclude_defaults=True)


def centre_crops(side: int, crop_share: float = 1.0) -> Crops:
    """Return what makes an image to evaluate on: the middle of the image after it is scaled.

    Args:
        side: Of the square, in pixels.
        crop_share: See `CropShare`.
    """
    return Crops(v2.Compose(_middle(side, crop_share)))


def scaled_side(side: int, crop_share: float) -> int:
    """Return the shorter side of an image of which the crop is this share, in pixels."""
    return round(side / crop_share)


def _middle(side: int, crop_share: float = 1.0) -> list[nn.Module]:
    return [v2.Resize(scaled_side(side, crop_share)), v2.CenterCrop(side)]


def _random_part(path: Path, crop: v2.RandomResizedCrop) -> Tensor:
    """Return a random crop; of a large JPEG, no more pixels are decoded than the crop needs."""
    data, side = path.read_bytes(), crop.size[0]
    size_hw = jpeg_hw(data) if len(data) >= _LARGE else None
    if size_hw is None or min(size_hw) < 2 * side:
        return crop(_decoded(data, path))
    box = crop.make_params([torch.empty(1, *size_hw, device="meta")])
    reduction = next((n for n in REDUCTIONS if n * side <= min(box["height"], box["width"])), 1)
    image = _decoded(data, path, reduction)
    if image.shape[1:] != tuple(-(-length // reduction) for length in size_hw):  # an orientation that Pillow ignores
        return crop(image)
    top, left, height, width = (round(box[name] / reduction) for name in ("top", "left", "height", "width"))
    height, width = min(height, image.shape[1] - top), min(width, image.shape[2] - left)  # both ends are rounded
    return resized_crop(image, top, left, height, width, crop.size)


def _decoded(data: bytes, path: Path, reduction: int = 1) -> Tensor:
    return torch.from_numpy(image_from_bytes(data, path, reduction)).permute(2, 0, 1)
