"""Deep copies of modules, with other tensors in place of some."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, fx, nn

from command.errors import RequestError
from prune.held_tensors import OF_EVERY_MODULE, PLAIN, is_plain, modules_of, stored
from prune.modes import FORWARD_ERRORS, first_line

__all__ = ["copied"]


def copied(model: nn.Module, replaced: Mapping[int, Tensor]) -> nn.Module:
    """Return a deep copy that has other tensors in place of some, given by their id.

    Raises:
        RequestError: If something in the model cannot be copied.
    """
    modules = modules_of(model)
    computed = [t for *_, tensors in stored(modules) for t in tensors if not t.is_leaf or t.is_inference()]
    memo: dict[int, Any] = {**{id(tensor): tensor.detach().clone() for tensor in computed}, **replaced}
    plain = [m for m in modules.values() if _copies_plainly(type(m))]  # type: ignore[arg-type]  # classes can be hashed
    memo |= {id(module): object.__new__(type(module)) for module in plain}
    try:
        for module in plain:
            vars(memo[id(module)]).update(_copied_items(vars(module), memo))
        new = copy.deepcopy(model, memo)
    except FORWARD_ERRORS as error:
        raise RequestError(
            f"model: cannot be copied, {first_line(error)}; expected a module that copy.deepcopy takes"
        ) from error
    own = {id(module) for module in modules.values()}
    for name, module in modules_of(new).items():
        if id(module) in own:
            raise RequestError(f"{name or 'model'}: cannot be copied, copy.deepcopy gives the module itself")
    return new


@cache
def _copies_plainly(kind: Any) -> bool:
    """Return whether such a module is made again from copies of its attributes, as nn.Module is."""
    if issubclass(kind, fx.GraphModule):  # its own way makes each of its parts anew; its forward pass is in its class
        return True
    bases = [vars(base) for base in kind.__mro__ if base not in (nn.Module, object)]
    foreign = [
        vars(base) for base in kind.__mro__ if not base.__module__.startswith("torch.nn.") and base is not object
    ]
    own = {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__"}
    # torch's own layers accept the state of older versions too, which is all that their __setstate__ does
    return not any(own & base.keys() for base in bases) and not any("__setstate__" in base for base in foreign)


def _copied_items(state: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
    new = {}
    for key, value in state.items():
        kind = type(value)
        if kind in PLAIN:
            new[key] = value
        elif kind in _COLLECTIONS and not value and key in OF_EVERY_MODULE:
            new[key] = kind()
        else:
            new[key] = _copied(value, memo)
    return new


_COLLECTIONS = (dict, OrderedDict, set)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """Return a deep copy; Python's own is slow on what modules have most of: collections of few items."""
    if id(value) in memo:
        return memo[id(value)]
    kind = type(value)
    if kind is tuple and is_plain(value):
        return value
    if kind is set and is_plain(value):
        memo[id(value)] = set(value)
    elif kind in (dict, OrderedDict) and all(type(key) in PLAIN for key in value):
        memo[id(value)] = kind()
        memo[id(value)].update(_copied_items(value, memo))
    else:
        return copy.deepcopy(value, memo)
    return memo[id(value)]
