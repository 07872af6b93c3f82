"""The tensors that objects, modules and operations hold."""

import gc
from collections.abc import Collection, Iterator, Mapping
from io import IOBase
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["OF_EVERY_MODULE", "PLAIN", "is_plain", "modules_of", "operands", "stored", "tensors_in"]

_NOT_ENTERED = (nn.Module, type, ModuleType, str, bytes, int, float, complex, torch.dtype, torch.device)
_MOST_ITEMS = 10_000


def tensors_in(value: Any) -> list[Tensor]:
    """Return every tensor that an object holds, whatever it holds it in, in the order of its contents.

    Arrays of numpy count as tensors. Modules, classes and the globals of functions are not entered. Iterators are used
    up, endless ones at first: call this while what computes their items may still be watched.
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # kept alive, so that no other object gets its id
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, _NOT_ENTERED) or id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, np.ndarray) and item.dtype.kind in "biufc":
            found.append(torch.from_numpy(item.copy()))
        left += reversed(_contents(item))
    return found


def _contents(item: Any) -> list[Any]:
    if isinstance(item, Tensor):
        return list(vars(item).values())
    if isinstance(item, np.ndarray):
        return item.ravel().tolist() if item.dtype.hasobject else []
    if isinstance(item, FunctionType):
        return [item.__defaults__, item.__kwdefaults__, item.__closure__]
    if isinstance(item, Iterator) and not isinstance(item, IOBase):
        return list(islice(item, _MOST_ITEMS))
    held = gc.get_referents(item)
    return held[::-1] if isinstance(item, list | tuple) else held  # which name their items from the last to the first


def operands(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors among an operation's arguments."""
    values = (*args, *kwargs.values())
    return [t for value in values for t in (value if isinstance(value, list) else (value,)) if isinstance(t, Tensor)]


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return what `named_modules` gives, in less time."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    left = [("", model)]
    while left:
        name, module = left.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        if module._modules:
            prefix = f"{name}." if name else ""
            left += [(prefix + key, child) for key, child in reversed(module._modules.items()) if child is not None]
    return found


def stored(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, list[Tensor]]]:
    """Return the tensors that modules hold beside their parameters and buffers: the module's name, the key, tensors."""
    for name, module in modules.items():
        for key in sorted(vars(module).keys() - OF_EVERY_MODULE):
            if type(value := vars(module)[key]) in PLAIN:
                continue
            may_hold = isinstance(value, list | tuple | dict | set) and not is_plain(value)
            if (may_hold or isinstance(value, Tensor)) and (found := tensors_in(value)):
                yield name, key, found


OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Attributes of nn.Module itself."""


def is_plain(values: Collection[Any]) -> bool:
    """Return whether a collection holds nothing but numbers, text and None."""
    return not values or (type(values) is not dict and all(type(item) in PLAIN for item in values))


PLAIN = frozenset((bool, int, float, str, type(None)))
