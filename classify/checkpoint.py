"""Model files: one `.safetensors` that rebuilds itself. No pickle is executed to read one."""

import io
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from classify.backbones import Architecture, build_classifier
from prune import PruneSpec

__all__ = [
    "ModelCard",
    "load_classifier",
    "load_weights",
    "read_card",
    "read_weights",
    "save_model",
]

_UNREADABLE = (safetensors.SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, LookupError, ValueError)
"""What reading a damaged or foreign file raises: torch's reader lets through what its own parsing meets."""
_KEY = "espalier"
_VERSION = 1


@dataclass(frozen=True)
class ModelCard:
    """What a model file says about its weights."""

    kind: str
    """"classifier" or "detector"."""
    architecture: Mapping[str, Any]
    """The backbone: arguments of `Architecture`."""
    classes: tuple[str, ...]
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    detector: Mapping[str, Any] | None = None
    """mmdet's model config, for detectors."""
    spec: Mapping[str, Any] | None = None
    """The PruneSpec that made it slim, or None. The backbone's layers go by the classifier's names."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Parents' hashes, config, data fingerprint, metrics, versions."""

    @property
    def backbone(self) -> Architecture:
        """The backbone's architecture."""
        return Architecture(**self.architecture)

    @property
    def prune_spec(self) -> PruneSpec | None:
        """The spec as an object."""
        return None if self.spec is None else PruneSpec.from_json(json.dumps(self.spec))


def save_model(path: Path, model: nn.Module, card: ModelCard) -> None:
    """Write weights and card as one file, whole or not at all."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    metadata = {_KEY: json.dumps({"version": _VERSION, **asdict(card)})}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(weights, partial, metadata)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # still there only if writing failed


def read_card(path: Path) -> ModelCard:
    """Return the card of a model file without reading its weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a model file of this project.
    """
    _check_exists(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            fields = json.loads((file.metadata() or {})[_KEY])
    except (safetensors.SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not an espalier model file; expected a .safetensors written by espalier") from error
    if fields.pop("version", None) != _VERSION:
        raise ValueError(f"{path}: written by another version of espalier; expected model file version {_VERSION}")
    return ModelCard(**{**fields, "classes": tuple(fields["classes"])})


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights in a `.safetensors` or PyTorch file; nothing in it is executed.

    A `state_dict` key around the weights and a `module.` prefix (DataParallel) are removed.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither format, or would execute code.
    """
    _check_exists(path)
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        content = io.BytesIO(path.read_bytes())  # from a path, a cut-off file raises OSError, as a bad disk would
        data = torch.load(content, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path}: no plain weights inside; expected .safetensors or a file of tensors only") from error
    data = data.get("state_dict", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise ValueError(f"{path}: no weights by name inside, got a {type(data).__name__}; expected a state dict")
    return {name.removeprefix("module."): tensor for name, tensor in data.items() if isinstance(tensor, Tensor)}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], subject: str, optional: tuple[str, ...] = ()) -> None:
    """Copy weights into `model`, all of them.

    Args:
        model: Modified.
        weights: By parameter name.
        subject: Where they come from, for the error.
        optional: Name prefixes (a head) that may be missing or have another shape; they keep what they had.

    Raises:
        ValueError: If a name or shape differs.
    """
    own = model.state_dict()
    fits = {n: w for n, w in weights.items() if n in own and own[n].shape == w.shape}
    wrong = [n for n in (own.keys() | weights.keys()) - fits.keys() if not n.startswith(optional or ("\0",))]
    wrong = sorted(n for n in wrong if not n.endswith("num_batches_tracked"))
    if wrong:
        got = tuple(weights[wrong[0]].shape) if wrong[0] in weights else "nothing"
        expected = tuple(own[wrong[0]].shape) if wrong[0] in own else "no such layer"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ValueError(f"{subject}: of another architecture, {wrong[0]} got {got}; expected {expected}{more}")
    model.load_state_dict(fits, strict=False)


def load_classifier(path: Path) -> tuple[nn.Module, ModelCard]:
    """Rebuild a classifier from its file alone.

    Raises:
        ValueError: If the file holds something else.
    """
    card = read_card(path)
    if card.kind != "classifier":
        raise ValueError(f"{path}: holds a {card.kind}; expected a classifier")
    model = build_classifier(card.backbone)
    load_weights(model, read_weights(path), str(path))
    return model.eval(), card


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a model file")
