"""The model of a user's config of mmdet with one of our backbones in it, and what of it depends on the backbone."""

import inspect
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from classify.backbones import Architecture
from classify.checkpoint import Preprocessing
from classify.mmengine_runner import silent
from command.errors import RequestError
from detect.model import backbone_config, map_channels
from detect.openmmlab import MODELS
from detect.slim import SLIM_DETECTOR

__all__ = [
    "backbone_changes",
    "class_name",
    "plain",
    "reason_of",
    "start_changes",
    "steps_in",
    "with_backbone",
    "without_pretrained",
]

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
    kind = model.get("dense_type", model["type"]) if model["type"] == SLIM_DETECTOR else model["type"]
    for part in ("roi_head", "backbone"):
        if not isinstance(model.get(part), Mapping):
            got = f"{plain(kind)} with {part}={model.get(part)}"
            raise RequestError(f"{where}: not a two-stage detector, got {got}; expected one like FasterRCNN")
    neck, extractor = model.get("neck"), model.roi_head.get("bbox_roi_extractor")
    inputs = neck.get("in_channels") if isinstance(neck, Mapping) else None
    if not isinstance(inputs, list | tuple) or len(inputs) != len(_STRIDES):
        raise RequestError(f"{where}: neck: does not read four maps, got {plain(neck)}; expected one such as FPN")
    strides = extractor.get("featmap_strides") if isinstance(extractor, Mapping) else None
    if strides not in (_STRIDES, tuple(_STRIDES)):
        raise RequestError(f"{where}: bbox_roi_extractor: not of strides {_STRIDES}; expected a Faster R-CNN with FPN")
    before = model.get("data_preprocessor", {})
    if not isinstance(before, Mapping):
        raise RequestError(f"{where}: data_preprocessor: not settings, got {before}; expected dict(type=..., ...)")
    own = ConfigDict(backbone_config(backbone, **_training(where, model.backbone)))
    mean, std = (list(values) for values in (colours.mean_rgb, colours.std_rgb))
    seen = {**before, "mean": mean, "std": std, "bgr_to_rgb": True, "rgb_to_bgr": False}
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
    changes += [f"{place} by random weights" for place in _pretrained(after)] + start_changes(settings)
    return f"{settings.filename}: replaced are {'; '.join(changes)}; nothing else of the model"


def start_changes(settings: Config) -> list[str]:
    """Return in words what of a training's start the experiment replaces."""
    left = [name for name in ("load_from", "resume") if settings.get(name)]
    return [f"{name} {settings[name]!r} by the weights of the step before" for name in left]


def without_pretrained(part: Any) -> Any:
    """Return a config without pretrained weights, which some parts read or download when they are built."""
    if isinstance(part, Mapping):
        return {key: without_pretrained(value) for key, value in part.items() if not _is_pretrained(key, value)}
    return type(part)(map(without_pretrained, part)) if isinstance(part, list | tuple) else part


def _pretrained(part: Any, where: str = "model") -> Iterator[str]:
    """Yield the places that `without_pretrained` leaves out."""
    inner = part.items() if isinstance(part, Mapping) else enumerate(part if isinstance(part, list | tuple) else ())
    for key, value in inner:
        if value and _is_pretrained(key, value):
            yield f"{where}.{key}"
        else:
            yield from _pretrained(value, f"{where}.{key}")


def _is_pretrained(key: object, value: Any) -> bool:
    """Return whether it names weights: also beside other rules, or in one's `override`."""
    return key == "pretrained" or (
        key == "init_cfg" and any(class_name(rule) in ("Pretrained", "PretrainedInit") for rule in steps_in(value))
    )


def steps_in(part: Any) -> Iterator[Mapping[str, Any]]:
    """Yield all mappings in a part of a config, outer before inner ones."""
    if isinstance(part, Mapping):
        yield part
        part = list(part.values())
    for inner in part if isinstance(part, list | tuple) else ():
        yield from steps_in(inner)


def class_name(step: Mapping[str, Any]) -> str:
    """Return a step's class without its module or scope; new configs have the class itself."""
    kind = step.get("type")
    return str(getattr(kind, "__name__", kind)).rpartition(".")[2]


def reason_of(error: BaseException) -> str:
    """Return in one line what mmdet says is wrong; if that is a word or nothing, with the line of code too."""
    said = " ".join(str(error).split())
    places = traceback.extract_tb(error.__traceback__)
    if " " in said or not places:
        return said or type(error).__name__
    return f"{type(error).__name__}{said and f' {said}'} at `{places[-1].line}`"


def plain(part: Any) -> Any:
    """Return a part of a config with classes and functions, which configs of the new style hold, as their names."""
    if isinstance(part, Mapping):
        return {key: plain(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return type(part)(map(plain, part))
    return f"{part.__module__}.{part.__qualname__}" if inspect.isclass(part) or inspect.isfunction(part) else part


def _described(backbone: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key}={plain(value)}" for key, value in backbone.items() if key != "type")
    return f"{class_name(backbone)}({settings})"


def _training(where: str, backbone: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a backbone of mmdet is trained, as arguments of ours."""
    kind = named = backbone.get("type")
    if isinstance(named, str):
        with silent():  # mmengine's log keeps the stream that it begins with
            kind = MODELS.get(named)
    if not inspect.isclass(kind):
        raise RequestError(f"{where}: backbone.type: unknown, got {named}; expected a backbone of mmdet's")
    more = {name: backbone[name] for name in sorted(backbone.keys() - _ARCHITECTURE)}
    for name, value in more.items():
        if value != _default(kind, name) and (any(value) if isinstance(value, list | tuple) else value):
            raise RequestError(
                f"{where}: backbone.{name}: cannot be replaced, got {value}; expected a backbone without"
            )
    given = {name: backbone.get(name, _default(kind, name)) for name in ("norm_eval", "frozen_stages", "frozen_norms")}
    norm = backbone.get("norm_cfg") or {"type": "BN"}
    if not isinstance(norm, Mapping) or class_name(norm) not in _NORMS:
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
