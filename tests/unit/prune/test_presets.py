import re
from decimal import Decimal

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from classify.backbones import Architecture, build_classifier
from prune import cost_of, prune_model
from prune.choose.presets import PRESETS, preset
from prune.selection import ChannelSelection

COUNTS = {  # millions of parameters and of MACs, counted independently from the official configurations
    "resnet34-A": (20.152, 3100),
    "resnet34-B": (19.469, 2782),
    "resnet56-A": (0.773, 112.4),
    "resnet56-B": (0.736, 90.9),
    "resnet110-A": (1.689, 212.8),
    "resnet110-B": (1.168, 155.1),
    "vgg16-A": (5.397, 206.3),
}
SKIPPED = {  # in Li et al.'s layer numbers, with all of a stage whose ratio is 0
    "resnet34-A": (2, 8, 14, 16, 26, 28, 30, 32),
    "resnet34-B": (2, 8, 14, 16, 26, 28, 30, 32),
    "resnet34-C": (2, 8, 14, 16, 26, 32),
    "resnet34-D": (32,),
    "resnet18-C": (16,),
    "resnet56-A": (16, 20, 38, 54),
    "resnet56-B": (16, 18, 20, 34, 38, 54),
    "resnet110-A": (36, *range(38, 109, 2)),
    "resnet110-B": (36, 38, 74),
}
NUM_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet56": (9, 9, 9), "resnet110": (18, 18, 18)}


def widths_of(net):
    convs = {name: layer.weight.shape[0] for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    selections = {name: layer for name, layer in net.named_modules() if isinstance(layer, ChannelSelection)}
    return convs | {name: len(layer.index) for name, layer in selections.items()}


def applied(entry):
    """The slim network and the convolutions whose outputs it has fewer of."""
    dense = build_classifier(Architecture(entry.backbone, 1000 if entry.image_side == 224 else 10))
    widths = widths_of(dense)
    selects = {"select_channels": entry.selects_channels}
    slim = prune_model(dense, (torch.zeros(1, 3, 32, 32),), 0.0, widths=entry.kept, **selects).model
    return slim, {name: width for name, width in widths_of(slim).items() if width != widths[name]}


def count_as_authors(entry, slim, image):
    """Parameters and MACs counted as the preset's `source` describes."""
    if entry.name.startswith("resnet50-thinet"):
        for block in slim.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    cost = cost_of(slim, (image,))
    params, macs = cost.params, cost.macs
    if entry.name.startswith("resnet34"):
        projections = [layer for name, layer in cost.layers.items() if "downsample" in name]
        params -= sum(layer.params for layer in projections)
        macs -= sum(layer.macs for layer in projections)
    elif entry.name.startswith("vgg16-thinet"):
        params -= sum(parameter.numel() for name, parameter in slim.named_parameters() if name.endswith("bias"))
    elif entry.name == "vgg16-5x":
        macs = sum(layer.macs for name, layer in cost.layers.items() if name.startswith("features"))
    return params, macs


def agrees(count, printed):
    return abs(count - Decimal(printed)) < Decimal(1).scaleb(Decimal(printed).as_tuple().exponent)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_gives_its_widths_and_the_published_parameters_and_macs(name):
    entry = preset(name)
    slim, narrower = applied(entry)
    image = torch.zeros(1, 3, entry.image_side, entry.image_side)
    if name == "resnet34-C-li":
        coupled = [f"layer3.{block}.conv2" for block in range(6)] + ["layer3.0.downsample.0"]
        assert narrower == dict.fromkeys(coupled, 204)
    else:
        assert narrower == entry.kept
    if name in COUNTS:
        cost = cost_of(slim, (image,))
        params, macs = COUNTS[name]
        assert cost.params / 1e6 == pytest.approx(params, abs=0.0005)
        assert cost.macs / 1e6 == pytest.approx(macs, abs=0.5 if macs > 1000 else 0.05)
    params, macs = count_as_authors(entry, slim, image)
    assert entry.published_params is None or agrees(params, entry.published_params)
    assert entry.published_macs is None or agrees(macs, entry.published_macs)


@pytest.mark.parametrize("name", SKIPPED)
def test_the_skipped_layers_are_the_official_ones(name):
    blocks = [
        f"layer{stage}.{block}.conv1"
        for stage, num in enumerate(NUM_BLOCKS[name.split("-")[0]], 1)
        for block in range(num)
    ]
    whole = {2 * k for k, layer in enumerate(blocks, 1) if layer not in preset(name).kept}
    assert whole == set(SKIPPED[name])
    assert set(preset(name).kept) <= set(blocks)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("resnet34-A", {"layer1": 44, "layer2": 89, "layer3": 179}),
        ("resnet34-B", {"layer1": 32, "layer2": 51, "layer3": 153}),
        ("resnet34-C", {"layer1": 32, "layer2": 64, "layer3": 128, "layer4": 256}),
        ("resnet34-D", {"layer1": 38, "layer2": 76, "layer3": 128, "layer4": 256}),
        ("resnet18-C", {"layer1": 57, "layer2": 115, "layer3": 204, "layer4": 358}),
        ("resnet56-A", {"layer1": 14, "layer2": 28, "layer3": 57}),
        ("resnet56-B", {"layer1": 6, "layer2": 22, "layer3": 57}),
        ("resnet110-A", {"layer1": 8}),
        ("resnet110-B", {"layer1": 8, "layer2": 19, "layer3": 44}),
        ("resnet50-thinet-30", {"layer1": 19, "layer2": 38, "layer3": 76, "layer4": 153}),
        ("resnet50-thinet-50", {"layer1": 32, "layer2": 64, "layer3": 128, "layer4": 256}),
        ("resnet50-thinet-70", {"layer1": 44, "layer2": 89, "layer3": 179, "layer4": 358}),
    ],
)
def test_ratios_round_down_to_the_published_widths(name, widths):
    kept = preset(name).kept
    assert {layer: {kept[key] for key in kept if key.startswith(layer)} for layer in widths} == {
        layer: {width} for layer, width in widths.items()
    }
    assert {key.split(".")[0] for key in kept} == set(widths)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("vgg16-A", {0: 32, 24: 256, 27: 256, 30: 256, 34: 256, 37: 256, 40: 256}),
        ("vgg16-5x", {0: 24, 2: 22, 5: 41, 7: 51, 10: 108, 12: 89, 14: 111, 17: 184, 19: 276, 21: 228}),
        ("vgg16-thinet-conv", {0: 32, 2: 32, 5: 64, 7: 64, 10: 128, 12: 128, 14: 128, 17: 256, 19: 256, 21: 256}),
    ],
)
def test_vgg_widths_have_the_indices_of_the_convolutions(name, kept):
    assert preset(name).kept == {f"features.{index}": width for index, width in kept.items()}


