"""The operators mmdet needs where mmcv was installed without compiled ones.

mmcv's package on the registry is source only, and without a compiler it lacks `mmcv._ext`, without which
`mmdet.models` cannot be imported. torchvision carries the only two operators Faster R-CNN uses: nms and RoIAlign.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torchvision

from command.errors import RequestError, WorkError

__all__ = ["install_ops"]


def install_ops() -> None:
    """Make mmdet importable: put a stand-in for `mmcv._ext` in place unless the compiled one exists.

    Then imports mmdet, which prints advice about optional parts nobody here asked for. RoIAlign itself is not
    replaced: configs say `use_torchvision=True`.
    """
    if "mmcv._ext" not in sys.modules and importlib.util.find_spec("mmcv._ext") is None:
        sys.modules["mmcv._ext"] = _StandIn()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in ("datasets", "evaluation", "models"):
            importlib.import_module(f"mmdet.{part}")


class _StandIn(types.ModuleType):
    """Answers any operator name; all but `nms` say what to do when called."""

    def __init__(self) -> None:
        super().__init__("mmcv._ext")
        self.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        self.nms = _nms

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise WorkError(f"mmcv.ops.{name}: mmcv has no compiled operators here; install an mmcv wheel with them")

        return missing


def _nms(boxes_xyxy: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int) -> torch.Tensor:
    if offset != 0:
        raise RequestError(f"nms: offset {offset} is not supported by torchvision; expected 0")
    return torchvision.ops.nms(boxes_xyxy, scores, iou_threshold)
