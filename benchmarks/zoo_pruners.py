"""Both pruners, and what is found out about them on one network: see prune_zoo.py."""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch_pruning
from masked_twin import FOREIGN_ERRORS, verdict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo_models import ZooModel

from command.errors import RequestError
from prune import prune_model

__all__ = ["RATIO", "TOOLS", "peak", "proof", "seconds"]

RATIO = 0.5


class FilterNorm(torch_pruning.importance.Importance):
    """The L1 norm of the filters that write a channel, summed over layers: our criterion as a torch-pruning class."""

    writes = (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels)

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor:
        """Return one score per channel of torch-pruning's group."""
        scores = torch.zeros(len(group[0].idxs))
        for item in group:
            if item.dep.handler in self.writes:
                norms = item.dep.layer.weight.flatten(1).abs().sum(1)
                scores.index_add_(0, torch.tensor(item.root_idxs), norms[item.idxs])
        return scores


def ours(zoo: ZooModel) -> nn.Module:
    """Return Espalier's slim model, checked by default."""
    return prune_model(zoo.model, zoo.inputs, RATIO).model


def unchecked(zoo: ZooModel) -> nn.Module:
    """Return Espalier's slim model without the check."""
    return prune_model(zoo.model, zoo.inputs, RATIO, verify=False).model


def theirs(zoo: ZooModel) -> nn.Module:
    """Return a copy, cut by torch-pruning's high-level pruner."""
    model, outputs = copy.deepcopy((zoo.model, zoo.outputs))
    pruner = torch_pruning.pruner.BasePruner(
        model, zoo.inputs, importance=FilterNorm(), pruning_ratio=RATIO, ignored_layers=outputs
    )
    pruner.step()
    return model


TOOLS: dict[str, Callable[[ZooModel], nn.Module]] = {"ours": ours, "theirs": theirs}


def proof(zoo: ZooModel, tool: str) -> dict[str, Any]:
    """Return whether the tool's slim model is right, and what it saves."""
    before = _sums(zoo.model)
    try:
        slim = TOOLS[tool](zoo)
    except RequestError as error:
        return {"status": "refused", "why": str(error)}
    except FOREIGN_ERRORS as error:
        return {"status": "crashed", "why": f"{type(error).__name__}: {error}".splitlines()[0]}
    if _sums(zoo.model) != before:
        return {"status": "wrong", "why": "the dense model was changed"}
    size, small = _size(zoo.model), _size(slim)
    costs = {"params": size, "params_removed": 1 - small / size}
    try:
        macs, fewer = _macs(zoo.model, zoo.inputs), _macs(slim, zoo.inputs)
        costs |= {"macs": macs, "macs_removed": 1 - fewer / macs}
    except FOREIGN_ERRORS:  # the verdict tells of a slim model that does not run
        costs |= {"macs": None, "macs_removed": None}
    return {**vars(verdict(zoo.model, slim, zoo.inputs, zoo.training)), **costs}


def seconds(zoo: ZooModel, rounds: int) -> dict[str, Any]:
    """Time all in turn; the first round is warm-up. One that fails has no time."""
    samples: dict[str, list[float]] = {}
    slims: dict[str, nn.Module] = {}
    tools = {"ours": ours, "unchecked": unchecked, "theirs": theirs}
    for _ in range(rounds + 1):
        for name, tool in list(tools.items()):
            start = time.perf_counter()
            try:
                slims[name] = tool(zoo)
            except FOREIGN_ERRORS:  # its proof says what it raised
                del tools[name]
                continue
            samples.setdefault(name, []).append(round(time.perf_counter() - start, 4))
    return {
        "samples": {name: samples[name][1:] for name in tools},
        "same_channels": _same(slims["ours"], slims["theirs"]) if {"ours", "theirs"} <= set(tools) else None,
    }


def peak(zoo: ZooModel, tool: str) -> dict[str, Any]:
    """Return the peak memory of this process during pruning, in sizes of the dense model."""
    tiny = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    TOOLS[tool](ZooModel(tiny, (torch.zeros(1, 3, 8, 8),), (), [tiny[1]]))  # what is imported when used
    size = sum(t.numel() * t.element_size() for t in zoo.model.state_dict().values())
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak in the kernel
    before = _resident("VmRSS")
    try:
        TOOLS[tool](zoo)
    except FOREIGN_ERRORS:  # its proof says what it raised
        return {"peak": None}
    return {"peak": round((_resident("VmHWM") - before + size) / size, 2)}


def _sums(model: nn.Module) -> list[Any]:
    """Return what changes when a model does: the sums of its tensors, their flags and the modes of its modules."""
    tensors = [(name, t.sum(dtype=torch.float64).item()) for name, t in model.state_dict().items()]
    flags = [p.requires_grad for p in model.parameters()]
    return [*tensors, *flags, *(module.training for module in model.modules())]


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _macs(model: nn.Module, inputs: tuple[Any, ...]) -> int:
    with FlopCounterMode(display=False) as counter:
        model.eval()(*inputs)
    return counter.get_total_flops() // 2


def _same(one: nn.Module, other: nn.Module) -> bool:
    kept = other.state_dict()
    return all(torch.equal(tensor, kept[key]) for key, tensor in one.state_dict().items() if key in kept)


def _resident(field: str) -> int:
    """Return a field of this process's memory status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
