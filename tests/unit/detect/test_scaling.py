import numpy as np
import pytest
import torch

from deploy.fitting import fit_image
from detect.fixed_shape import FixedShapeDetector
from detect.reference import reference_of
from detect.scaling import ScalingDetector

SIZE_HW = (128, 160)


@pytest.fixture
def graph(trained):
    return FixedShapeDetector(trained[0], SIZE_HW)


def scene(height, width, seed=0):
    """A smooth image: noise would change with rounding."""
    coarse = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    return smooth[0].permute(1, 2, 0).round().to(torch.uint8).numpy()


def frame(pixels, dtype=torch.float32):
    image = torch.from_numpy(pixels.transpose(2, 0, 1)[None]).to(dtype)
    return image, torch.tensor([pixels.shape[:2]], dtype=torch.float32)


class Recording(torch.nn.Module):
    """A detector that keeps the image it is given, and finds one box that fills it."""

    input_names, output_names = FixedShapeDetector.input_names, ("boxes_xyxy",)
    size_hw, dtype = SIZE_HW, torch.float32

    def forward(self, image, image_hw):
        self.image, self.image_hw = image, image_hw
        return (torch.cat([torch.zeros_like(image_hw), image_hw.flip(1)], 1)[:, None],)


@pytest.mark.parametrize("input_hw", [(270, 480), (64, 80), (300, 200), (33, 301)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_frame_is_scaled_as_opencv_scales_it(input_hw, dtype):
    pixels, recording = scene(*input_hw), Recording()
    expected, _ = fit_image(pixels, SIZE_HW)
    (boxes,) = ScalingDetector(recording, input_hw)(*frame(pixels, dtype))
    difference = np.abs(recording.image.numpy() - expected["image"])
    assert np.array_equal(recording.image_hw, expected["image_hw"])
    assert difference.max() <= 1  # OpenCV weighs in whole 2048ths, so values half-way may round to the next
    assert difference.mean() < 0.1
    torch.testing.assert_close(boxes[0, 0], torch.tensor([0.0, 0.0, input_hw[1], input_hw[0]]))


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


def test_boxes_stay_inside_an_image_that_does_not_fill_its_input(graph):
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
