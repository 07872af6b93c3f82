"""A classification network as mmengine trains it, and its batches."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor, nn
from torch.utils.data import default_collate

from classify.own_backbone import Rgb, normalisation_of

__all__ = ["ClassifierModel", "Normalized", "collate"]


class Normalized(BaseDataPreprocessor):
    """Puts a batch on the device and normalises it, in one go; mmengine's does so image by image."""

    def __init__(self, mean_rgb: Rgb, std_rgb: Rgb) -> None:
        super().__init__(non_blocking=True)
        for name, values in (("mean", mean_rgb), ("std", std_rgb)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """Return the batch with normalised "inputs"."""
        batch = self.cast_data(data)
        return {**batch, "inputs": (batch["inputs"] - self.mean) / self.std}


class ClassifierModel(BaseModel):
    """A classification network as mmengine trains it: uint8 RGB images in, cross-entropy or class scores out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(Normalized(*normalisation_of(net)))
        self.net = net

    def forward(self, inputs: Tensor, data_samples: Tensor, mode: str = "tensor") -> Any:
        """Return {"loss"} in mode "loss", (scores, label) pairs in mode "predict", else scores (N, classes)."""
        scores = self.net(inputs)
        if mode == "loss":
            return {"loss": nn.functional.cross_entropy(scores, data_samples)}
        return list(zip(scores, data_samples, strict=True)) if mode == "predict" else scores


def collate(batch: Sequence[tuple[Tensor, int]]) -> dict[str, Any]:
    """Return {"inputs": images (N, 3, S, S), "data_samples": labels (N,)} as `ClassifierModel` takes them."""
    images, labels = default_collate(list(batch))
    return {"inputs": images, "data_samples": labels}
