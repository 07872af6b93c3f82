"""Our (slim) backbones for mmdet: a config has the network's name and widths, and mmdet builds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from classify.backbones import Architecture, Trunk, build_trunk, check_backbone, heads_of
from command.errors import RequestError
from detect.openmmlab import MODELS

__all__ = ["TrunkBackbone"]


@MODELS.register_module()
class TrunkBackbone(Trunk):
    """A classification network without its head, as an mmdet backbone with feature maps at strides 4, 8, 16 and 32.

    Args:
        name: A key of `classify.backbones.BACKBONES`, or of the user's own code.
        code: Whether own code is imported: as a config says, which is Python, and never a model file.
        base_channels: Channels of the dense network's stem.
        widths: (inputs, outputs) of the layers that are narrower in a slim network.
        removed_blocks: Residual block -> layers of its branch, where a slim network has the shortcut alone.
        norm_eval: Keep BatchNorm's running statistics fixed during training, for batches too small to estimate them.
    """

    def __init__(
        self,
        name: str,
        base_channels: int = 64,
        widths: Mapping[str, tuple[int, int]] | None = None,
        removed_blocks: Mapping[str, Sequence[str]] | None = None,
        norm_eval: bool = False,
        code: bool = False,
        init_cfg: Any = None,
    ) -> None:
        if code:
            check_backbone(name)
        branches = {block: tuple(layers) for block, layers in (removed_blocks or {}).items()}
        trunk = build_trunk(Architecture(name, 1, base_channels, widths or {}, branches))
        super().__init__(trunk.net, trunk.steps, trunk.stages)
        self.norm_eval = norm_eval
        self.heads = heads_of(name)
        if init_cfg is not None:
            raise RequestError(f"backbone.init_cfg: not used, got {init_cfg}; drop it, weights are in the checkpoint")

    def train(self, mode: bool = True) -> "TrunkBackbone":
        """Switch mode; with `norm_eval`, BatchNorm layers stay in eval mode."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self
