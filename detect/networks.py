"""The outputs of a detector's networks before boxes are selected: for comparing a file with PyTorch."""

import torch
from torch import Tensor, nn

from detect.fixed_shape import FixedShapeDetector

__all__ = ["NetworkOutputs"]

_NUM_BOXES = 64


class NetworkOutputs(nn.Module):
    """The RPN's maps, and the RoI head's outputs on fixed boxes.

    If all scores are nearly equal, rounding decides which boxes are kept, and detections cannot be compared; these
    outputs can.

    Args:
        graph: The detector.
        input_hw: Height and width of the input, if images are scaled first.
    """

    boxes: Tensor

    def __init__(self, graph: FixedShapeDetector, input_hw: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.detector, self.input_names = graph, graph.input_names  # torch.fx has a `graph` of its own
        self.output_names = ("rpn_scores", "rpn_deltas", "head_scores", "head_deltas")
        self.scale = nn.Upsample(graph.size_hw, mode="bilinear") if input_hw else nn.Identity()
        height, width = graph.size_hw
        generator = torch.Generator().manual_seed(0)
        ends_X22 = torch.rand(_NUM_BOXES, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
        self.register_buffer("boxes", ends_X22.flatten(1)[None], persistent=False)
        self.eval()

    def forward(self, image: Tensor, image_hw: Tensor) -> tuple[Tensor, ...]:
        """Return the RPN's scores and deltas of all levels, (N, all), and the head's, (N x boxes, classes)."""
        graph = self.detector
        whole_hw = torch.ones_like(image_hw) * torch.tensor(graph.size_hw)
        features = graph.features(self.scale(image.float()), whole_hw)
        maps = graph.proposals.head(features)
        head = graph.detections.head(graph.detections.roi_align(features, self.boxes.expand(len(image), -1, -1)))
        levels = [torch.cat([level.flatten(1) for level in kind], 1) for kind in maps]
        return tuple(output.float() for output in (*levels, *head))
