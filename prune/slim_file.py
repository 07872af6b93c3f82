"""A slim model of any architecture as one file: its weights, and the specification that makes the dense one slim."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

from command.errors import RequestError, WorkError
from command.files import existing_file, shown, written_atomically
from prune.cut.spec import PruneSpec, check_removed, layer_of
from prune.cut.surgery import slim_model
from prune.modes import FORWARD_ERRORS, first_line

__all__ = ["load_slim", "save_slim"]

_KEY = "espalier.PruneSpec"


def save_slim(path: str | Path, model: nn.Module, spec: PruneSpec) -> None:
    """Write a slim model's weights and its specification as one `.safetensors` file, whole or not at all.

    Args:
        path: The file; missing folders are made.
        model: Any slim module; tensors that its layers share are written once.
        spec: What makes it from its dense architecture: `Pruned.spec`, or several steps joined by `PruneSpec.after`.

    Raises:
        RequestError: If the specification is for another model, a tensor cannot be in such a file, or the path is none.
        WorkError: If the file cannot be written.
    """
    for subject, given, kind in (("model", model, nn.Module), ("spec", spec, PruneSpec)):
        if not isinstance(given, kind):
            raise RequestError(f"{subject}: of the wrong kind, got {type(given).__name__}; expected a {kind.__name__}")
    for name, cut in spec.layers.items():
        cut.check_layer(name, layer_of(model, name))
    check_removed(model, spec)
    tensors = _tensors_of(model)
    try:
        with written_atomically(path) as beside:
            save_file(tensors, beside, {_KEY: spec.to_json()})
    except (safetensors.SafetensorError, OSError) as error:  # of the disk
        reason = first_line(error)
        raise WorkError(f"{path}: cannot be written, {reason}; free some space, or choose another place") from error


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
        WorkError: If it cannot be read.
    """
    path = existing_file(path, "expected a file that save_slim wrote")
    try:
        with safetensors.safe_open(path, "pt") as file:
            spec = PruneSpec.from_json((file.metadata() or {})[_KEY])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dictionary
    except (safetensors.SafetensorError, KeyError) as error:
        raise RequestError(f"{path}: not a slim model's file; expected one that save_slim wrote") from error
    except OSError as error:
        raise WorkError(f"{path}: cannot be read, {first_line(error)}; choose another file") from error
    model = slim_model(_made(make_dense), spec)
    try:
        _load(model, weights)
    except RuntimeError as error:
        reason = shown(" ".join(str(error).split()))
        raise RequestError(f"{path}: of another architecture than make_dense makes, {reason}") from error
    return model.eval(), spec


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a model's state, each once, contiguous and in memory of its own.

    Raises:
        RequestError: If one cannot be in the file.
    """
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise _not_storable(name, type(value).__name__)
        if value.is_meta or value.layout != torch.strided or not _is_storable(value.dtype):
            raise _not_storable(name, "a meta tensor" if value.is_meta else f"{value.layout}, {value.dtype}")
    once = {name: state[name].resolve_conj().resolve_neg() for name, first in _firsts(state).items() if name == first}
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in once.values())
    for name, tensor in once.items():
        storage = tensor.untyped_storage()
        is_whole = storage.nbytes() == tensor.numel() * tensor.element_size() and tensor.is_contiguous()
        if users[storage.data_ptr()] > 1 or not is_whole:
            once[name] = tensor.clone(memory_format=torch.contiguous_format)
    return once


def _not_storable(name: str, got: str) -> RequestError:
    return RequestError(f"{shown(name)}: cannot be in a safetensors file, got {got}; expected a dense tensor")


@cache
def _is_storable(dtype: torch.dtype) -> bool:
    """Return whether the file format has numbers of this type."""
    try:
        return load(save({"": torch.empty(1, dtype=dtype)}))[""].dtype == dtype
    except (KeyError, RuntimeError, safetensors.SafetensorError):
        return False


def _firsts(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the first name of each value's tensor: layers may share one."""
    firsts: dict[object, str] = {}
    return {name: firsts.setdefault(_place(value), name) for name, value in state.items()}


def _place(value: Any) -> object:
    """Return what tells a tensor from all others."""
    if not isinstance(value, Tensor) or value.is_meta or value.layout != torch.strided or not value.numel():
        return id(value)
    return value.data_ptr(), value.device, value.dtype, value.shape, value.stride()


def _made(make_dense: Callable[[], nn.Module]) -> nn.Module:
    """Return the dense model.

    Raises:
        RequestError: If there is none.
    """
    try:
        dense: object = make_dense()
    except FORWARD_ERRORS as error:
        raise RequestError(
            f"make_dense: fails, {shown(first_line(error))}; expected a function that makes the dense model"
        ) from error
    if not isinstance(dense, nn.Module):
        raise RequestError(f"make_dense: makes no module, got {type(dense).__name__}; expected the dense model")
    return dense


def _load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of a file into a model; raise RuntimeError if they do not fit."""
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.layout == torch.strided and 0 in buffer.stride():  # `expand`
                module._buffers[key] = buffer.clone(memory_format=torch.contiguous_format)
    own = model.state_dict()
    firsts = _firsts(own)
    loaded: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        _check_fit(name, tensor, own.get(name))
        if loaded.setdefault(firsts[name], tensor) is not tensor and not torch.equal(loaded[firsts[name]], tensor):
            raise RuntimeError(f"{shown(name)} has numbers of its own, where make_dense shares {firsts[name]}")
    if lacking := [name for name, first in firsts.items() if first not in loaded]:
        raise RuntimeError(f"the file lacks {lacking[0]}")
    model.load_state_dict(weights, strict=False)


def _check_fit(name: str, tensor: Tensor, own: Any) -> None:
    """Raise RuntimeError unless a tensor of the file has the type and shape of the model's own, which is in memory."""
    if not isinstance(own, Tensor):
        raise RuntimeError(f"it has no tensor {shown(name)}")
    if own.is_meta:
        raise RuntimeError(f"{shown(name)} is a meta tensor there")
    for what, got, expected in (("type", tensor.dtype, own.dtype), ("shape", (*tensor.shape,), (*own.shape,))):
        if got != expected:
            raise RuntimeError(f"{shown(name)} has another {what} than in make_dense, got {got}; expected {expected}")
