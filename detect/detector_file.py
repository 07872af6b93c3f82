"""Model files of detectors, and the configs beside them with which mmdet's own tools open them."""

import hashlib
from pathlib import Path

from mmengine.config import Config
from torch import nn

from classify.checkpoint import ModelCard, check_weights, load_weights, name_own, read_card, read_weights, save_model
from command.errors import RequestError
from command.files import written_atomically
from detect.foreign import MmdetSource, load_foreign, slim_config
from detect.model import build_detector, config_of, model_part, test_part

__all__ = ["files_at_risk", "load_detector", "save_detector"]

_SEAL = "# Written by Espalier; SHA-256 of what follows: "
"""Begins the config beside a model file."""
_BASE = "_base.py"
"""Ends the name of the config that has the model alone."""


def load_detector(
    path: str | Path, mmdet: MmdetSource | None = None, backbone: str | None = None
) -> tuple[nn.Module, ModelCard]:
    """Rebuild a detector, in eval mode; return it and its card.

    Args:
        path: Model file, or with `mmdet` a checkpoint of mmdet.
        mmdet: mmdet's config, for a detector of mmdet's own parts. Its file is Python code and is run, as in mmdet.
        backbone: As for `load_classifier`.

    Raises:
        MissingFileError: If a file is missing.
        RequestError: If the file is not a detector, or does not fit the config.
    """
    if mmdet:
        return load_foreign(mmdet, Path(path))
    card = read_card(path)
    if card.kind != "detector":
        raise RequestError(f"{path}: not a detector, got a {card.kind}; expected a detector")
    if card.is_foreign:
        beside = Path(path).with_suffix(".py")
        raise RequestError(
            f"{path}: made of mmdet's own parts, got no config; give the one beside it, --mmdet {beside}"
        )
    name_own(card, path, backbone)
    config, weights = config_of(card), read_weights(path)
    check_weights(lambda: build_detector(config, is_loaded_next=True), weights, str(path))
    detector = build_detector(config)
    load_weights(detector, weights, str(path))
    return detector.eval(), card


def save_detector(path: str | Path, detector: nn.Module, card: ModelCard, mmdet: MmdetSource | None = None) -> None:
    """Write the model file, and first the configs beside it, with which mmdet's own tools open it.

    `<name>.py` opens it as it is. `<name>_base.py` has the model alone, to stand in a list `_base_` beside mmdet's data
    sets and schedules. With `mmdet`, the config of a detector of mmdet's own parts, there is only `<name>.py`, which is
    that config with the slim model in it.
    """
    opening, base = _configs(Path(path))
    if mmdet:
        _write(opening, slim_config(mmdet, card, Path(path).name).pretty_text)
    else:
        _write(base, Config(model_part(card)).pretty_text)
        _write(opening, f"_base_ = [{base.name!r}]\n{Config(test_part(card)).pretty_text}")
    save_model(path, detector, card)  # last: it completes them


def files_at_risk(path: Path, mmdet: Path | None = None) -> tuple[Path, ...]:
    """Return the files that `save_detector` replaces.

    A config as it was written, with no model file beside it, is not among them: it was left by a process that was
    killed between the two.

    Raises:
        RequestError: If `mmdet`, the config that is given, would be among them.
    """
    configs = _configs(path)[: 1 if mmdet else 2]
    if mmdet and mmdet.resolve() in {config.resolve() for config in configs}:
        raise RequestError(f"--out {path}: its config would replace the given one, {mmdet}; expected another name")
    return (path, *(config for config in configs if path.exists() or not _is_sealed(config)))


def _configs(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".py"), path.with_name(f"{path.stem}{_BASE}")


def _write(path: Path, text: str) -> None:
    with written_atomically(path) as partial:
        partial.write_text(f"{_SEAL}{_sha256(text)}\n{text}", "utf-8")


def _is_sealed(config: Path) -> bool:
    content = config.read_bytes() if config.is_file() else b""
    head, _, text = content.decode("utf-8", "replace").partition("\n")
    return head == f"{_SEAL}{_sha256(text)}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
