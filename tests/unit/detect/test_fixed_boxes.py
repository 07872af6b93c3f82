from functools import partial

import pytest
import torch
import torchvision

from detect.fixed_boxes import iterations_to_settle, keep_best, keep_by_operator, spread_by_group
from detect.fixed_shape import Suppress

EVERY = torch.ones(300, dtype=torch.bool)


def boxes_around(num_centres: int, jitter: float, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(num_centres, 2, generator=generator) * 500
    half = torch.rand(num_centres, 2, generator=generator) * 50 + 20
    box = torch.cat([centre - half, centre + half], dim=1).repeat(300 // num_centres, 1)
    return box + torch.randn(box.shape, generator=generator) * jitter


def chain(length: int) -> torch.Tensor:
    """Boxes in a row, each overlapping only its neighbours by 6 / (10 + 10 - 6) = 0.43."""
    left = torch.arange(length) * 4.0
    return torch.stack([left, torch.zeros(length), left + 10, torch.full((length,), 10.0)], dim=1)


def kept_by_torchvision(boxes: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    best_first = torch.arange(len(boxes), 0, -1).float()
    return torchvision.ops.nms(boxes, best_first, iou_threshold).sort().values


@pytest.mark.parametrize("iou_threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize(("num_centres", "jitter"), [(300, 0.0), (10, 3.0), (3, 10.0), (1, 0.0)])
def test_equals_torchvision_nms(num_centres: int, jitter: float, iou_threshold: float) -> None:
    boxes = boxes_around(num_centres, jitter)
    keep, converged = keep_best(boxes, EVERY, iou_threshold, num_iterations=30)
    assert converged
    assert keep.nonzero()[:, 0].tolist() == kept_by_torchvision(boxes, iou_threshold).tolist()


def test_overlap_equal_to_the_threshold_is_kept() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])  # IoU 50 / 100
    keep, _ = keep_best(boxes, EVERY[:2], 0.5, num_iterations=2)
    assert keep.tolist() == [True, True]


def test_boxes_without_area_neither_suppress_nor_are_suppressed() -> None:
    keep, converged = keep_best(torch.zeros(3, 4), EVERY[:3], 0.5, num_iterations=1)
    assert keep.all()
    assert converged


@pytest.mark.parametrize(
    ("length", "num_rounds", "converged"), [(5, 4, True), (5, 3, False), (40, 8, False), (40, 39, True)]
)
def test_chain_longer_than_the_rounds_is_reported(length: int, num_rounds: int, converged: bool) -> None:
    keep, is_converged = keep_best(chain(length), torch.ones(length, dtype=torch.bool), 0.4, num_rounds)
    every_other = [place % 2 == 0 for place in range(length)]
    assert is_converged.item() is converged
    assert (keep.tolist() == every_other) is converged


@pytest.mark.parametrize("length", [1, 2, 5, 40])
def test_a_chain_settles_in_as_many_rounds_as_it_has_links(length: int) -> None:
    boxes = torch.stack([chain(length), torch.zeros(length, 4)])
    assert iterations_to_settle(boxes, torch.ones(2, length, dtype=torch.bool), 0.4) == length - 1


@pytest.mark.parametrize("suppress", [partial(keep_best, num_iterations=30), keep_by_operator])
def test_rows_of_a_batch_are_independent_and_ignore_invalid_boxes(suppress: Suppress) -> None:
    boxes, valid = torch.stack([boxes_around(10, 5.0, seed) for seed in (0, 1)]), EVERY.repeat(2, 1)
    valid[1, ::2] = False
    keep, converged = suppress(boxes, valid, 0.5)
    assert converged.tolist() == [True, True]
    assert keep[0].nonzero()[:, 0].tolist() == kept_by_torchvision(boxes[0], 0.5).tolist()
    assert keep[1].nonzero()[:, 0].tolist() == (kept_by_torchvision(boxes[1, 1::2], 0.5) * 2 + 1).tolist()


def test_groups_do_not_overlap_once_spread() -> None:
    boxes = boxes_around(3, 10.0).clamp(min=0)
    group = torch.arange(300) % 7
    apart = spread_by_group(boxes[None], group[None], EVERY[None])
    keep, _ = keep_best(apart, EVERY[None], 0.5, num_iterations=30)
    expected = torchvision.ops.batched_nms(boxes, torch.arange(300, 0, -1).float(), group, 0.5)
    assert keep[0].nonzero()[:, 0].tolist() == expected.sort().values.tolist()
