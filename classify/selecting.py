"""ResNets whose residual branches choose what they read of the sum between the blocks."""

from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from prune.selection import ChannelSelection

__all__ = ["resnet50_select"]


class _SelectingBottleneck(Bottleneck):
    """torchvision's block with a channel selection before its first convolution; the shortcut reads all channels.

    Source: He, Zhang, Sun, Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, section 3.3, where
    it is called the channel sampler.
    """

    def __init__(self, inplanes: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(inplanes, *args, **kwargs)
        self.select = ChannelSelection(inplanes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the branch and the shortcut."""
        branch = self.relu(self.bn1(self.conv1(self.select(x))))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        shortcut: nn.Module = self.downsample or nn.Identity()
        return self.relu(branch + shortcut(x))


def resnet50_select(num_classes: int) -> nn.Module:
    """Return a ResNet-50 that takes torchvision's weights, and computes the same until a selection is cut."""
    return ResNet(_SelectingBottleneck, [3, 4, 6, 3], num_classes=num_classes)
