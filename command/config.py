"""Configs as typed descriptions, checked before any work.

A config file is an mmengine Python config whose names are the fields of its description. Relative paths in it start at
the current folder. Those that come with Espalier are found by name, wherever it is installed.
"""

import ast
import difflib
import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from command.errors import MissingFileError, RequestError
from command.extras import optional_module

if TYPE_CHECKING:
    from mmengine.config import Config
    from pydantic_core import ErrorDetails

__all__ = [
    "Part",
    "Seed",
    "Threads",
    "check_name",
    "checked",
    "config_file",
    "literal",
    "read_config",
    "read_yaml_as_data",
    "shipped_configs",
]

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's error types for a key that a description does not have."""
_MOST_DOTS = 99
"""In an overridden key: mmengine descends into each part by a call of its own."""
_ROOT = Path(__file__).resolve().parents[1]

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""Seed of random numbers."""

Threads = Annotated[int, Field(ge=1, le=1024)]
"""CPU threads of torch. Weights depend on their number, so it is part of the settings and not of the machine."""


class Part(BaseModel):
    """Base of every description: no unknown keys, no changes, docstrings below the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


T = TypeVar("T")


def shipped_configs() -> dict[str, Path]:
    """Return the configs that come with Espalier by name, sorted by kind and name."""
    installed = _ROOT / "espalier" / "configs"
    folder = installed if installed.is_dir() else _ROOT / "configs"  # the second is a checkout's
    return {path.stem: path for path in sorted(folder.glob("*/*.py"))}


def config_file(name: str | Path) -> Path:
    """Return a config's file.

    Args:
        name: Path of a Python file, or name of a config that comes with Espalier.

    Raises:
        MissingFileError: If there is no such file or name; the message lists the nearest names.
    """
    path, shipped = Path(name), shipped_configs()
    if path.is_file() and path.suffix == ".py":
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_file():
        raise RequestError(f"{name}: not a config, got the ending {path.suffix!r}; expected a Python file, .py")
    near = difflib.get_close_matches(path.stem, shipped, n=3, cutoff=0.6)
    remedy = f"the nearest names are {', '.join(near)}" if near else "espalier configs lists the names"
    raise MissingFileError(f"{name}: no such file or config; expected a Python file or a name, {remedy}")


def read_config(path: Path | str | None, overrides: Sequence[str], model: type[T]) -> T:
    """Read a config file and check it.

    Args:
        path: As for `config_file`; None for an empty config, where every field has a default.
        overrides: `a.b=value` texts; the value is a Python literal, or else a string.
        model: What the config describes: a pydantic model or a dataclass.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If a key is unknown or a value does not fit, or mmengine is not installed.
    """
    optional_module("mmengine", "reading configs needs")
    from mmengine.config import Config

    raw = Config() if path is None else _read(config_file(path))
    for text in overrides:
        _set(raw, text)
    return checked(raw.to_dict(), TypeAdapter(model), "--set" if path is None else str(path))


def checked(settings: Mapping[str, Any], adapter: "TypeAdapter[T]", subject: str) -> T:
    """Return what settings describe.

    Args:
        settings: Names and values of fields.
        adapter: Of a pydantic model or a dataclass.
        subject: Start of the error message.

    Raises:
        RequestError: If a key is unknown or a value does not fit.
    """
    try:
        return adapter.validate_python(settings)
    except ValidationError as error:
        raise RequestError(f"{subject}: {_one_line(error.errors(), adapter.json_schema())}") from error


def check_name(name: str, known: Iterable[str], subject: str = "") -> str:
    """Return `name`; raise RequestError unless it is among the known ones.

    Args:
        name: The name to check.
        known: All names.
        subject: Start of the error message; not needed in a field's own validator, whose errors name the field.
    """
    if name not in known:
        raise RequestError(
            f"{subject + ': ' if subject else ''}unknown, got {name!r}; expected one of {', '.join(sorted(known))}"
        )
    return name


def _read(path: Path) -> "Config":
    from mmengine.config import Config

    read_yaml_as_data()
    try:
        return Config.fromfile(path, use_predefined_variables=False, import_custom_modules=False)
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG):  # mmengine copies the file first
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(
            f"{path}: cannot be read, got {reason}; expected Python that sets the config's keys"
        ) from error


def read_yaml_as_data() -> None:
    """Make mmengine read YAML, as in a config's `_base_`, without the tags that run Python."""
    import yaml  # type: ignore[import-untyped]  # ships no types
    from mmengine.fileio import YamlHandler, register_handler

    class SafeYaml(YamlHandler):
        def load_from_fileobj(self, file: Any, **options: Any) -> Any:
            return yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # ten times as fast

    register_handler(["yaml", "yml"])(SafeYaml)


def _set(raw: "Config", text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key or key.count(".") > _MOST_DOTS:
        raise RequestError(f"--set {text}: no key and value; expected a.b=value")
    try:
        raw.merge_from_dict({key: literal(value)})
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise RequestError(
            f"--set {text}: {key.rpartition('.')[0] or key} has no such part; expected a key of the config"
        ) from error


def literal(text: str) -> Any:
    """Return the Python literal that a text is, or else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two for deep nesting
        return text


def _one_line(errors: Sequence["ErrorDetails"], schema: dict[str, Any]) -> str:
    error = min(
        errors, key=lambda e: e["type"] not in _UNKNOWN
    )  # report a misspelt key first: it can be why another is missing
    key, valid, inner = _place(error["loc"], schema)
    if error["type"] in _UNKNOWN:
        near = difflib.get_close_matches(key.rpartition(".")[2], valid, n=3, cutoff=0.5)
        return f"unknown key {key}; nearest valid ones: {', '.join(near or valid)}"
    if error["type"] == "union_tag_invalid":
        return f"{key}.type: unknown, got {error['ctx']['tag']!r}; expected one of {error['ctx']['expected_tags']}"
    message = error["msg"].removeprefix("Value error, ")
    field = re.match(r"\w+", message)
    if key and field and field[0] in inner:  # raised where a dataclass checks its fields together
        return f"{key}.{message}"
    got = "" if "got" in message or error["type"] == "missing" else f", got {error['input']!r:.200}"
    return f"{key}: {message}{got}" if key else message


def _place(location: Sequence[int | str], schema: dict[str, Any]) -> tuple[str, list[str], list[str]]:
    """Return the dotted key of an error, the keys beside it, and the keys inside it."""
    node, names, valid = schema, [], []
    for part in location:
        tags = node.get("discriminator", {}).get("mapping", {})
        if part in tags:  # pydantic names the chosen member of a union, a config does not
            node = {"$ref": tags[part]}
        else:
            valid = list(node.get("properties", {}))
            names.append(str(part))
            node = node.get("properties", {}).get(part, {})
        node = next((one for one in node.get("anyOf", ()) if "$ref" in one), node)  # a part that may be None
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    return ".".join(names), valid, list(node.get("properties", {}))
