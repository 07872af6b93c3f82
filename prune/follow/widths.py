"""Numbers that follow a width: what the forward pass reads from a shape or an attribute and gives as a size.

A slim model has other widths: `view(b, 2, c // 2)` is right after a cut only if `c` is read from what was cut.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from prune.follow.layers import is_layer, own_widths
from prune.follow.nodes import ChannelNodes
from prune.held_tensors import modules_of

__all__ = ["Width", "watched_attributes"]

_NUMBER = "a number in the forward pass depends on its width"
_MOST_ITEMS = 64
"""Of a list whose items may be widths; longer ones hold indices."""


def _unwatched(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep our own operations on nodes out of those of the forward pass."""

    def run(*args: Any) -> Any:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return method(*args)

    return wraps(method)(run)


class Width(int):
    """A whole number that counts nodes: `times / parts` of them. Every torch function takes it as an int.

    Products and exact quotients follow too; anything else computed from it holds for this width alone, so that its
    channels are pinned.
    """

    channels: ChannelNodes
    counted: Callable[[], Tensor]
    attribute: str
    """The name of the attribute that it is, or of which it was computed; empty for one read from a shape."""
    times: int
    parts: int

    @classmethod
    def of(cls, value: int, channels: ChannelNodes, counted: Callable[[], Tensor], attribute: str = "") -> "Width":
        """Return a number that counts all of the nodes."""
        width = cls(value)
        width.channels, width.counted, width.attribute = channels, counted, attribute
        width.times = width.parts = 1
        return width

    @_unwatched
    def fix(self) -> None:
        """Pin what it counts."""
        self.channels.pin(self.counted(), _NUMBER)

    @_unwatched
    def follow(self, nodes: Tensor, whole: Tensor | None = None) -> None:
        """Tie what it counts to `nodes`, so that after a cut it is their number again.

        Args:
            nodes: As many as the number says.
            whole: Nodes of which they are a fixed share.
        """
        counted = self.counted()
        if whole is not None and len(whole) == len(counted):
            self.channels.join(counted, whole, _NUMBER)
        else:
            self.channels.join(self.nodes(), nodes, _NUMBER)

    @_unwatched
    def nodes(self) -> Tensor:
        """Return as many nodes as the number says, tied so that they are so after a cut too."""
        parts = self.counted().view(self.parts, -1)
        self.channels.tie(parts, _NUMBER)
        return parts[0].repeat(self.times)

    def _scaled(self, value: int, times: int, parts: int) -> "Width":
        width = Width.of(value, self.channels, self.counted, self.attribute)
        common = math.gcd(times, parts)
        width.times, width.parts = times // common, parts // common
        return width

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Width):  # one factor can follow: rather channels than, say, the number of heads
            first, second = (other, self) if self.attribute and not other.attribute else (self, other)
            second.fix()
            return first * int(second)
        if type(other) is int and other > 0:
            return self._scaled(int(self) * other, self.times * other, self.parts)
        self.fix()
        return int.__mul__(self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if isinstance(other, Width):
            if self == other:
                return 1
            other.fix()
            other = int(other)
        if type(other) is int and other > 0 and int(self) % other == 0:
            return self._scaled(int(self) // other, self.times, self.parts * other)
        self.fix()
        return int.__floordiv__(self, other)

    def __mod__(self, other: Any) -> Any:
        """A width that is a multiple need not stay: what asks for that fails if it no longer is."""
        rest = int.__mod__(self, other)
        if rest is not NotImplemented and (rest or isinstance(other, Width)):
            _fixing("__mod__")(self, other)
        return rest

    @_unwatched
    def __eq__(self, other: object) -> bool:
        """Widths that the forward pass finds equal must stay so; one that equals a fixed number must stay itself."""
        if int.__eq__(self, other) is not True:
            return False
        if not isinstance(other, Width):
            self.fix()
        elif other.channels is self.channels:
            is_same_share = (self.times, self.parts) == (other.times, other.parts)
            one, two = (self.counted(), other.counted()) if is_same_share else (self.nodes(), other.nodes())
            self.channels.join(one, two, _NUMBER)
        return True

    def __ne__(self, other: object) -> bool:
        """As for equality."""
        return not self == other

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        """A copy is a plain number."""
        return int, (int(self),)


_ORDER = ("__lt__", "__le__", "__gt__", "__ge__")


def _fixing(name: str) -> Callable[..., Any]:
    def compute(self: Width, *others: Any) -> Any:
        if name in _ORDER and type(others[0]) is int and others[0] <= 0:  # no width becomes 0
            return getattr(int, name)(self, *others)
        for number in (self, *others):
            if isinstance(number, Width):
                number.fix()
        return getattr(int, name)(self, *others)

    return compute


_FIXING = (
    "add radd sub rsub rfloordiv truediv rtruediv pow rpow neg abs round float lt le gt ge rmod divmod rdivmod "
    "lshift rlshift rshift rrshift and rand or ror xor rxor invert format str"
)
for _name in _FIXING.split():
    setattr(Width, f"__{_name}__", _fixing(f"__{_name}__"))


@contextmanager
def watched_attributes(model: nn.Module, channels: ChannelNodes) -> Iterator[None]:
    """Make widths of the whole numbers among the attributes of all modules, for one forward pass of a copy."""
    for name, module in modules_of(model).items():
        own, is_known = own_widths(module), is_layer(module)
        for key, value in vars(module).items():
            if key in own:
                tensor, side = own[key]
                counted = partial(channels.nodes_of, f"{name}.{tensor}".strip("."), side)
                number = value[0] if isinstance(value, tuple) else value
                width = Width.of(number, channels, counted, f"{name}.{key}")
                vars(module)[key] = (width,) if isinstance(value, tuple) else width
            elif not is_known:
                vars(module)[key] = _watched(value, f"{name}.{key}".lstrip("."), channels)
    try:
        yield
    finally:
        for module in model.modules():
            held = vars(module)
            held.update((key, _plain(value)) for key, value in held.items() if type(value) in (Width, tuple, list))


def _watched(value: Any, name: str, channels: ChannelNodes) -> Any:
    """Return a whole number above 1 as a width, and a list (the same one) or tuple of numbers with such items."""
    if type(value) is int and value > 1:
        return Width.of(value, channels, partial(channels.attribute_nodes, name, value), name)
    if type(value) not in (list, tuple) or not 0 < len(value) <= _MOST_ITEMS or {type(item) for item in value} != {int}:
        return value
    items = [_watched(item, f"{name}.{place}", channels) for place, item in enumerate(value)]
    if isinstance(value, tuple):
        return tuple(items)
    value[:] = items  # another module may hold the list too
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Width):
        return int(value)
    if type(value) not in (list, tuple) or not any(isinstance(item, Width) for item in value):
        return value
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    value[:] = map(_plain, value)
    return value
