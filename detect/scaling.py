"""Scales images of one size, such as a camera's frames, to a detector's shape inside the graph."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from detect.fixed_shape import FixedShapeDetector

__all__ = ["ScalingDetector"]


class ScalingDetector(nn.Module):
    """A fixed-shape detector that takes images of another size and returns boxes in their pixels.

    Scales like `fitting.fit_image`: bilinear, keeping the ratio, rounded to whole pixels and values. It differs if an
    image does not fill the input: its last row and column mix with the padding.

    Args:
        graph: The detector; images are scaled to its shape.
        input_hw: Height and width of the input in pixels, any.
    """

    grew_hw: Tensor

    def __init__(self, graph: "FixedShapeDetector", input_hw: tuple[int, int]) -> None:
        super().__init__()
        self.detector, self.input_names, self.output_names = graph, graph.input_names, graph.output_names
        self.dtype = graph.dtype
        factor = min(side / given for side, given in zip(graph.size_hw, input_hw, strict=True))
        self.scaled_hw = [max(1, int(given * factor + 0.5)) for given in input_hw]
        height, width = graph.size_hw
        self.padding = (0, width - self.scaled_hw[1], 0, height - self.scaled_hw[0])
        grew_hw = torch.tensor(self.scaled_hw) / torch.tensor(input_hw)
        self.register_buffer("grew_hw", grew_hw, persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, image_hw: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of `FixedShapeDetector.forward`, with boxes in pixels of this input."""
        scaled = functional.interpolate(image.float(), self.scaled_hw, mode="bilinear", align_corners=False).round()
        scaled_hw = (image_hw * self.grew_hw + 0.5).floor()
        boxes_NK4, *others = self.detector(functional.pad(scaled, self.padding), scaled_hw)
        boxes_NK4 = boxes_NK4 / self.grew_hw.flip(0).repeat(2)
        # the scaled image is rounded to whole pixels, so boxes can exceed the image slightly
        return (torch.minimum(boxes_NK4, image_hw.flip(1).repeat(1, 2)[:, None]), *others)
