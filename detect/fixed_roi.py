"""RoIAlign over all pyramid levels at once, so that every RoI can be on any level at a fixed shape.

Shape letters: N images, R RoIs per image, L levels, C channels, S sample points along one side of a RoI.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CanvasRoIAlign", "OperatorRoIAlign"]

OFF_CANVAS = -3.0
"""A GridSample coordinate more than a pixel outside: it reads zero, like RoIAlign far outside a level."""


class CanvasRoIAlign(nn.Module):
    """Equals mmdet's SingleRoIExtractor with RoIAlign(aligned=True) and a fixed number of sample points.

    The levels are stacked vertically in one canvas; each RoI's points are placed on its level, clamped to it, sampled
    together and averaged.

    Args:
        strides: Pixels of the image per feature, for each level, finest first.
        sizes_hw: Height and width of each level's features.
        output_size: Cells along a side of the result, O.
        sampling_ratio: Sample points along a side of a cell.
        finest_scale: RoIs with sqrt(area) below twice this, in pixels, are read from the finest level.

    Source: Mask R-CNN (He et al. 2017, sec. 3), level rule of FPN (Lin et al. 2017, eq. 1) as in mmdet.
    """

    points: Tensor
    levels: Tensor
    min_ratios: Tensor

    def __init__(
        self,
        strides: Sequence[int],
        sizes_hw: Sequence[tuple[int, int]],
        output_size: int,
        sampling_ratio: int,
        finest_scale: float,
    ) -> None:
        super().__init__()
        self.output_size, self.sampling_ratio, self.finest_scale = output_size, sampling_ratio, finest_scale
        heights, widths = zip(*sizes_hw, strict=True)
        self.num_levels = len(heights)
        self.canvas_hw = (sum(heights), max(widths))
        tops = [sum(heights[:level]) for level in range(len(heights))]
        num_points = output_size * sampling_ratio
        self.register_buffer("points", (torch.arange(num_points) + 0.5) / num_points, persistent=False)
        levels = torch.tensor([strides, heights, widths, tops], dtype=torch.float32).T
        self.register_buffer("levels", levels.contiguous(), persistent=False)
        self.register_buffer("min_ratios", 2.0 ** torch.arange(1, len(heights)), persistent=False)

    def forward(self, features: Sequence[Tensor], boxes_NR4: Tensor) -> Tensor:
        """Return the features of each RoI.

        Args:
            features: One map per level, (N, C, height, width); further, coarser maps are not read.
            boxes_NR4: Corners x1, y1, x2, y2 in pixels of the image, (N, R, 4).

        Returns:
            Shape (N * R, C, O, O), RoIs of the first image first.
        """
        levels = features[: self.num_levels]
        canvas = torch.cat([functional.pad(x, (0, self.canvas_hw[1] - x.shape[-1])) for x in levels], dim=-2)
        grid_N_RS_S_2 = self._grid(boxes_NR4.float())
        sampled = functional.grid_sample(canvas.float(), grid_N_RS_S_2, align_corners=False)
        cells = functional.avg_pool2d(sampled, self.sampling_ratio)
        cells_NCROO = cells.unflatten(2, (boxes_NR4.shape[1], self.output_size))
        return cells_NCROO.transpose(1, 2).flatten(0, 1).to(canvas.dtype)

    def _grid(self, boxes_NR4: Tensor) -> Tensor:
        stride, height, width, top = functional.embedding(self._level(boxes_NR4), self.levels).unbind(-1)
        x_NRS = self._coordinates(boxes_NR4[..., 0::2], stride, width, torch.zeros_like(top), self.canvas_hw[1])
        y_NRS = self._coordinates(boxes_NR4[..., 1::2], stride, height, top, self.canvas_hw[0])
        return torch.stack(torch.broadcast_tensors(x_NRS[..., None, :], y_NRS[..., :, None]), -1).flatten(1, 2)

    def _coordinates(self, ends_NR2: Tensor, stride: Tensor, extent: Tensor, start: Tensor, canvas: int) -> Tensor:
        """Return the sample points of one side on the canvas, whose borders are -1 and 1."""
        low, high = (ends_NR2 / stride[..., None] - 0.5).unbind(-1)
        points_NRS = low[..., None] + (high - low)[..., None] * self.points
        is_read = (points_NRS >= -1) & (points_NRS <= extent[..., None])
        clamped_NRS = torch.minimum(points_NRS.clamp(min=0), extent[..., None] - 1) + start[..., None]
        return torch.where(is_read, (2 * clamped_NRS + 1) / canvas - 1, OFF_CANVAS)

    def _level(self, boxes_NR4: Tensor) -> Tensor:
        sides_NR2 = boxes_NR4[..., 2:] - boxes_NR4[..., :2]
        ratio_NR = sides_NR2.prod(-1).sqrt() / self.finest_scale + 1e-6
        # counting the powers of two reached is floor(log2(ratio)), clamped, without a logarithm's rounding
        return (ratio_NR[..., None] >= self.min_ratios).sum(-1)


class OperatorRoIAlign(CanvasRoIAlign):
    """The same with one RoiAlign operator on the canvas, for boxes inside the image; see `keep_by_operator`.

    Each level is framed by a copy of its border features. RoIAlign clamps its points to a level's border, which equals
    interpolation with the frame; no point of a box inside the image is outside the frame.
    """

    def forward(self, features: Sequence[Tensor], boxes_NR4: Tensor) -> Tensor:
        """Return the features of each RoI; see `CanvasRoIAlign.forward`."""
        levels = features[: self.num_levels]
        right = [self.canvas_hw[1] - x.shape[-1] for x in levels]
        framed = [functional.pad(x, (1, 1, 1, 1), mode="replicate") for x in levels]
        canvas = torch.cat([functional.pad(x, (0, more)) for x, more in zip(framed, right, strict=True)], dim=-2)
        level_NR = self._level(boxes_NR4)
        stride_NR, _, _, top_NR = functional.embedding(level_NR, self.levels).unbind(-1)
        down_NR = top_NR + 2 * level_NR + 1
        on_canvas_NR4 = boxes_NR4.float() / stride_NR[..., None] + torch.stack(
            [torch.ones_like(down_NR), down_NR] * 2, dim=-1
        )
        image_N11 = torch.arange(len(boxes_NR4), dtype=torch.float32, device=boxes_NR4.device)[:, None, None]
        rois_X5 = torch.cat([image_N11.expand(-1, boxes_NR4.shape[1], 1), on_canvas_NR4], -1).flatten(0, 1)
        return torchvision.ops.roi_align(
            canvas.float(), rois_X5, self.output_size, 1.0, self.sampling_ratio, aligned=True
        ).to(canvas.dtype)
