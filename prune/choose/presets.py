"""The slim networks the literature predefines, as data: layer -> output channels kept.

Left out, since its widths were never published: the VGG-11 that Liu et al. obtained with Network Slimming on ImageNet.
"""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from command.errors import RequestError
from prune.choose.allocate import num_kept

__all__ = ["PRESETS", "Preset", "preset"]


@dataclass(frozen=True)
class Preset:
    """One predefined slim network.

    Some authors round their figures and some cut digits off: a right count is less than one unit of the last digit
    away. Where they count differently from `cost_of`, `source` explains how.
    """

    name: str
    backbone: str
    """The dense network: a key of `classify.backbones.BACKBONES`."""
    kept: Mapping[str, int]
    """Output channels of the layers that are cut; one layer represents all that are cut together with it."""
    source: str
    published_params: str | None = None
    """As printed: "1.99e7"."""
    published_macs: str | None = None
    """As printed, or half of it where a multiply-add was counted as two operations."""
    image_side: int = 224
    """Height and width of the images that the MACs were counted for."""

    @property
    def selects_channels(self) -> bool:
        """Whether blocks choose what they read: `select_channels` of a recipe."""
        return any(layer.endswith(".select") for layer in self.kept)


def preset(name: str) -> Preset:
    """Return the preset of that name.

    Raises:
        RequestError: If there is none.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3) or sorted(PRESETS)
        raise RequestError(f"preset: unknown, got {name!r}; nearest names: {', '.join(near)}")
    return PRESETS[name]


def _first_convs(
    num_blocks: Sequence[int], base_channels: int, ratios: Sequence[float], skip: Collection[int]
) -> dict[str, int]:
    """Cut the first convolution of every basic block except those in `skip`.

    Args:
        num_blocks: Per stage.
        base_channels: Width of the first stage; each stage doubles it.
        ratios: Share of channels removed, per stage.
        skip: Layers in Li et al.'s numbering: 1 is the stem, the n-th block of the network holds 2n and 2n + 1.
    """
    kept = {}
    layer = 0
    for stage, (num, ratio) in enumerate(zip(num_blocks, ratios, strict=True)):
        for block in range(num):
            layer += 2
            if ratio and layer not in skip:
                kept[f"layer{stage + 1}.{block}.conv1"] = num_kept(base_channels * 2**stage, ratio)
    return kept


def _resnet34(ratios: Sequence[float], skip: Collection[int]) -> dict[str, int]:
    return _first_convs((3, 4, 6, 3), 64, ratios, skip)


def _cifar(num_blocks: int, ratios: Sequence[float], skip: Collection[int]) -> dict[str, int]:
    return _first_convs((num_blocks,) * 3, 16, ratios, skip)


def _bottlenecks(*stages: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Cut the first two convolutions of ResNet-50's blocks to the given widths."""
    return {
        f"layer{stage + 1}.{block}.conv{conv + 1}": width
        for stage, blocks in enumerate(stages)
        for block, widths in enumerate(blocks)
        for conv, width in enumerate(widths)
        if width < 64 * 2**stage
    }


def _thinet(prune_ratio: float) -> dict[str, int]:
    widths = [num_kept(64 * 2**stage, prune_ratio) for stage in range(4)]
    return _bottlenecks(*([(width, width)] * num for width, num in zip(widths, (3, 4, 6, 3), strict=True)))


def _vgg16(*stages: tuple[int, ...], batch_norm: bool = False) -> dict[str, int]:
    """Cut VGG-16's convolutions to the given widths; the stages end at the poolings."""
    dense_stages = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
    kept = {}
    index = 0
    for dense_widths, widths in zip(dense_stages, stages, strict=True):
        for dense, width in zip(dense_widths, widths, strict=True):
            if width < dense:
                kept[f"features.{index}"] = width
            index += 3 if batch_norm else 2  # the convolution, its normalisation and its ReLU
        index += 1  # the pooling
    return kept


_LI = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, table 1 and sections 4.1 to 4.3"
_LI_34 = f"{_LI} (figures without the projection shortcuts)"
_NPTM = "Le & Hua, Network Pruning That Matters, ICLR 2021; github.com/lehduong/NPTM, imagenet/l1-norm-pruning"
_RETHINKING = "github.com/Eric-mingjie/rethinking-network-pruning, imagenet"
_THINET = f"Luo et al., ThiNet, ICCV 2017; widths: {_RETHINKING}/thinet; figures"
_THINET_50 = f"{_THINET} (with the stride of a block in its conv1, as in Caffe): github.com"
_THINET_16 = f"{_THINET} (parameters without biases): github.com/Roll920"
_REGRESSION = f"He et al., Channel Pruning, ICCV 2017; widths: {_RETHINKING}/regression-pruning"

