"""What a model returns is never cut, whatever it is returned in."""

import itertools
from collections import UserDict, namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from prune import find_groups, prune_model
from prune.cut.verify import fault_of
from prune.held_tensors import tensors_in

OUTPUT = "its channels are an output of the model"
Pair = namedtuple("Pair", "f h")


class OfDict(dict):
    pass


class OfList(list):
    pass


class WithAttributes(dict):
    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__


class Slots:
    __slots__ = ("f", "h")

    def __init__(self, f, h):
        self.f, self.h = f, h


@dataclass(slots=True, frozen=True)
class SlottedData:
    f: torch.Tensor
    h: torch.Tensor


class Once:
    """An iterator that computes its items when asked."""

    def __init__(self, *steps):
        self.steps = iter(steps)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.steps)()


def marked(f, h):
    h.features = f
    return h


def endless(f, h):
    yield h
    yield f
    yield from itertools.count()


RETURNED = {
    "tuple": lambda f, h: (f, h),
    "named tuple": Pair,
    "subclass of dict": lambda f, h: OfDict(f=f, h=h),
    "subclass of list": lambda f, h: OfList([f, h]),
    "dict with attributes": lambda f, h: WithAttributes(f=f, h=h),
    "dict of the library": lambda f, h: UserDict(f=f, h=h),
    "set": lambda f, h: {f, h},
    "keys of a dict": lambda f, h: {f: 1, h: 2},
    "slots": Slots,
    "slotted data class": SlottedData,
    "deep": lambda f, h: [{"x": OfDict(y=(Slots(f, 1), 2))}, h],
    "attribute of a tensor": marked,
    "map": lambda f, h: map(torch.neg, (f, h)),
    "generator": lambda f, h: (t * 2 for t in (f, h)),
    "endless generator": endless,
    "own iterator": lambda f, h: Once(lambda: f * 2, lambda: h),
    "closure": lambda f, h: lambda: (f, h),
    "partial": lambda f, h: partial(print, f, h=h),
}


class Features(nn.Module):
    """Returns its features f beside its result; g is only read by the result."""

    def __init__(self, returned):
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g, self.h, self.returned = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1), returned

    def forward(self, x):
        f = self.f(x)
        return self.returned(f, self.h(self.g(f)))


@pytest.mark.parametrize("form", RETURNED)
def test_features_that_are_returned_keep_their_widths(form, x):
    net = Features(RETURNED[form])
    assert {group.name: group.obstacle for group in find_groups(net, (x,))} == {"f": OUTPUT, "g": None, "h": OUTPUT}
    slim = prune_model(net, (x,), 0.5).model
    assert (slim.f.out_channels, slim.g.out_channels, slim.h.out_channels) == (4, 3, 2)


@pytest.mark.parametrize("form", RETURNED)
def test_every_returned_tensor_is_compared(form, x):
    net = Features(lambda f, h: RETURNED[form](f, h))
    pruned = prune_model(net, (x,), 0.5)
    with torch.no_grad():
        pruned.model.h.bias += 1
    assert fault_of(net, pruned.model, pruned.spec, (x,)).startswith("computes something else")


@pytest.mark.parametrize("nothing", [None, "text", {"boxes": []}, 3, lambda: 3])
def test_model_that_returns_no_tensor_is_refused(nothing, x):
    with pytest.raises(ValueError, match=r"^model: gives no tensor, so that nothing can be compared; expected tensors"):
        prune_model(Features(lambda f, h: nothing), (x,), 0.5)


def test_array_of_another_shape_is_noticed(x):
    with pytest.raises(ValueError, match=r"model: its slim copy gives outputs of other shapes; .*skip f"):
        prune_model(Features(lambda f, h: (f.numpy(), h)), (x,), 0.5)


def test_outputs_that_are_whole_numbers_are_compared(x):
    net = Features(lambda f, h: h.argmax(1))
    pruned = prune_model(net, (x,), 0.5)
    assert pruned.model.g.out_channels == 3
    with torch.no_grad():
        pruned.model.h.bias[1] += 100
    assert fault_of(net, pruned.model, pruned.spec, (x,)).startswith("computes something else")


def test_where_all_outputs_are_empty_the_layers_are_compared(x):
    net = Features(lambda f, h: h[:0])
    pruned = prune_model(net, (x,), 0.5, ratios={"f": 0.5}, verify=False)
    assert fault_of(net, pruned.model, pruned.spec, (x,)) is None
    with torch.no_grad():
        pruned.model.g.bias += 1
    assert fault_of(net, pruned.model, pruned.spec, (x,)) == "computes something else in g"


def test_tensors_are_found_in_their_order_and_once():
    a, b, c = torch.zeros(1), torch.zeros(2), torch.zeros(3)
    assert [t.numel() for t in tensors_in([a, {"x": (b, a)}, OfDict(y=[c])])] == [1, 2, 3]


def test_modules_and_globals_are_not_entered():
    assert tensors_in([nn.Linear(1, 1), nn.Linear, torch, lambda: RETURNED, "text", 1]) == []
