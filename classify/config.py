"""Configs as typed descriptions, checked before anything runs; here the classifier's own.

A config file is an mmengine Python config whose names are the fields of its description. Relative paths in it start at
the current folder.
"""

import ast
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from mmengine.config import Config
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, with_config
from pydantic_core import ErrorDetails

from classify.backbones import BACKBONES
from classify.train import Schedule

__all__ = [
    "Backbone",
    "ClassifierTraining",
    "Dense",
    "Finetune",
    "FolderData",
    "Part",
    "Scratch",
    "Seed",
    "ShapesData",
    "check_name",
    "read_config",
]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's names for a key that a description does not have."""

with_config(ConfigDict(extra="forbid"))(Schedule)


Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""Of random numbers."""


class Part(BaseModel):
    """Base of every description: no unknown keys, no changes, docstrings below the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


T = TypeVar("T", bound=Part)


class Backbone(Part):
    """The classification network."""

    name: str = "resnet18"
    """One of `classify.backbones.BACKBONES`: torchvision's name, or a network for CIFAR."""
    base_channels: int = Field(64, ge=8)
    """Channels of the stem; the stages follow in proportion."""
    weights: Path | None = None
    """Trained weights (.safetensors, or a PyTorch file of tensors); an experiment then trains no dense network."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return check_name(name, BACKBONES)


class Dense(Backbone):
    """Start from a dense network, from its `weights` or random ones."""

    type: Literal["dense"] = "dense"

    @property
    def file(self) -> Path | None:
        """The file it starts from, if any, by the name this has in the other starts."""
        return self.weights


class Finetune(Part):
    """Start from the weights of a model file, slim or dense."""

    type: Literal["finetune"]
    file: Path


class Scratch(Part):
    """Start from random weights in the architecture of a model file, slim or dense."""

    type: Literal["scratch"]
    file: Path


class ShapesData(Part):
    """Generated images of coloured shapes."""

    type: Literal["shapes"] = "shapes"
    num_train: int = Field(1200, ge=1)
    num_val: int = Field(300, ge=1)
    seed: Seed = 0


class FolderData(Part):
    """An image folder: `train/<class>/*` and `val/<class>/*`, as ImageNet's."""

    type: Literal["folder"]
    root: Path


class ClassifierTraining(Part):
    """What `espalier classify train` does."""

    start: Annotated[Dense | Finetune | Scratch, Field(discriminator="type")]
    """What is trained."""
    data: Annotated[ShapesData | FolderData, Field(discriminator="type")]
    image_size: int = Field(224, ge=32)
    """Side of the training crops in pixels."""
    schedule: Schedule
    seed: Seed = 0


def read_config(path: Path | str | None, overrides: Sequence[str], model: type[T]) -> T:
    """Read a config file and check it.

    Args:
        path: mmengine Python config; None for one that says nothing, where every field has a default.
        overrides: `a.b=value` texts; the value is a Python literal, or else a string.
        model: What the config describes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown or a value does not fit.
    """
    raw = Config() if path is None else _read(path)
    for text in overrides:
        _set(raw, text)
    try:
        return model.model_validate(raw.to_dict())
    except ValidationError as error:
        subject = "--set" if path is None else path
        raise ValueError(f"{subject}: {_one_line(error.errors(), model.model_json_schema())}") from error


def check_name(name: str, known: Any) -> str:
    """Return `name`; raise ValueError unless it is among the known ones."""
    if name not in known:
        raise ValueError(f"unknown, got {name!r}; expected one of {', '.join(sorted(known))}")
    return name


def _read(path: Path | str) -> Config:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a config, as those in configs/")
    try:
        return Config.fromfile(path, use_predefined_variables=False, import_custom_modules=False)
    except Exception as error:
        raise ValueError(f"{path}: cannot be read, {' '.join(str(error).split())}; expected Python") from error


def _set(raw: Config, text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {text}: no key and value; expected a.b=value")
    try:
        raw.merge_from_dict({key: _literal(value)})
    except TypeError as error:
        raise ValueError(
            f"--set {text}: {key.rpartition('.')[0]} has no parts; expected a key of the config"
        ) from error


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _one_line(errors: Sequence[ErrorDetails], schema: dict[str, Any]) -> str:
    error = min(errors, key=lambda e: e["type"] not in _UNKNOWN)  # a misspelt key is the reason for a missing one
    key, valid = _place(error["loc"], schema)
    if error["type"] in _UNKNOWN:
        near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=3, cutoff=0.5)
        return f"unknown key {key}; nearest valid ones: {', '.join(near or valid)}"
    if error["type"] == "union_tag_invalid":
        return f"{key}.type: unknown, got {error['ctx']['tag']!r}; expected one of {error['ctx']['expected_tags']}"
    message = error["msg"].removeprefix("Value error, ")
    got = "" if "got" in message or error["type"] == "missing" else f", got {error['input']!r}"
    return f"{key}: {message}{got}" if key else message


def _place(location: Sequence[int | str], schema: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the dotted key of an error, and the keys that its description has at that place."""
    node, names, valid = schema, [], []
    for part in location:
        tags = node.get("discriminator", {}).get("mapping", {})
        if part in tags:  # pydantic names the chosen member of a union, a config does not
            node = {"$ref": tags[part]}
        else:
            valid = list(node.get("properties", {}))
            names.append(str(part))
            node = node.get("properties", {}).get(part, {})
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return ".".join(names), valid
