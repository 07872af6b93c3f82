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
        frozen_stages: How many stages are not trained, and what comes before them; -1 for none, as in mmdet's ResNet.
        frozen_norms: Leave BatchNorm's scales and shifts as they are.
    """

    def __init__(
        self,
        name: str,
        base_channels: int = 64,
        widths: Mapping[str, tuple[int, int]] | None = None,
        removed_blocks: Mapping[str, Sequence[str]] | None = None,
        norm_eval: bool = False,
        code: bool = False,
        frozen_stages: int = -1,
        frozen_norms: bool = False,
        init_cfg: Any = None,
    ) -> None:
        if code:
            check_backbone(name)
        branches = {block: tuple(layers) for block, layers in (removed_blocks or {}).items()}
        trunk = build_trunk(Architecture(name, 1, base_channels, widths or {}, branches))
        super().__init__(trunk.net, trunk.steps, trunk.stages)
        self.heads = heads_of(name)
        self.norm_eval, self.frozen_norms = norm_eval, frozen_norms
        self.frozen_steps = _steps_of(trunk, frozen_stages)
        if init_cfg is not None:
            raise RequestError(f"backbone.init_cfg: not used, got {init_cfg}; drop it, weights are in the checkpoint")
        self.train()

    def train(self, mode: bool = True) -> "TrunkBackbone":
        """Switch mode; what is fixed during training stays in eval mode, and gets no gradients."""
        super().train(mode)
        frozen = [self.net.get_submodule(step) for step in self.frozen_steps]
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in (*frozen, *(norms if self.norm_eval else ())):
            module.eval()
        for module in (*frozen, *(norms if self.frozen_norms else ())):
            module.requires_grad_(False)
        return self


def _steps_of(trunk: Trunk, num_stages: int) -> tuple[str, ...]:
    """Return the steps up to the end of a stage; for 0, those before the one that ends the first stage."""
    if num_stages not in range(-1, len(trunk.stages) + 1):
        raise RequestError(
            f"backbone.frozen_stages: out of range, got {num_stages}; expected -1 to {len(trunk.stages)}"
        )
    if num_stages < 0:
        return ()
    end = trunk.steps.index(trunk.stages[max(num_stages - 1, 0)])
    return trunk.steps[: end + bool(num_stages)]
