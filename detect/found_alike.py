"""Whether two detectors find the same, by mmdet's own prediction."""

import copy
from typing import Any

import torch
from torch import Tensor

from detect.openmmlab import DetDataSample
from prune.modes import FORWARD_ERRORS, first_line

__all__ = ["check_finds_the_same"]

_TRIAL_HW = (256, 320)
"""Size of the image on which both detectors must find the same."""


def check_finds_the_same(one: Any, other: Any) -> bool:
    """Raise ValueError unless both find the same boxes in noise, with equal scores and labels.

    Masks are left out, which mmdet cannot paste in float64.

    Returns:
        Whether they were compared; the first one may not predict, as without an operator that mmcv compiles.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *_TRIAL_HW), dtype=torch.uint8, generator=generator)
    try:
        expected = _found(one, image)
    except FORWARD_ERRORS:
        return False
    try:
        found = _found(other, image)
    except FORWARD_ERRORS as error:
        raise ValueError(f"does not predict, {first_line(error)}") from error
    for key, tensor in expected.items():
        if tensor.shape != found[key].shape or not torch.allclose(tensor.float(), found[key].float(), 1e-4, 1e-4):
            raise ValueError(f"other {key}")
    return True


@torch.no_grad()
def _found(detector: Any, image: Tensor) -> dict[str, Tensor]:
    # in float64: sums in another order may put nearly equal scores in another order
    detector = copy.deepcopy(detector).eval().double()
    meta = {"img_shape": _TRIAL_HW, "ori_shape": _TRIAL_HW, "scale_factor": (1.0, 1.0), "img_id": 0}
    heads: list[Any] = [getattr(detector, name) for name in ("roi_head", "bbox_head") if hasattr(detector, name)]
    for head in heads:
        if getattr(head, "test_cfg", None):
            head.test_cfg.score_thr = 0.0  # an untrained one finds nothing above it
        if getattr(head, "mask_head", None) is not None:
            head.mask_head = None
    (sample,) = detector.test_step({"inputs": [image], "data_samples": [DetDataSample(metainfo=meta)]})
    return {key: sample.pred_instances[key] for key in ("bboxes", "scores", "labels")}
