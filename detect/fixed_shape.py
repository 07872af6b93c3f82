"""A trained two-stage detector as a module of plain tensors with fixed shapes: batched, exportable, no plugin.

Boxes are decoded and suppressed in `fixed_boxes`, RoI features are read in `fixed_roi`; this file rebuilds mmdet's
Faster R-CNN from its trained networks, so that it finds the same boxes as mmdet's `predict`.

Shape letters: N images, L levels, A anchors of a level, P candidates of a level, R proposals, C classes (without
background), X candidate detections, K detections, H and W the input; 4 is x1, y1, x2, y2 in pixels, or four box deltas.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from command.errors import RequestError
from detect.fixed_boxes import BoxDecoder, keep_best, keep_by_operator, spread_by_group, take
from detect.fixed_roi import CanvasRoIAlign, OperatorRoIAlign

if TYPE_CHECKING:
    from mmdet.models import TwoStageDetector

__all__ = ["NMS_ITERATIONS", "FixedShapeDetector", "GraphRuntime", "check_parts"]

GraphRuntime = Literal["any", "onnxruntime", "openvino"]
"""The runtime that a graph is for."""

Suppress = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""Boxes, best first, valid and IoU threshold -> which are kept, and whether NMS converged."""

NMS_ITERATIONS = 24
"""Default iterations of NMS; see FixedShapeDetector."""

TOPK_LIMIT = 3840  # of TensorRT's TopK

SUPPORTED = {
    "neck": ("FPN",),
    "rpn_head": ("RPNHead",),
    "rpn_head.bbox_coder": ("DeltaXYWHBBoxCoder",),
    "rpn_head.prior_generator": ("AnchorGenerator",),
    "roi_head": ("StandardRoIHead",),
    "roi_head.bbox_roi_extractor": ("SingleRoIExtractor",),
    "roi_head.bbox_roi_extractor.roi_layers.0": ("RoIAlign",),
    "roi_head.bbox_head": ("Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead", "ConvFCBBoxHead"),
    "roi_head.bbox_head.bbox_coder": ("DeltaXYWHBBoxCoder",),
}
"""Classes whose prediction is reimplemented here; a subclass may predict differently, so names must match exactly."""