def test_the_regression_preset_has_the_official_widths():
    official = """
        35 64 55 101 51 39 97 50 37 144 128 106 205 105 72 198 105 72 288 128 110 278 256 225 418 209 147 407 204 158
        423 212 155 412 211 148 595 256 213 606 512 433 1222 512 437 1147 512 440"""
    widths = [int(width) for width in official.split()]  # per block: input channels sampled, conv1, conv2
    kept = preset("resnet50-2x").kept
    blocks = [f"layer{stage}.{block}" for stage, num in enumerate((3, 4, 6, 3), 1) for block in range(num)]
    dense = [64 * 2 ** (int(block[5]) - 1) for block in blocks]
    assert [kept.get(f"{block}.conv1", width) for block, width in zip(blocks, dense, strict=True)] == widths[1::3]
    assert [kept.get(f"{block}.conv2", width) for block, width in zip(blocks, dense, strict=True)] == widths[2::3]
    sampled = preset("resnet50-2x-sampled").kept
    assert [sampled[f"{block}.select"] for block in blocks] == widths[::3]
    assert sampled == {**kept, **{f"{block}.select": sampled[f"{block}.select"] for block in blocks}}


def test_an_unknown_preset_is_refused_with_the_nearest_names_on_one_line():
    with pytest.raises(ValueError, match=r"^preset: unknown, got 'resnet34A'; nearest names: .*resnet34-A.*$"):
        preset("resnet34A")
    with pytest.raises(ValueError, match=re.escape("vgg16-5x")):
        preset("zzz")
