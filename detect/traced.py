"""A detector's layers without its boxes: what pruning follows, and what costs are counted of."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from classify.checkpoint import ModelCard
from command.errors import RequestError
from prune.cost import Cost, cost_of
from prune.modes import FORWARD_ERRORS, evaluating

__all__ = ["PARTS", "TracedDetector", "detector_cost", "example_images", "traced_at_size"]

PARTS = ("backbone", "neck", "rpn_head", "roi_head", "bbox_head")
"""Parts of a detector that can be cut: two-stage ones have the next to last two, one-stage ones the last."""


_STOCK = ("TwoStageDetector.extract_feat", "SingleStageDetector.extract_feat")


def example_images() -> tuple[Tensor]:
    """Return the smallest images on which channels are followed: they are coupled alike at any size."""
    return (torch.zeros(1, 3, 64, 64),)


class TracedDetector(nn.Module):
    """A detector's layers without its boxes, under the same names.

    Boxes depend on the data, so here every RoI reads the sum of the levels, pooled to the extractor's size; channels
    are coupled exactly as in the detector. A head that cannot be run so is left out. What it reads are outputs, which
    keep their channels, and so is what any further part of the detector or a class of the user's own may read.

    Args:
        detector: mmdet's detector; its modules are shared.
        num_proposals: RoIs that the heads compute.

    Raises:
        RequestError: If the detector is of another kind.
    """

    def __init__(self, detector: Any, num_proposals: int = 1) -> None:
        super().__init__()
        self.backbone: Any
        self.neck: Any
        self.rpn_head: Any
        self.roi_head: Any
        self.bbox_head: Any
        found = {part: module for part in PARTS if isinstance(module := getattr(detector, part, None), nn.Module)}
        if "backbone" not in found or not found.keys() & set(PARTS[2:]):
            raise RequestError(
                f"detector: cannot be followed, got {type(detector).__name__}; expected a backbone and a head that "
                f"reads its maps, as FasterRCNN, CascadeRCNN and RetinaNet have"
            )
        for part, module in {"neck": nn.Identity(), **found}.items():
            setattr(self, part, module)
        self.num_proposals = num_proposals
        with torch.no_grad(), evaluating(self):
            maps = self.neck(self.backbone(*example_images()))
            self.left_out = tuple(name for name, run in self._heads.items() if not self._runs_whole(name, run, maps))
        """Heads that are not run."""
        more = [name for name, child in detector.named_children() if name not in PARTS and [*child.parameters()]]
        self.is_stock = _is_stock(detector)
        self.is_read_elsewhere = bool(self.left_out or more) or not self.is_stock
        """Whether the maps are read by what is not run: a head, another part, or a class of the user's own."""

    def forward(self, images: Tensor) -> list[Any]:
        """Return the outputs of the heads, and the maps that other heads read, for images (1, 3, H, W)."""
        features = self.backbone(images)
        maps = self.neck(features)
        outputs = [output for name, run in self._heads.items() if name not in self.left_out for output in run(maps)]
        more = [*([maps] if self.is_read_elsewhere else []), *([] if self.is_stock else [features])]
        return [*outputs, *more]

    @property
    def _heads(self) -> dict[str, Callable[[Any], list[Any]]]:
        runs: dict[str, Callable[[Any], list[Any]]] = {
            "rpn_head": lambda maps: [self.rpn_head(maps)],
            "roi_head": self._of_regions,
            "bbox_head": lambda maps: [self.bbox_head(maps)],
        }
        return {part: run for part, run in runs.items() if hasattr(self, part)}

    def _of_regions(self, maps: Any) -> list[Any]:
        return [head(self._regions(maps, extractor)) for extractor, head in _stages(self.roi_head)]

    def _regions(self, maps: Any, extractor: Any) -> Tensor:
        side = extractor.roi_layers[0].output_size
        pooled = [nn.functional.adaptive_avg_pool2d(m, side) for m in maps[: extractor.num_inputs]]
        # the extractor makes a tensor of its own width, which is cut with the maps
        regions = torch.stack(pooled).sum(0).reshape(1, extractor.out_channels, *side)
        regions = regions.expand(self.num_proposals, -1, -1, -1)
        return self.roi_head.shared_head(regions) if self.roi_head.with_shared_head else regions

    def _runs_whole(self, name: str, run: Callable[[Any], list[Any]], maps: Any) -> bool:
        """Return whether a head runs on maps alone, and reaches all of its layers."""
        reached: set[nn.Module] = set()
        head = self.get_submodule(name)
        hooks = [module.register_forward_hook(lambda module, *_: reached.add(module)) for module in head.modules()]
        try:
            run(maps)
        except FORWARD_ERRORS:
            return False
        finally:
            for hook in hooks:
                hook.remove()
        return all(module in reached for module in head.modules() if [*module.parameters(recurse=False)])


def _is_stock(detector: Any) -> bool:
    """Return whether maps are the neck's output of the backbone's, as in mmdet's own classes."""
    return type(detector).extract_feat.__qualname__ in _STOCK and (
        type(detector).extract_feat.__module__.startswith("mmdet.models.detectors.")
    )


def _stages(roi_head: Any) -> Iterator[tuple[Any, nn.Module]]:
    """Yield every head of boxes or masks, with the extractor that feeds it."""
    for kind in ("bbox", "mask"):
        heads = getattr(roi_head, f"{kind}_head", None)
        extractors = getattr(roi_head, f"{kind}_roi_extractor", None) or roi_head.bbox_roi_extractor
        if heads is not None:
            yield from zip(_listed(extractors), _listed(heads), strict=True)


def _listed(part: nn.Module) -> Iterable[nn.Module]:
    return part if isinstance(part, nn.ModuleList) else [part]


def detector_cost(detector: Any, card: ModelCard) -> Cost:
    """Return the cost of a detector for one image of its size."""
    return cost_of(traced_at_size(detector), (torch.zeros(1, 3, *card.preprocessing.image_hw),))


def traced_at_size(detector: Any) -> TracedDetector:
    """Return a detector's layers with as many RoIs as it has at most; one for one-stage detectors, which have none."""
    settings = getattr(getattr(detector, "rpn_head", None), "test_cfg", None) or {}
    return TracedDetector(detector, settings.get("max_per_img", 1))