_SKIP_34 = (2, 8, 14, 16, 26, 28, 30, 32)
_HALF_VGG16 = _vgg16((32, 32), (64, 64), (128, 128, 128), (256, 256, 256), (512, 512, 512))
_TINY_VGG16 = _vgg16((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 256))
_FIFTH_VGG16 = _vgg16((24, 22), (41, 51), (108, 89, 111), (184, 276, 228), (512, 512, 512))
_CIFAR_VGG16 = _vgg16((32, 64), (128, 128), (256, 256, 256), (256, 256, 256), (256, 256, 256), batch_norm=True)
_HALF_RESNET50 = _bottlenecks(
    [(64, 55), (51, 39), (50, 37)],
    [(128, 106), (105, 72), (105, 72), (128, 110)],
    [(256, 225), (209, 147), (204, 158), (212, 155), (211, 148), (256, 213)],
    [(512, 433), (512, 437), (512, 440)],
)

_SAMPLED = {  # what conv1 of each block reads
    f"layer{stage}.{block}.select": width
    for stage, widths in enumerate(
        ((35, 101, 97), (144, 205, 198, 288), (278, 418, 407, 423, 412, 595), (606, 1222, 1147)), 1
    )
    for block, width in enumerate(widths)
}

_ALL = (
    Preset("resnet34-A", "resnet34", _resnet34((0.3, 0.3, 0.3, 0.0), _SKIP_34), _LI_34, "1.99e7", "3.08e9"),
    Preset("resnet34-B", "resnet34", _resnet34((0.5, 0.6, 0.4, 0.0), _SKIP_34), _LI_34, "1.93e7", "2.76e9"),
    # Li et al. chose other filters in each coupled layer of stage 3; here the layers keep the same channels
    Preset("resnet34-C-li", "resnet34", {"layer3.0.conv2": num_kept(256, 0.2)}, _LI_34, "2.01e7", "3.37e9"),
    Preset("resnet34-C", "resnet34", _resnet34((0.5, 0.5, 0.5, 0.5), (2, 8, 14, 16, 26, 32)), _NPTM),
    Preset("resnet34-D", "resnet34", _resnet34((0.4, 0.4, 0.5, 0.5), (32,)), _NPTM),
    Preset("resnet18-C", "resnet18", _first_convs((2, 2, 2, 2), 64, (0.1, 0.1, 0.2, 0.3), (16,)), _NPTM),
    Preset("resnet56-A", "resnet56_cifar", _cifar(9, (0.1, 0.1, 0.1), (16, 20, 38, 54)), _LI, "7.7e5", "1.12e8", 32),
    Preset(
        "resnet56-B", "resnet56_cifar", _cifar(9, (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54)), _LI, "7.3e5", "9.09e7", 32
    ),
    Preset("resnet110-A", "resnet110_cifar", _cifar(18, (0.5, 0.0, 0.0), (36,)), _LI, "1.68e6", "2.13e8", 32),
    Preset("resnet110-B", "resnet110_cifar", _cifar(18, (0.5, 0.4, 0.3), (36, 38, 74)), _LI, "1.16e6", "1.55e8", 32),
    Preset("vgg16-A", "vgg16_cifar", _CIFAR_VGG16, _LI, "5.4e6", "2.06e8", 32),
    Preset("resnet50-thinet-30", "resnet50", _thinet(0.7), f"{_THINET_50}/QingbeiGuo/DNAL", "8.66e6", "1.10e9"),
    Preset("resnet50-thinet-50", "resnet50", _thinet(0.5), f"{_THINET_50}/QingbeiGuo/DNAL", "12.38e6", "1.71e9"),
    Preset("resnet50-thinet-70", "resnet50", _thinet(0.3), f"{_THINET_50}/Roll920/ThiNet_Code", "16.94e6", "2.44e9"),
    Preset("vgg16-thinet-conv", "vgg16", _HALF_VGG16, f"{_THINET_16}/ThiNet_Code", "131.44e6", "4.79e9"),
    Preset("vgg16-thinet-gap", "vgg16_gap", _HALF_VGG16, f"{_THINET_16}/ThiNet", "8.32e6", "4.67e9"),
    Preset("vgg16-thinet-tiny", "vgg16_gap", _TINY_VGG16, f"{_THINET_16}/ThiNet", "1.32e6", "1.005e9"),
    Preset(
        "vgg16-5x",
        "vgg16",
        _FIFTH_VGG16,
        f"{_REGRESSION}; MACs (of the convolutions alone): github.com/ethanhe42/channel-pruning, issue 50",
        published_macs="3.3917e9",
    ),
    Preset(
        "resnet50-2x",
        "resnet50",
        _HALF_RESNET50,
        f"{_REGRESSION}, but for its sampler: there, at 2.73e9 MACs, each conv1 reads only part of its block's input",
    ),
    Preset(
        "resnet50-2x-sampled",
        "resnet50_select",
        {**_HALF_RESNET50, **_SAMPLED},
        _REGRESSION,
        published_macs="2.73e9",
    ),
)

PRESETS: dict[str, Preset] = {entry.name: entry for entry in _ALL}
"""Every preset by name."""