class FixedShapeDetector(nn.Module):
    """mmdet's Faster R-CNN as one graph of standard operators with fixed shapes.

    The given detector is not changed: its networks are copied, to the CPU and in eval mode. The rest is computed as in
    mmdet, with the detector's test settings. RoIAlign with `sampling_ratio=0` (mmdet's default, adaptive) has no fixed
    shape: 2 is used instead, which differs slightly.

    Args:
        detector: A Faster R-CNN of the parts in `SUPPORTED`, with any backbone.
        size_hw: Height and width of the input in pixels, both multiples of the detector's padding.
        max_candidates: Number of (proposal, class) pairs that enter the final NMS. mmdet takes all above the score
            threshold; leaving out the worst changes nothing as long as `max_per_img` of the others survive.
        nms_iterations: Iterations of NMS, see `fixed_boxes.keep_best`. A small detector trained on BCCD needed up to 17
            for its proposals, usually 10; an untrained one, whose scores are smooth, can need 60.
        runtime: The runtime it is for; all find the same boxes. `any`: NMS and RoIAlign as arithmetic, which every
            engine builds. `onnxruntime`: with ONNX's NMS operator; `openvino`: with its RoIAlign operator too. These
            are faster in these runtimes, but TensorRT-RTX cannot build them.
        debug: Adds the output `nms_converged`, bool (N,): False where `nms_iterations` were too few.
        dtype: Dtype of backbone, neck and heads; boxes and scores are always float32. In half precision, BatchNorm is
            folded into the convolutions before it.

    Raises:
        RequestError: If a part or setting of the detector is not supported, or a number is out of range.
    """

    input_names = ("image", "image_hw")
    mean: Tensor
    std: Tensor
    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        detector: "TwoStageDetector",
        size_hw: tuple[int, int],
        *,
        max_candidates: int = 1000,
        nms_iterations: int = NMS_ITERATIONS,
        runtime: GraphRuntime = "any",
        debug: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_parts(detector)
        _check_settings(detector)
        _check_numbers(detector, size_hw, nms_iterations)
        detector = copy.deepcopy(detector).cpu()
        if dtype != torch.float32:
            _fold_batchnorm(detector)
        self.size_hw, self.debug, self.dtype = (size_hw[0], size_hw[1]), debug, dtype
        self.output_names = ("boxes_xyxy", "scores", "labels", "nms_converged")[: 4 if debug else 3]
        self._copy_preprocessing(detector.data_preprocessor)
        self.backbone, self.neck = detector.backbone.to(dtype), detector.neck.to(dtype)
        suppress = partial(keep_best, num_iterations=nms_iterations) if runtime == "any" else keep_by_operator
        self.proposals = _Proposals(detector.rpn_head.to(dtype), size_hw, suppress)
        num_proposals = self.proposals.num_proposals
        align = OperatorRoIAlign if runtime == "openvino" and self.proposals.are_inside else CanvasRoIAlign
        self.detections = _Detections(
            detector.roi_head.to(dtype), size_hw, num_proposals, max_candidates, suppress, align
        )
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, image_hw: Tensor) -> tuple[Tensor, ...]:
        """Return the detections of each image, best first.

        Args:
            image: RGB, values 0 to 255, float32 or uint8 (N, 3, H, W); pixels outside `image_hw` are ignored.
            image_hw: Height and width of the image without padding, float32 (N, 2); boxes are clipped to it.

        Returns:
            boxes_xyxy (N, K, 4) in pixels of the input, scores (N, K) and labels (N, K) int64, K being the detector's
            `max_per_img`, or less if there can never be that many; unused places have score 0 and label -1. With
            `debug`, nms_converged (N,) follows.
        """
        features = self.features(image, image_hw)
        boxes_NR4, valid_NR, rpn_converged_N = self.proposals(features, image_hw)
        *found, converged_N = self.detections(features, boxes_NR4, valid_NR, image_hw)
        return (*found, rpn_converged_N & converged_N) if self.debug else tuple(found)

    def features(self, image: Tensor, image_hw: Tensor) -> tuple[Tensor, ...]:
        """Return the neck's feature maps for the inputs of `forward`, finest first."""
        maps: tuple[Tensor, ...] = self.neck(self.backbone(self._normalised(image, image_hw).to(self.dtype)))
        return maps

    def example_inputs(self, batch_size: int = 1, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return random inputs for `forward`, without padding, with images of dtype `dtype`."""
        image = (torch.rand(batch_size, 3, *self.size_hw) * 255).to(dtype)
        return image, torch.tensor([self.size_hw] * batch_size, dtype=torch.float32)

    def _copy_preprocessing(self, preprocessor: Any) -> None:
        self.pad_value = float(preprocessor.pad_value)
        # mmdet loads BGR: a preprocessor that swaps channels feeds the network RGB, which is our input
        self.flips_channels = not preprocessor._channel_conversion
        normalises = preprocessor._enable_normalize
        self.register_buffer("mean", preprocessor.mean if normalises else torch.zeros(3, 1, 1), persistent=False)
        self.register_buffer("std", preprocessor.std if normalises else torch.ones(3, 1, 1), persistent=False)
        self.register_buffer("rows", torch.arange(self.size_hw[0])[:, None].float(), persistent=False)
        self.register_buffer("columns", torch.arange(self.size_hw[1]).float(), persistent=False)

    def _normalised(self, image: Tensor, image_hw: Tensor) -> Tensor:
        height_N111, width_N111 = image_hw[:, :, None, None, None].unbind(1)
        is_inside = (self.rows < height_N111) & (self.columns < width_N111)
        image = image.float()  # first of all: the only operation on bytes in TensorRT is a cast at the input
        image = image.flip(1) if self.flips_channels else image
        return torch.where(is_inside, (image - self.mean) / self.std, self.pad_value)


class _Proposals(nn.Module):
    """RPNHead's prediction: the best boxes of each level after NMS per level, then the best of all levels."""

    anchors: Tensor
    level: Tensor

    def __init__(self, rpn_head: Any, size_hw: tuple[int, int], suppress: Suppress) -> None:
        super().__init__()
        config, generator = rpn_head.test_cfg, rpn_head.prior_generator
        self.head, self.decode, self.suppress = rpn_head, BoxDecoder(rpn_head.bbox_coder), suppress
        self.iou_threshold, self.min_side = config.nms.iou_threshold, config.get("min_bbox_size", -1)
        sizes_hw = _level_sizes([stride for stride, _ in generator.strides], size_hw)
        anchors_LA4 = generator.grid_priors(sizes_hw, device="cpu")  # its default is a CUDA device
        self.num_anchors = [len(anchors_A4) for anchors_A4 in anchors_LA4]
        most, limit = max(self.num_anchors), config.get("nms_pre", -1)
        self.num_candidates = min(limit, most) if limit > 0 else most
        self.num_proposals = min(config.max_per_img, len(sizes_hw) * self.num_candidates)
        self.are_inside = bool(rpn_head.bbox_coder.clip_border)
        _require_topk("test_cfg.rpn.nms_pre", self.num_candidates)
        _require_topk("test_cfg.rpn.max_per_img", self.num_proposals)
        level = torch.arange(len(sizes_hw)).repeat_interleave(self.num_candidates)
        self.register_buffer("anchors", torch.cat(anchors_LA4), persistent=False)
        self.register_buffer("level", level, persistent=False)

    def forward(self, features: Sequence[Tensor], image_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (N, R, 4), valid (N, R) and converged (N,)."""
        levels = zip(*self.head(features), self.anchors.split(self.num_anchors), self.num_anchors, strict=True)
        best = zip(*(self._best(*level) for level in levels), strict=True)
        scores, deltas, anchors = (torch.cat(levels, dim=1) for levels in best)
        boxes = self.decode(anchors, deltas, image_hw)
        valid = (scores >= 0) & ((boxes[..., 2:] - boxes[..., :2]).amin(-1) > self.min_side)
        apart = spread_by_group(boxes, self.level, valid)
        by_level = (1, (-1, self.num_candidates))
        keep_NLP, converged_NL = self.suppress(
            apart.unflatten(*by_level), valid.unflatten(*by_level), self.iou_threshold
        )
        scores_NR, index_NR = torch.where(keep_NLP.flatten(1), scores, -1.0).topk(self.num_proposals)
        return take(boxes, index_NR), scores_NR >= 0, converged_NL.all(-1)

    def _best(
        self, logits_NAhw: Tensor, deltas_N4Ahw: Tensor, anchors_A4: Tensor, num_anchors: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, deltas and anchors of one level's P best; unused places have score -1."""
        # sigmoid first: scores that are equal in float32 are a tie in mmdet too
        scores_NA = logits_NAhw.permute(0, 2, 3, 1).flatten(1).float().sigmoid()
        deltas_NA4 = deltas_N4Ahw.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)).float()
        num_best = min(self.num_candidates, num_anchors)
        scores_NP, index_NP = scores_NA.topk(num_best)
        empty = self.num_candidates - num_best
        return (
            functional.pad(scores_NP, (0, empty), value=-1.0),
            functional.pad(take(deltas_NA4, index_NP), (0, 0, 0, empty)),
            functional.pad(functional.embedding(index_NP, anchors_A4), (0, 0, 0, empty)),
        )


