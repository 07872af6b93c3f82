"""A classifier as a deployed folder: images in, class scores out."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from classify.augmentation import scaled_side
from classify.checkpoint import load_classifier
from classify.own_backbone import normalisation_of
from deploy.deployment import Precision
from deploy.ranges import check_finite, check_range
from deploy.writing import Comparison, Origin, write_deployment

__all__ = ["DTYPES", "ClassScores", "export_classifier"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of a network -> dtype of its weights."""


def export_classifier(
    model: Path, folder: Path, *, batch: int, precision: Precision, image: str, config: dict[str, Any]
) -> tuple[dict[str, Any] | None, str]:
    """Write `model.onnx` and `deploy.json` into `folder`.

    Args:
        model: Model file.
        folder: Created; other files in it stay.
        batch: Images per run.
        precision: Of the network: fp32, fp16 or bf16.
        image: Type of the input's pixels, "float32" or "uint8".
        config: The settings of the export, for `deploy.json`.

    Returns:
        What `write_deployment` returns, and a human-readable description of the images it was compared on.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is no classifier, or a weight is not a finite number in that precision.
        WorkError: If the file does not give what PyTorch gives.
    """
    net, card = load_classifier(model)
    graph = ClassScores(net, DTYPES[precision])
    drawn = torch.rand(batch, 3, *card.preprocessing.image_hw, generator=torch.Generator().manual_seed(0))
    examples = [{"image": (drawn * 255).to(getattr(torch, image))}]
    in_precision = f"{model} in {precision}"
    check_finite(in_precision, graph.state_dict(), "take bf16 or fp32")
    check_range(in_precision, graph, examples)
    images = f"{batch} random image{'s' if batch > 1 else ''}"
    comparison = Comparison(examples, images, reference=ClassScores(net, torch.float32))
    seen = card.preprocessing
    scaled = None if seen.crop_share == 1 else scaled_side(seen.image_hw[0], seen.crop_share)
    origin = Origin("classifier", card.classes, model, config, precision, shorter_side=scaled)
    return write_deployment(graph, origin, comparison, folder), images


class ClassScores(nn.Module):
    """A classifier with its normalisation in front; the given one is not changed.

    Args:
        net: From images (N, 3, H, W), normalised, to scores (N, C).
        dtype: Precision of the network; scores are float32 in any case.
    """

    input_names = ("image",)
    output_names = ("scores",)

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        # BatchNorm with fixed statistics is exactly this normalisation; torch up to 2.11 refuses an eps of zero
        self.normalise = nn.BatchNorm2d(3, eps=1e-12, affine=False)
        mean, std = normalisation_of(net)
        self.normalise.running_mean, self.normalise.running_var = torch.tensor(mean), torch.tensor(std).square()
        # in half precision BatchNorm is folded here: the exporter folds it too, but leaves float32 weights
        copied = copy.deepcopy(net) if dtype == torch.float32 else fuse(net)
        self.net, self.dtype = copied.to(dtype), dtype
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return scores (N, C) of RGB images (N, 3, H, W), 0 to 255, float32 or uint8."""
        scores: Tensor = self.net(self.normalise(image.float()).to(self.dtype))
        return scores.float()
