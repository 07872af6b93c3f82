"""The model of a user's config of mmdet with one of our backbones in it, and what of it depends on the backbone."""

import inspect
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from classify.backbones import Architecture
from classify.checkpoint import Preprocessing
from classify.mmengine_runner import silent
from command.errors import RequestError
from detect.model import backbone_config, map_channels
from detect.openmmlab import MODELS
from detect.slim import SLIM_DETECTOR

__all__ = ["backbone_changes", "plain", "with_backbone"]

_STRIDES = [4, 8, 16, 32]
_ARCHITECTURE = {
    *("type", "depth", "base_channels", "stem_channels", "base_width", "groups", "scales", "arch", "widen_factor"),
    *("style", "deep_stem", "avg_down", "num_stages", "out_indices", "init_cfg", "pretrained", "zero_init_residual"),
    *("norm_eval", "frozen_stages", "norm_cfg", "name", "widths", "removed_blocks", "frozen_norms"),
}
"""Settings of mmdet's backbones that ours replaces, or has too."""
_NORMS = ("BN", "BN2d", "SyncBN")


def with_backbone(settings: Config, backbone: Architecture, colours: Preprocessing) -> ConfigDict:
    """Return the model of a config on another backbone.

    The backbone's `norm_eval`, `frozen_stages` and `norm_cfg` hold for the new one. With it change the neck's inputs,
    and the mean and deviation of colours, with which the backbone was trained; nothing else.

    Raises:
        RequestError: If it is no two-stage detector with a neck on maps of strides 4 to 32, or its backbone has a
            setting that ours have not.
    """
    model, where = settings.model, settings.filename
    kind = model.get("dense_type", model.type) if model.type == SLIM_DETECTOR else model.type
    if "roi_head" not in model or "backbone" not in model:
        raise RequestError(f"{where}: not a two-stage detector, got {plain(kind)}; expected one like FasterRCNN")
    neck, extractor = model.get("neck"), model.roi_head.get("bbox_roi_extractor", {})
    if not isinstance(neck, Mapping) or len(neck.get("in_channels", ())) != len(_STRIDES):
        raise RequestError(f"{where}: neck: does not read four maps, got {plain(neck)}; expected one such as FPN")
    if not isinstance(extractor, Mapping) or list(extractor.get("featmap_strides", ())) != _STRIDES:
        raise RequestError(f"{where}: bbox_roi_extractor: not of strides {_STRIDES}; expected a Faster R-CNN with FPN")
    own = ConfigDict(backbone_config(backbone, **_training(where, model.backbone)))
    mean, std = (list(values) for values in (colours.mean_rgb, colours.std_rgb))
    seen = {**model.get("data_preprocessor", {}), "mean": mean, "std": std, "bgr_to_rgb": True, "rgb_to_bgr": False}
    neck = ConfigDict({**neck, "in_channels": map_channels(backbone)})
    return ConfigDict({**model, "backbone": own, "neck": neck, "data_preprocessor": ConfigDict(seen)})


def backbone_changes(settings: Config, backbone: Architecture, colours: Preprocessing) -> str:
    """Return in one line what `with_backbone` replaces."""
    before, after = settings.model, with_backbone(settings, backbone, colours)
    kept = ", ".join(f"{name}={after.backbone[name]}" for name in ("norm_eval", "frozen_stages", "frozen_norms"))
    changes = [f"backbone {_described(before.backbone)} by {backbone.name} ({kept})"]
    for part, names in (("neck", ("in_channels",)), ("data_preprocessor", ("mean", "std", "bgr_to_rgb", "rgb_to_bgr"))):
        for name in names:
            old, new = before.get(part, {}).get(name), after[part][name]
            if (old and list(old) if isinstance(old, tuple) else old) != new and (old or new):
                changes.append(f"{part}.{name} {old} by {new}")
    left = [name for name in ("load_from", "resume") if settings.get(name)]
    changes += [f"{name} {settings[name]!r} by the weights of the step before" for name in left]
    return f"{settings.filename}: replaced are {'; '.join(changes)}; nothing else of the model"


def plain(part: Any) -> Any:
    """Return a part of a config with classes and functions, which configs of the new style hold, as their names."""
    if isinstance(part, Mapping):
        return {key: plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(map(plain, part))
    return f"{part.__module__}.{part.__qualname__}" if inspect.isclass(part) or inspect.isfunction(part) else part


def _described(backbone: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={plain(value)}" for key, value in backbone.items() if key != "type")
    return f"{str(plain(backbone['type'])).rpartition('.')[2]}({settings})"


def _training(where: str, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a backbone of mmdet is trained, as arguments of ours."""
    with silent():  # mmengine's log keeps the stream that it begins with
        kind = backbone["type"] if inspect.isclass(backbone["type"]) else MODELS.get(backbone["type"])
    if kind is None:
        raise RequestError(f"{where}: backbone.type: unknown, got {backbone['type']}; expected a backbone of mmdet's")
    more = {name: backbone[name] for name in sorted(backbone.keys() - _ARCHITECTURE)}
    for name, value in more.items():
        if value != _default(kind, name) and (any(value) if isinstance(value, list | tuple) else value):
            raise RequestError(
                f"{where}: backbone.{name}: cannot be replaced, got {value}; expected a backbone without"
            )
    given = {name: backbone.get(name, _default(kind, name)) for name in ("norm_eval", "frozen_stages", "frozen_norms")}
    norm = backbone.get("norm_cfg") or {"type": "BN"}
    if str(plain(norm["type"])).rpartition(".")[2] not in _NORMS:
        raise RequestError(f"{where}: backbone.norm_cfg: cannot be replaced, got {plain(norm)}; expected BatchNorm")
    return {
        "norm_eval": bool(given["norm_eval"]),
        "frozen_stages": -1 if given["frozen_stages"] is None else given["frozen_stages"],
        "frozen_norms": bool(given["frozen_norms"]) or not norm.get("requires_grad", True),
    }


def _default(kind: type, name: str) -> Any:
    """Return the default of an argument of a class, or of one that it inherits from; None if there is none."""
    for one in kind.__mro__:
        parameter = inspect.signature(one).parameters.get(name)
        if parameter:
            return None if parameter.default is inspect.Parameter.empty else parameter.default
    return None