class _Detections(nn.Module):
    """StandardRoIHead's prediction: every proposal is classified and decoded, then NMS runs class by class."""

    def __init__(
        self,
        roi_head: Any,
        size_hw: tuple[int, int],
        num_proposals: int,
        max_candidates: int,
        suppress: Suppress,
        align: type[CanvasRoIAlign],
    ) -> None:
        super().__init__()
        config, extractor = roi_head.test_cfg, roi_head.bbox_roi_extractor
        self.head, self.suppress = roi_head.bbox_head, suppress
        self.decode = BoxDecoder(self.head.bbox_coder)
        self.score_threshold, self.iou_threshold = max(config.score_thr, 0.0), config.nms.iou_threshold
        _require_topk("test_cfg.rcnn.max_per_img", config.max_per_img)
        _require_topk("max_candidates", max_candidates)
        self.num_proposals, self.num_classes = num_proposals, self.head.num_classes
        self.num_candidates = min(max_candidates, num_proposals * self.num_classes)
        self.num_detections = min(config.max_per_img, self.num_candidates)
        strides, layer = extractor.featmap_strides, extractor.roi_layers[0]
        self.roi_align = align(
            strides,
            _level_sizes(strides, size_hw),
            output_size=layer.output_size[0],
            sampling_ratio=layer.sampling_ratio or 2,
            finest_scale=extractor.finest_scale,
        )

    def forward(
        self, features: Sequence[Tensor], proposals_NR4: Tensor, valid_NR: Tensor, image_hw: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes (N, K, 4), scores (N, K), labels (N, K) and converged (N,)."""
        logits, deltas = self.head(self.roi_align(features, proposals_NR4))
        scores_NRC = logits.float().softmax(-1)[:, :-1].unflatten(0, (-1, self.num_proposals))
        is_likely = (scores_NRC > self.score_threshold) & valid_NR[..., None]
        scores_NX, pair_NX = torch.where(is_likely, scores_NRC, 0.0).flatten(1).topk(self.num_candidates)
        # integer division is exported as float division; adding a half avoids rounding errors at whole numbers
        proposal_NX = ((pair_NX + 0.5) / self.num_classes).long()
        label_NX = pair_NX - proposal_NX * self.num_classes
        agnostic = self.head.reg_class_agnostic
        deltas_per_image = deltas.float().reshape(-1, self.num_proposals * (1 if agnostic else self.num_classes), 4)
        deltas_NX4 = take(deltas_per_image, proposal_NX if agnostic else pair_NX)
        boxes_NX4 = self.decode(take(proposals_NR4, proposal_NX), deltas_NX4, image_hw)
        valid_NX = scores_NX > 0
        apart_NX4 = spread_by_group(boxes_NX4, label_NX, valid_NX)
        keep_NX, converged_N = self.suppress(apart_NX4, valid_NX, self.iou_threshold)
        scores_NK, index_NK = torch.where(keep_NX, scores_NX, 0.0).topk(self.num_detections)
        found_NK = scores_NK > 0
        boxes_NK4 = take(boxes_NX4, index_NK) * found_NK[..., None]
        return boxes_NK4, scores_NK, torch.where(found_NK, label_NX.gather(1, index_NK), -1), converged_N


def _fold_batchnorm(detector: Any) -> None:
    """Fold BatchNorm into the convolutions before it, in fp32: exporters fold it too, but leave float32 weights."""
    from detect.openmmlab import fuse_conv_bn

    detector.eval()
    image = torch.linspace(-2, 2, 3 * 64 * 64).reshape(1, 3, 64, 64)
    with torch.no_grad():
        before, _ = detector.backbone(image), fuse_conv_bn(detector)
        after = detector.backbone(image)
    for whole, folded in zip(before, after, strict=True):  # differ if layers run in another order than they are listed
        is_same = torch.allclose(folded, whole, rtol=0, atol=1e-3 * float(whole.abs().max()))
        problem = "BatchNorm cannot be folded into convolutions"
        _require(is_same, "backbone", problem, "different features", "every BatchNorm after its convolution")


def _level_sizes(strides: Sequence[int], size_hw: tuple[int, int]) -> list[tuple[int, int]]:
    return [(-(-size_hw[0] // stride), -(-size_hw[1] // stride)) for stride in strides]


def check_parts(detector: Any) -> None:
    """Raise RequestError at the first part of a detector that FixedShapeDetector does not support."""
    for path, names in SUPPORTED.items():
        try:
            found = type(attrgetter(path)(detector)).__name__
        except AttributeError:
            found = "none"
        _require(found in names, path, "this part is not supported", found, " or ".join(names))
    roi_head = detector.roi_head
    _require(not roi_head.with_mask, "roi_head", "masks are not supported", "a mask head", "boxes only")
    _require(not roi_head.with_shared_head, "roi_head", "a shared head is not supported", "one", "none")


def _check_settings(detector: Any) -> None:
    rpn_head, roi_head = detector.rpn_head, detector.roi_head
    bbox_head, layer = roi_head.bbox_head, roi_head.bbox_roi_extractor.roi_layers[0]
    sigmoid, softmax = rpn_head.use_sigmoid_cls, not bbox_head.custom_cls_channels
    _require(sigmoid, "rpn_head.loss_cls", "only sigmoid scores are supported", "use_sigmoid=False", "use_sigmoid=True")
    _require(softmax, "bbox_head.loss_cls", "not supported", type(bbox_head.loss_cls).__name__, "a plain softmax")
    _require(
        bbox_head.with_cls and bbox_head.with_reg,
        "bbox_head",
        "a branch is missing",
        "only one",
        "with_cls and with_reg",
    )
    plain = layer.aligned and layer.pool_mode == "avg" and len(set(layer.output_size)) == 1
    _require(plain, "roi_layer", "not supported", layer, "aligned=True, pool_mode='avg', a square output")
    for name, part in (("rpn", rpn_head), ("rcnn", roi_head)):
        nms = dict(part.test_cfg.nms)
        plain = nms.get("type", "nms") == "nms" and nms.keys() <= {"type", "iou_threshold", "split_thr"}
        _require(plain, f"test_cfg.{name}.nms", "not supported", nms, "type='nms' with only an iou_threshold")
    for coder in (rpn_head.bbox_coder, bbox_head.bbox_coder):
        _require(not coder.add_ctr_clamp, "bbox_coder", "not supported", "add_ctr_clamp=True", "add_ctr_clamp=False")


def _check_numbers(detector: Any, size_hw: tuple[int, int], nms_iterations: int) -> None:
    _require(nms_iterations >= 1, "nms_iterations", "too few", nms_iterations, "at least 1")
    step = max(detector.data_preprocessor.pad_size_divisor, *detector.roi_head.bbox_roi_extractor.featmap_strides)
    fits = all(side > 0 and side % step == 0 for side in size_hw)
    _require(fits, "size_hw", "not divisible by the strides", size_hw, f"multiples of {step}")


def _require_topk(subject: str, count: int) -> None:
    _require(1 <= count <= TOPK_LIMIT, subject, "out of range for TopK", count, f"1 to {TOPK_LIMIT}")


def _require(holds: bool, subject: str, problem: str, got: object, expected: str) -> None:
    if not holds:
        raise RequestError(f"{subject}: {problem}, got {got}; expected {expected}")
