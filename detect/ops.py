"""The operators that mmdet needs, if mmcv was installed without compiled ones.

mmcv's package on the registry is source only, and without a compiler it lacks `mmcv._ext`, which `mmdet.models` needs.
torchvision has the only two operators that Faster R-CNN uses, and Mask R-CNN to crop its masks: nms and RoIAlign.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
import torchvision

from command.errors import RequestError, WorkError

__all__ = ["install_ops"]

_AVERAGE = 1
"""mmcv's number of a way to pool."""


def install_ops() -> None:
    """Make mmdet importable: install a stand-in for `mmcv._ext` unless the compiled one exists.

    Then import mmdet, hiding its printed advice about optional parts.
    """
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _StandIn()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), _uncompiled():
        warnings.simplefilter("ignore")
        for part in ("datasets", "evaluation", "models"):
            importlib.import_module(f"mmdet.{part}")


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Keep numba from compiling imgaug's corruptions of images, which nothing here uses.

    It looks for a folder to cache them in, and fails where neither the installation nor the user's home can be written.
    """
    try:
        config: Any = importlib.import_module("numba.core.config")
    except ImportError:
        yield
        return
    before, config.DISABLE_JIT = config.DISABLE_JIT, True
    try:
        yield
    finally:
        config.DISABLE_JIT = before


class _StandIn(types.ModuleType):
    """Has every operator name; all but nms and RoIAlign raise an error when called."""

    def __init__(self) -> None:
        super().__init__("mmcv._ext")
        self.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        self.nms = _nms
        self.roi_align_forward, self.roi_align_backward = _roi_align_forward, _roi_align_backward

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise WorkError(
                f"mmcv.ops.{name}: not available, got mmcv without compiled operators; install a wheel with them"
            )

        return missing


def _nms(boxes_xyxy: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    if offset != 0:
        raise RequestError(f"nms: offset is not supported by torchvision, got {offset}; expected 0")
    return torchvision.ops.nms(boxes_xyxy, scores, iou_threshold)


def _roi_align_forward(
    features: torch.Tensor, rois: torch.Tensor, output: torch.Tensor, *_: torch.Tensor, **settings: Any
) -> None:
    """Fill `output`, as mmcv's operator does."""
    size, scale, ratio, aligned = _alignment(settings)
    output.copy_(torchvision.ops.roi_align(features, rois, size, scale, ratio, aligned))


def _roi_align_backward(gradient: torch.Tensor, rois: torch.Tensor, *tensors: torch.Tensor, **settings: Any) -> None:
    """Fill the last tensor, the gradient of the features, as mmcv's operator does."""
    size, scale, ratio, aligned = _alignment(settings)
    found = tensors[-1]
    backward = torch.ops.torchvision._roi_align_backward
    found.copy_(backward(gradient, rois, scale, *size, *found.shape, ratio, aligned))


def _alignment(settings: dict[str, Any]) -> tuple[tuple[int, int], float, int, bool]:
    if settings["pool_mode"] != _AVERAGE:
        raise WorkError("mmcv.ops.roi_align: cannot pool by maxima without compiled operators; install mmcv with them")
    size = (settings["aligned_height"], settings["aligned_width"])
    return size, settings["spatial_scale"], settings["sampling_ratio"], settings["aligned"]
