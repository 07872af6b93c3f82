"""A slim model of any architecture as one file: its weights, and the specification that makes the dense one slim."""

from collections.abc import Callable
from pathlib import Path

import safetensors
from safetensors.torch import load_model, save_model
from torch import nn

from command.errors import RequestError, WorkError
from command.files import existing_file, written_atomically
from prune.cut.spec import PruneSpec, layer_of, layer_widths
from prune.cut.surgery import slim_model

__all__ = ["load_slim", "save_slim"]

_KEY = "espalier.PruneSpec"


def save_slim(path: str | Path, model: nn.Module, spec: PruneSpec) -> None:
    """Write a slim model's weights and its specification as one `.safetensors` file, whole or not at all.

    Args:
        path: The file; missing folders are made.
        model: Any slim module; tensors that its layers share are written once.
        spec: What makes it from its dense architecture: `Pruned.spec`, or several steps joined by `PruneSpec.after`.

    Raises:
        RequestError: If the specification is for another model.
        WorkError: If the file cannot be written.
    """
    for name, cut in spec.layers.items():
        cut.check_widths(name, layer_widths(layer_of(model, name)))
    with written_atomically(path) as beside:
        try:
            save_model(model, str(beside), {_KEY: spec.to_json()})
        except safetensors.SafetensorError as error:  # of the disk
            raise WorkError(f"{path}: cannot be written, {error}; free some space, or choose another place") from error


def load_slim(path: str | Path, make_dense: Callable[[], nn.Module]) -> tuple[nn.Module, PruneSpec]:
    """Rebuild a slim model; nothing in the file is executed.

    Args:
        path: What `save_slim` wrote.
        make_dense: Makes the dense architecture, with any weights: `lambda: timm.create_model("resnet50")`.

    Returns:
        The slim model, in eval mode, and its specification.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If it is something else, or for another architecture.
    """
    path = existing_file(path, "expected a file that save_slim wrote")
    try:
        with safetensors.safe_open(path, "pt") as file:
            spec = PruneSpec.from_json((file.metadata() or {})[_KEY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
    except (safetensors.SafetensorError, KeyError) as error:
        raise RequestError(f"{path}: not a slim model's file; expected one that save_slim wrote") from error
    model = slim_model(make_dense(), spec)
    own = model.state_dict()
    for name, tensor in weights.items():
        if name in own and own[name].dtype != tensor.dtype:
            raise RequestError(
                f"{path}: {name} has another type than in make_dense, got {tensor.dtype}; expected {own[name].dtype}"
            )
    try:
        load_model(model, path)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{path}: of another architecture than make_dense makes, {reason:.300}") from error
    return model.eval(), spec
