"""A network of timm and a criterion of one's own, for own_experiment.py beside it. Needs: pip install timm."""

import timm
from torch import Tensor, nn

from espalier import OwnBackbone


def resnet10t(num_classes: int) -> OwnBackbone:
    """Return timm's ResNet-10-T with random weights; a detector reads its last four stages."""
    net = timm.create_model("resnet10t", num_classes=num_classes)
    stages = tuple(stage["module"] for stage in net.feature_info if stage["reduction"] >= 4)
    return OwnBackbone(
        net,
        head=net.default_cfg["classifier"],
        stages=stages,
        mean_rgb=tuple(255 * value for value in net.default_cfg["mean"]),
        std_rgb=tuple(255 * value for value in net.default_cfg["std"]),
    )


class LargestWeight:
    """Ranks the filters of a convolution by their largest weight."""

    comparable = False  # scores of different layers are on scales of their own

    def member_scores(self, model: nn.Module, member) -> Tensor | None:
        """Return a score for each output channel, higher = keep; None of what this criterion does not look at."""
        layer = dict(model.named_modules()).get(member.layer)
        if member.side != "out" or not isinstance(layer, nn.Conv2d):
            return None
        return layer.weight.detach().abs().flatten(1).amax(1)
