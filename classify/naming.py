"""Weights of others under our names: what training programs wrap them in, and how libraries name the same layers."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from classify.backbones import HEADS
from command.files import shown
from command.notes import note

__all__ = ["IN_TIMM", "renamed", "unwrapped"]

_CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema"),  # averaged weights are those that the program evaluates
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights", "params"),
)
IN_TIMM = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "resnext50_32x4d": "resnext50_32x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "vgg11_bn": "vgg11_bn",
    "vgg16": "vgg16",
    "vgg16_bn": "vgg16_bn",
    "mobilenet_v2": "mobilenetv2_100",
    "efficientnet_b0": "efficientnet_b0",
    "densenet121": "densenet121",
    "convnext_tiny": "convnext_tiny",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "regnet_x_400mf": "regnetx_004_tv",
    "regnet_y_400mf": "regnety_004",
}
"""Our names -> those of the same networks in timm, whose tensors come in the same order, but for RegNets' shortcuts."""
_TIMM_EPS, _TORCHVISION_EPS = 1e-5, 1e-3
"""Of MobileNetV3's BatchNorm."""


def unwrapped(content: Any) -> Any:
    """Return the dictionary of tensors in what a training program has saved, or the content itself if there is none."""
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = next((content[key] for key in _CONTAINERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def renamed(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], in_same_order: bool = False
) -> Mapping[str, Tensor]:
    """Return weights by a network's own names, as far as they can be told; the others keep theirs.

    A prefix is removed (`module.`, `backbone.`, `model._orig_mod.`), with all that does not have it, such as a neck; a
    head is found below another name.

    Args:
        weights: By the names in a file.
        own: What the network has.
        in_same_order: Take them in their order where not all names fit but all sizes do: of the same network in a
            library that names its layers otherwise.
    """
    if own.keys() <= weights.keys():
        return weights
    if in_same_order and (found := _in_order(_of_timm(weights), own)):
        return found
    fitting = {prefix: _num_fitting(prefix, weights, own) for prefix in _prefixes(weights, own)}
    prefix = max(fitting, key=lambda prefix: (fitting[prefix], -len(prefix)))
    if not fitting[prefix]:
        return weights
    if others := [other for other, num in fitting.items() if num == fitting[prefix] and other != prefix]:
        note(f"the file has several such networks: {shown(prefix)!r} is taken, not {shown(', '.join(others))!r}")
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    for name in [name for name in own if name.startswith(HEADS) and name not in found]:
        below = [other for other in weights if other.endswith(f".{name}") and weights[other].shape == own[name].shape]
        if len(below) == 1 and below[0].removeprefix(prefix) not in own:
            found.pop(below[0].removeprefix(prefix), None)
            found[name] = weights[below[0]]
    return found


def _prefixes(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[str]:
    yield ""
    for name in list(own)[:3]:
        yield from (other.removesuffix(name) for other in weights if other.endswith(f".{name}"))


def _num_fitting(prefix: str, weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> int:
    """Return how many weights below a prefix have a name and the shape of the network's."""
    return sum(prefix + name in weights and weights[prefix + name].shape == own[name].shape for name in own)


def _of_timm(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return timm's weights as torchvision has them, where the same networks differ.

    A RegNet's block ends with its shortcut there and begins with it here. MobileNetV3's BatchNorm has another epsilon;
    the scales make up for it in evaluation, exactly.
    """
    if "s1.b1.conv1.conv.weight" in weights:
        blocks = {block: place for place, block in enumerate(dict.fromkeys(map(_block, weights)))}
        order = sorted(weights, key=lambda name: (blocks[_block(name)], ".downsample." not in name))
        return {name: weights[name] for name in order}
    with_attention = {_block(name) for name in weights if name.startswith("blocks.") and ".se." in name}
    if with_attention and "blocks.0.0.conv_dw.weight" in weights and ("blocks", "0") not in with_attention:
        return {name: _at_our_epsilon(name, weights) for name in weights}
    return weights


def _block(name: str) -> tuple[str, ...]:
    return tuple(name.split(".")[:2])


def _at_our_epsilon(name: str, weights: Mapping[str, Tensor]) -> Tensor:
    variance = weights.get(f"{name.removesuffix('weight')}running_var")
    if not name.endswith(".weight") or variance is None:
        return weights[name]
    return weights[name] * ((variance + _TORCHVISION_EPS) / (variance + _TIMM_EPS)).sqrt()


def _in_order(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor] | None:
    """Return weights by the names of the network's tensors at their place; None if one is of another kind or size."""
    theirs, ours = (
        {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (weights, own)
    )
    if [*map(_kind, theirs.items())] != [*map(_kind, ours.items())]:
        return None
    return {
        name: tensor.reshape(ours[name].shape) for name, tensor in zip(ours, theirs.values(), strict=True)
    }  # a linear layer may be a convolution there


def _kind(item: tuple[str, Tensor]) -> tuple[str, int, int]:
    """Return what tensors of one layer have in common; a scale per channel has no name of its own."""
    name, tensor = item
    last = name.rpartition(".")[2]
    kind = last if last in ("weight", "bias", "running_mean", "running_var") else "scale"
    return kind, tensor.shape[0] if tensor.ndim else 0, tensor.numel()
