import importlib.machinery
import subprocess
import sys

import mmcv
import pytest
import torch
import torchvision
from mmcv.ops import RoIAlign, batched_nms, nms, soft_nms
from mmcv.utils.ext_loader import check_ops_exist

from detect.ops import install_ops

pytestmark = pytest.mark.skipif(
    importlib.machinery.PathFinder.find_spec("_ext", mmcv.__path__) is not None,
    reason="mmcv has its compiled operators here, so there is no stand-in to test",
)


@pytest.fixture
def boxes():
    """Return 200 boxes with large overlaps, and their scores."""
    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 200, 2, generator=generator) * 40
    return torch.cat([corner, corner + size + 1], 1), torch.rand(200, generator=generator)


def test_mmdet_imports_without_compiled_operators():
    assert sys.modules["mmdet.models"].TwoStageDetector
    assert sys.modules["mmcv._ext"].__spec__.origin is None


def test_installing_twice_keeps_the_first_stand_in():
    before = sys.modules["mmcv._ext"]
    install_ops()
    assert sys.modules["mmcv._ext"] is before


def test_nms_equals_torchvision(boxes):
    boxes_xyxy, scores = boxes
    detections, kept = nms(boxes_xyxy, scores, iou_threshold=0.5)
    expected = torchvision.ops.nms(boxes_xyxy, scores, 0.5)
    assert 0 < len(expected) < 200
    assert kept.tolist() == expected.tolist()
    torch.testing.assert_close(detections, torch.cat([boxes_xyxy, scores[:, None]], 1)[expected])


def test_batched_nms_equals_torchvision(boxes):
    groups = torch.arange(200) % 3
    _, kept = batched_nms(*boxes, groups, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == torchvision.ops.batched_nms(*boxes, groups, 0.5).tolist()


def test_nms_of_no_boxes_keeps_none():
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5)[1].tolist() == []


def test_another_operator_names_the_package_to_install(boxes):
    with pytest.raises(
        RuntimeError, match=r"mmcv\.ops\.softnms: not available, got mmcv without compiled operators; install"
    ):
        soft_nms(*boxes)


def test_nms_with_an_offset_is_refused(boxes):
    with pytest.raises(ValueError, match="nms: offset is not supported by torchvision, got 1; expected 0"):
        nms(*boxes, 0.5, offset=1)


def test_the_stand_in_has_every_operator_but_no_dunder_names():
    stand_in = sys.modules["mmcv._ext"]
    assert hasattr(stand_in, "roi_align_forward")
    assert not hasattr(stand_in, "__path__")
    assert not hasattr(stand_in, "__wrapped__")


def test_mmcv_detects_that_there_are_no_compiled_operators():
    assert check_ops_exist() is False


def test_mmdet_is_imported_where_numba_may_write_nowhere():
    code = "from numba.core.caching import CacheImpl; CacheImpl._locator_classes = []\n"
    code += "import detect.model, numba; assert not numba.config.DISABLE_JIT"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_and_its_gradient_equal_torchvision(boxes, ratio):
    features = torch.rand(1, 4, 20, 24, generator=torch.Generator().manual_seed(1))
    rois = torch.cat([torch.zeros(200, 1), boxes[0]], 1)
    found, expected = [], []
    for is_torchvision, results in ((False, found), (True, expected)):
        given = features.clone().requires_grad_()
        pooled = RoIAlign((3, 5), 0.25, ratio, use_torchvision=is_torchvision)(given, rois)
        (pooled * torch.arange(15.0).view(3, 5)).sum().backward()
        results += [pooled, given.grad]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert found[1].abs().sum() > 0


def test_pooling_by_maxima_is_refused(boxes):
    rois = torch.cat([torch.zeros(200, 1), boxes[0]], 1)
    with pytest.raises(RuntimeError, match="cannot pool by maxima without compiled operators; install mmcv with them"):
        RoIAlign((3, 5), 0.25, pool_mode="max")(torch.rand(1, 4, 20, 24), rois)
