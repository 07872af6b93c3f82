"""The command that trains on what was cut, with the data that is known: the pruning's own, or the model's."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from classify.checkpoint import ModelCard, has_card, read_card
from classify.config import ClassifierTraining
from classify.image_data import AnyImages, CifarData, FolderData, ImageData, NpzData
from classify.synthetic import SHAPES
from command.config import read_config
from command.options import setting
from command.own_code import is_own_code
from detect.config import AnyBoxes, CocoData, DetectorTraining, GivenBoxes, VocData
from experiment.cuts import PruneConfig
from experiment.cutting import ModelData

__all__ = ["retraining_command"]

_TRAININGS: dict[str, tuple[str, str, Any]] = {
    "classifier": ("classify", "resnet18_shapes_finetune", ClassifierTraining),
    "detector": ("detect", "faster_rcnn_scenes_finetune", DetectorTraining),
}
"""Kind of a model -> the command that trains it, a config for generated data, and what the config describes."""
_CONFIGS: dict[type, str] = {
    CocoData: "faster_rcnn_coco_finetune",
    VocData: "faster_rcnn_coco_finetune",
    CifarData: "cifar_finetune",
    FolderData: "imagenet_finetune",
    NpzData: "cifar_finetune",
}
"""Kind of data -> the config that trains a cut model on it."""
_KINDS: dict[str, tuple[str, Any]] = {
    "classifier": ("classification", Annotated[AnyImages, Field(discriminator="type")]),
    "detector": ("detection", Annotated[AnyBoxes, Field(discriminator="type")]),
}
"""Kind of a model -> its part in the config of an experiment, and the data that it may be trained on."""
_UNKNOWN = {
    "classifier": FolderData(type="folder", root=Path("FOLDER")),
    "detector": CocoData(type="coco", root=Path("FOLDER")),
}
"""Stands for data that nobody has named."""


def retraining_command(model: Path, config: PruneConfig, out: Path, is_foreign: bool = False) -> list[str]:
    """Return the words of the command that trains `out`, which was cut from a model file by a config.

    Args:
        model: The model file; of a foreign one it may be a checkpoint.
        config: What was cut, and on which data that was decided.
        out: The slim model file.
        is_foreign: Whether it is a detector of mmdet's own parts, with its config beside it.
    """
    card = read_card(model if has_card(model) else out)
    room, generated, kind = _TRAININGS[card.kind]
    data: Any = config.data or _trained_on(card) or (None if card.classes == SHAPES else _UNKNOWN[card.kind])
    name = next((name for of_data, name in _CONFIGS.items() if isinstance(data, of_data)), generated)
    settings = [f"start.file={out}", *([f"start.mmdet={out.with_suffix('.py')}"] if is_foreign else [])]
    default = read_config(Path(name), settings, kind)
    if is_own_code(card.backbone.name):
        settings.append(f"start.backbone={card.backbone.name}")
    if data and data != default.data:
        changed = data.model_dump(mode="json", exclude_defaults=True)
        settings.append(setting("data", {"_delete_": True, "type": data.type, **changed}))
    if isinstance(default, ClassifierTraining) and default.image_size != card.preprocessing.image_hw[0]:
        settings.append(setting("image_size", card.preprocessing.image_hw[0]))
    if isinstance(default, ClassifierTraining) and default.crop_share != card.preprocessing.crop_share:
        settings.append(setting("crop_share", card.preprocessing.crop_share))
    return ["espalier", room, "train", name, *(word for text in settings for word in ("--set", text))]


def _paths(data: ModelData) -> tuple[Path, ...]:
    if isinstance(data, ImageData):
        return data.paths
    return (data.root,) if isinstance(data, GivenBoxes) else ()


def _trained_on(card: ModelCard) -> ModelData | None:
    """Return the data of the training or experiment that made a model file, where the file names it and it is there."""
    part, kinds = _KINDS[card.kind]
    config = card.provenance.get("config")
    config = config.get(part, config) if isinstance(config, dict) else {}
    try:
        data: ModelData = TypeAdapter(kinds).validate_python(config.get("data") if isinstance(config, dict) else None)
        return data if all(path.exists() for path in _paths(data)) else None
    except (ValidationError, OSError):  # the latter of a name that is too long
        return None
