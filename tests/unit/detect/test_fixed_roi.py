import torch
import torchvision

from detect.fixed_roi import CanvasRoIAlign, OperatorRoIAlign

STRIDES, SIZES_HW = (4, 8, 16, 32), ((32, 40), (16, 20), (8, 10), (4, 5))


def random_boxes(num_images: int, num_boxes: int, largest: float) -> torch.Tensor:
    low = torch.rand(num_images, num_boxes, 2) * 100
    return torch.cat([low, low + torch.rand(num_images, num_boxes, 2) * largest], dim=-1)


def levels(num_images: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(num_images, 3, *size_hw) for size_hw in SIZES_HW]


def test_equals_torchvision_at_and_over_the_border() -> None:
    features = levels(1)[:1]
    border = [
        [0, 0, 160, 128],
        [150, 120, 160, 128],
        [-30, -20, 20, 10],
        [150, 100, 200, 150],
        [300, 300, 400, 400],
        [5, 5, 5, 5],
    ]
    boxes = torch.cat([torch.tensor([border], dtype=torch.float32), random_boxes(1, 50, 60.0)], dim=1)
    found = CanvasRoIAlign(STRIDES[:1], SIZES_HW[:1], output_size=7, sampling_ratio=2, finest_scale=56)(features, boxes)
    expected = torchvision.ops.roi_align(features[0], [boxes[0]], 7, 1 / 4, sampling_ratio=2, aligned=True)
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def test_every_box_is_read_from_its_own_level_of_its_own_image() -> None:
    features, boxes = levels(2), random_boxes(2, 60, 900.0)
    found = CanvasRoIAlign(STRIDES, SIZES_HW, output_size=7, sampling_ratio=2, finest_scale=56)(features, boxes)
    scale = (boxes[..., 2:] - boxes[..., :2]).prod(-1).sqrt() / 56 + 1e-6
    level = scale.log2().floor().clamp(0, 3).long()
    assert level.unique().tolist() == [0, 1, 2, 3]
    for place, (image, of_level, box) in enumerate(
        zip([0] * 60 + [1] * 60, level.flatten(), boxes.flatten(0, 1), strict=True)
    ):
        feature, stride = features[of_level][image : image + 1], STRIDES[of_level]
        expected = torchvision.ops.roi_align(feature, [box[None]], 7, 1 / stride, sampling_ratio=2, aligned=True)
        torch.testing.assert_close(found[place : place + 1], expected, atol=3e-5, rtol=0)


def test_operator_gives_the_same_for_boxes_inside_the_image() -> None:
    features, image_xyxy = levels(2), torch.tensor([160.0, 128.0, 160.0, 128.0])
    corners = [[0, 0, 160, 128], [150, 120, 160, 128], [0, 0, 3, 128], [159, 0, 160, 1], [160, 128, 160, 128]]
    boxes = torch.cat(
        [random_boxes(2, 60, 200.0).clamp(max=image_xyxy), torch.tensor(corners).float().repeat(2, 1, 1)], dim=1
    )
    options = {"output_size": 7, "sampling_ratio": 2, "finest_scale": 16}
    found, expected = (
        kind(STRIDES, SIZES_HW, **options)(features, boxes) for kind in (OperatorRoIAlign, CanvasRoIAlign)
    )
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)


def test_other_output_sizes_and_sampling_ratios() -> None:
    features, boxes = levels(1)[:1], random_boxes(1, 20, 60.0)
    found = CanvasRoIAlign(STRIDES[:1], SIZES_HW[:1], output_size=5, sampling_ratio=3, finest_scale=56)(features, boxes)
    expected = torchvision.ops.roi_align(features[0], [boxes[0]], 5, 1 / 4, sampling_ratio=3, aligned=True)
    torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
