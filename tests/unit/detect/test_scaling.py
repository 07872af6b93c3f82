import numpy as np
import pytest
import torch

from detect.evaluate import agreement
from detect.fitting import fit_image
from detect.fixed_shape import FixedShapeDetector
from detect.reference import reference_of
from detect.scaling import ScalingDetector

SIZE_HW = (128, 160)


@pytest.fixture
def graph(trained):
    return FixedShapeDetector(trained[0], SIZE_HW)


def scene(height, width, seed=0):
    """A smooth picture: of noise, rounding makes another one."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return smooth[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def frame(pixels, dtype=torch.float32):
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).to(dtype)
    return image, torch.tensor([pixels.shape[:2]], dtype=torch.float32)


@pytest.mark.parametrize("input_hw", [(270, 480), (64, 80), (300, 200), (33, 301)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_frame_gives_what_it_gives_when_opencv_scales_it(graph, input_hw, dtype):
    pixels = scene(*input_hw)
    inputs, grew_xyxy = fit_image(pixels, SIZE_HW)
    outputs = graph(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
    expected = dict(zip(graph.output_names, outputs, strict=True))
    boxes, scores, labels = ScalingDetector(graph, input_hw)(*frame(pixels, dtype))
    found = {"boxes_xyxy": boxes * torch.from_numpy(grew_xyxy), "scores": scores, "labels": labels}
    found, expected = ({name: np.asarray(array) for name, array in one.items()} for one in (found, expected))
    # values differ by a hundredth of grey here and there, which may change who survives suppression
    num_agreed, num_detections = agreement(expected, found, score_tolerance=0.02, box_tolerance=1.0)
    assert num_detections > 3
    assert num_agreed >= 0.8 * num_detections


def test_at_its_own_size_it_is_the_detector_itself(graph):
    pixels = scene(*SIZE_HW)
    for found, expected in zip(ScalingDetector(graph, SIZE_HW)(*frame(pixels)), graph(*frame(pixels)), strict=True):
        assert torch.equal(found, expected)


def test_boxes_are_in_pixels_of_the_frame(graph):
    """Every pixel three times, so that scaling takes the middle ones and gives back the picture."""
    pixels = scene(*SIZE_HW)
    large = ScalingDetector(graph, (3 * SIZE_HW[0], 3 * SIZE_HW[1]))
    boxes, scores, _ = large(*frame(pixels.repeat(3, 0).repeat(3, 1)))
    expected_boxes, expected_scores, _ = graph(*frame(pixels))
    assert torch.equal(scores, expected_scores)
    torch.testing.assert_close(boxes, 3 * expected_boxes)


def test_boxes_do_not_leave_a_picture_that_does_not_fill_its_input(graph):
    """51 of 75 rows become 108.8, that is 109 of 160: a little more than the picture."""
    image, _ = frame(scene(75, 75))
    image_hw = torch.tensor([[51.0, 51.0]])
    boxes, scores, _ = ScalingDetector(graph, (75, 75))(image, image_hw)
    assert (scores > 0.05).sum() > 3
    assert boxes.max() <= 51


def test_the_reference_scales_too(trained, graph):
    pixels = scene(60, 75)
    example = dict(zip(graph.input_names, frame(pixels), strict=True))
    found = reference_of(trained[0], SIZE_HW, [example], (60, 75)).outputs[0]
    for name, expected in zip(graph.output_names, ScalingDetector(graph, (60, 75))(*example.values()), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=1e-3)
