"""Residual blocks: what a block adds to its shortcut, read from the block's own forward pass.

torch.fx replaces `nn.Module.__call__` of the whole process while it traces: no other thread may run a model meanwhile.
"""

import operator
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from command.errors import RequestError
from command.files import shown
from prune.copies import copied
from prune.follow.layers import is_producer
from prune.held_tensors import modules_of
from prune.modes import FORWARD_ERRORS, first_line

__all__ = ["grouped_norms", "residual_branches", "without_branch"]

_SUMS = {operator.add, operator.iadd, torch.add, Tensor.add, Tensor.add_, "add", "add_"}
_ZERO_STAYS = (nn.Identity, nn.ReLU, _DropoutNd)
"""Modules between the last layer of a branch and the sum that give zero for zero."""


def residual_branches(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the residual blocks of a model: name -> the layers of its branch, named from the block.

    A block is a module whose forward pass has one sum of two parts, both from its input: the branch is the part with
    more convolutions and linear layers, and ends in one of them or in a BatchNorm. The layers are in the order of the
    forward pass; those that the shortcut reads too are left out. Blocks that torch.fx cannot trace are not found.

    A copy of the model is traced. No other thread may run a model meanwhile: torch.fx traces its calls too.

    Raises:
        RequestError: If the model cannot be copied.
    """
    found = {}
    for name, module in _blocks(copied(model, {})):
        with suppress(*FORWARD_ERRORS):
            graph = _own_graph(module)
            sums = [node for node in graph.nodes if _is_sum(node)]
            ends = [end for node in sums if (end := _branch_end(module, node))]
            if len(sums) == 1 and ends:
                found[name] = _removed_by(module, graph, ends[0])
    return found


def grouped_norms(model: nn.Module) -> dict[str, int]:
    """Return the BatchNorms that read a grouped convolution alone, as ResNeXt has them: name -> groups.

    Depthwise convolutions, whose groups are single channels, are left out. As with `residual_branches`, a copy of the
    model is traced, and no other thread may run a model meanwhile.

    Raises:
        RequestError: If the model cannot be copied.
    """
    found = {}
    for name, module in _blocks(copied(model, {})):
        with suppress(*FORWARD_ERRORS):
            for node in _own_graph(module).nodes:
                layer, users = _called(module, node), [*node.users]
                groups, num_out = (getattr(layer, key, 0) for key in ("groups", "out_channels"))
                if 1 < groups < num_out and len(users) == 1 and isinstance(_called(module, users[0]), _BatchNorm):
                    found[f"{name}.{users[0].target}".lstrip(".")] = groups
    return found


def without_branch(block: nn.Module, layers: tuple[str, ...], name: str) -> nn.Module:
    """Return what a residual block is without its branch: its shortcut, and what follows the sum.

    Args:
        block: It is traced, and shares the layers that stay with the result: give that of a copy.
        layers: Those of the branch, named from the block; the last one ends it.
        name: The block's, for the error.

    Raises:
        RequestError: If the block has no such branch.
    """
    if not _does_alike(block):
        raise RequestError(
            f"{shown(name)}: cannot be removed, its own forward pass does otherwise in training; expected dropout and "
            "the like as layers"
        )
    try:
        graph = _own_graph(block)
        gone = _removed_by(block, graph, layers[-1])
    except FORWARD_ERRORS as error:
        raise RequestError(
            f"{shown(name)}: cannot be removed, {shown(first_line(error))}; expected a residual block whose branch "
            f"ends in {shown(layers[-1])}"
        ) from error
    if gone != layers:
        raise RequestError(
            f"{shown(name)}: the spec is for another model, its branch has {', '.join(gone)}; "
            f"expected {shown(', '.join(layers))}"
        )
    shortcut = fx.GraphModule(block, graph)
    for module in shortcut.modules():
        if vars(module).get("inplace"):
            vars(module)["inplace"] = False  # the sum's own memory was free to write; the block's input is not
    shortcut.training = block.training  # its parts keep their own
    return shortcut


def _does_alike(block: nn.Module) -> bool:
    """Return whether a block's own forward pass has the same operations in training: a graph has one mode's alone."""
    texts, mode = [], block.training
    try:
        for block.training in (True, False):
            texts.append(_own_graph(block).python_code("self").src)
    except FORWARD_ERRORS:
        return True  # what cannot be traced is refused with the reason
    finally:
        block.training = mode
    return texts[0] == texts[1]


class _OwnForward(fx.Tracer):
    """Enters nothing but plain sequences: layers and blocks inside stay calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).forward is not nn.Sequential.forward


def _own_graph(module: nn.Module) -> fx.Graph:
    return _OwnForward().trace(module)


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules with a forward pass of their own that has layers in it."""
    for name, module in modules_of(model).items():
        own = type(module).forward
        if module._modules and own is not nn.Sequential.forward and own is not nn.Module.forward:
            yield name, module


def _called(module: nn.Module, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_sum(node: fx.Node) -> bool:
    """Return whether it adds two parts; `alpha` would scale one of them."""
    is_add = node.op in ("call_function", "call_method") and node.target in _SUMS
    return is_add and len(node.all_input_nodes) == len(node.args) == 2 and not node.kwargs


def _above(node: fx.Node) -> set[fx.Node]:
    """Return the node and all it is computed from."""
    seen, left = {node}, [node]
    while left:
        new = set(left.pop().all_input_nodes) - seen
        seen |= new
        left += new
    return seen


def _branch_end(module: nn.Module, node: fx.Node) -> str | None:
    """Return the last layer of the part of a sum with more layers, or None if no layer ends it."""
    one, other = node.all_input_nodes
    nums = [
        sum(is_producer(_called(module, above)) for above in _above(end) - _above(rest))
        for end, rest in ((one, other), (other, one))
    ]
    if nums[0] == nums[1]:
        return None
    end = one if nums[0] > nums[1] else other
    while isinstance(_called(module, end), _ZERO_STAYS):
        (end,) = end.all_input_nodes
    layer = _called(module, end)
    return str(end.target) if is_producer(layer) or isinstance(layer, _BatchNorm) else None


def _removed_by(module: nn.Module, graph: fx.Graph, end: str) -> tuple[str, ...]:
    """Remove the branch with that end from a block's graph; return its layers.

    Raises:
        ValueError: If the end is not called once, or what it gives does not go into a sum alone.
    """
    layers = _layers(module, graph)
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == end]
    if len(calls) != 1:
        raise ValueError(f"its forward pass calls {end} {len(calls)} times")
    node = calls[0]
    while len(node.users) == 1 and isinstance(_called(module, next(iter(node.users))), _ZERO_STAYS):
        node = next(iter(node.users))
    total = next(iter(node.users), None)
    if total is None or len(node.users) > 1 or not _is_sum(total):
        raise ValueError(f"what {end} gives is not added to a shortcut")
    (shortcut,) = set(total.all_input_nodes) - {node}
    total.replace_all_uses_with(shortcut)
    for unused in reversed(graph.nodes):
        if not unused.users and unused.op not in ("placeholder", "output"):
            graph.erase_node(unused)
    left = _layers(module, graph)
    return tuple(name for name in layers if name not in left)


def _layers(module: nn.Module, graph: fx.Graph) -> list[str]:
    """Return the called modules that have tensors, in the order of the forward pass."""
    called = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    return [name for name in called if module.get_submodule(name).state_dict()]
