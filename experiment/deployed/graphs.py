"""What is deployed of a model file, as modules from images to scores or boxes, and PyTorch to compare with."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from classify.checkpoint import load_classifier, read_card
from classify.data import MEAN, STD
from deploy import ModuleRunner, TensorSpec
from deploy.files import sha256_of
from detect import load_detector
from detect.fixed_shape import FixedShapeDetector

__all__ = ["ClassScores", "ModelRunner"]


class ClassScores(nn.Module):
    """A classifier with ImageNet's normalisation in front; the one given is left as it is.

    Args:
        net: From images (N, 3, H, W), normalised, to scores (N, C).
        dtype: Precision of the network; scores are float32 in any case.
    """

    input_names = ("image",)
    output_names = ("scores",)

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        # BatchNorm with fixed statistics is just that normalisation
        self.normalise = nn.BatchNorm2d(3, eps=0.0, affine=False)
        self.normalise.running_mean, self.normalise.running_var = torch.tensor(MEAN), torch.tensor(STD).square()
        # in half precision BatchNorm is folded here: the exporter folds it too, but leaves float32 weights
        copied = copy.deepcopy(net) if dtype == torch.float32 else fuse(net)
        self.net, self.dtype = copied.to(dtype), dtype
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return scores (N, C) of RGB images (N, 3, H, W), 0 to 255, float32 or uint8."""
        scores: Tensor = self.net(self.normalise(image.float()).to(self.dtype))
        return scores.float()


class ModelRunner(ModuleRunner):
    """Runs a model file in PyTorch: the graph that `espalier deploy export` writes unless told more, at batch 1.

    Args:
        path: Model file of a classifier or detector.
        num_threads: CPU threads, of this whole process.
        device: Either "cpu" or "cuda:<index>".
        compiled: Whether torch.compile turns it into kernels.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no model file.
        RuntimeError: If there is no such device.
    """

    def __init__(self, path: Path, *, num_threads: int = 1, device: str = "cpu", compiled: bool = False) -> None:
        if device != "cpu" and not torch.cuda.is_available():
            raise RuntimeError(f"{path}: no GPU to run it, got a machine without CUDA; measure it with torch")
        torch.set_num_threads(num_threads)
        graph, examples = _graph_of(path)
        with torch.no_grad():
            found = graph(*examples)
        outputs = (found,) if isinstance(found, Tensor) else found
        super().__init__(graph.to(device), graph.output_names, device=device, compiled=compiled)
        self.file_sha256 = sha256_of(path)
        self.inputs = dict(zip(graph.input_names, map(_spec, examples), strict=True))
        self.outputs = dict(zip(graph.output_names, map(_spec, outputs), strict=True))


def _graph_of(path: Path) -> tuple[Any, tuple[Tensor, ...]]:
    """Return the module and random inputs of it."""
    if read_card(path).kind == "classifier":
        net, card = load_classifier(path)
        side = card.preprocessing["image_size"]
        return ClassScores(net, torch.float32), (torch.rand(1, 3, side, side) * 255,)
    detector, card = load_detector(path)
    height, width = card.preprocessing["image_size_hw"]
    graph = FixedShapeDetector(detector, (height, width))
    return graph, graph.example_inputs()


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
