"""Numbers that follow a width: what the forward pass reads from a shape or an attribute and gives as a size.

A slim model has other widths: `view(b, 2, c // 2)` is right after a cut only if `c` is read from what was cut.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from prune.follow.layers import is_layer, own_widths
from prune.follow.nodes import ChannelNodes

__all__ = ["Width", "watch_attributes"]

_NUMBER = "a number in the forward pass depends on its width"


class Width(int):
    """A whole number that counts nodes: `times / parts` of them. Every torch function takes it as an int.

    Products and exact quotients follow too; anything else computed from it holds for this width alone, so that its
    channels are pinned.
    """

    channels: ChannelNodes
    counted: Callable[[], Tensor]
    is_attribute: bool
    times: int
    parts: int

    @classmethod
    def of(
        cls, value: int, channels: ChannelNodes, counted: Callable[[], Tensor], is_attribute: bool = False
    ) -> "Width":
        """Return a number that counts all of the nodes."""
        width = cls(value)
        width.channels, width.counted, width.is_attribute = channels, counted, is_attribute
        width.times = width.parts = 1
        return width

    def fix(self) -> None:
        """Pin what it counts."""
        self.channels.pin(self.counted(), _NUMBER)

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

    def nodes(self) -> Tensor:
        """Return as many nodes as the number says, tied so that they are so after a cut too."""
        parts = self.counted().view(self.parts, -1)
        self.channels.tie(parts, _NUMBER)
        return parts[0].repeat(self.times)

    def _scaled(self, value: int, times: int, parts: int) -> "Width":
        width = Width.of(value, self.channels, self.counted, self.is_attribute)
        common = math.gcd(times, parts)
        width.times, width.parts = times // common, parts // common
        return width

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Width):  # one factor can follow: rather channels than, say, the number of heads
            first, second = (other, self) if self.is_attribute and not other.is_attribute else (self, other)
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


def _fixing(name: str) -> Callable[..., Any]:
    def compute(self: Width, *others: Any) -> Any:
        for number in (self, *others):
            if isinstance(number, Width):
                number.fix()
        return getattr(int, name)(self, *others)

    return compute


for _name in ("add", "radd", "sub", "rsub", "rfloordiv", "truediv", "rtruediv", "pow", "rpow", "neg", "float"):
    setattr(Width, f"__{_name}__", _fixing(f"__{_name}__"))


def watch_attributes(model: nn.Module, channels: ChannelNodes) -> None:
    """Replace the whole numbers among the attributes of all modules by widths; `model` is a copy for one trace."""
    for name, module in model.named_modules():
        own = own_widths(module)
        for key, value in vars(module).items():
            if key in own:
                tensor, side = own[key]
                counted = partial(channels.nodes_of, f"{name}.{tensor}".strip("."), side)
                number = value[0] if isinstance(value, tuple) else value
                width = Width.of(number, channels, counted, is_attribute=True)
                vars(module)[key] = (width,) if isinstance(value, tuple) else width
            elif type(value) is int and value > 1 and not is_layer(module):
                counted = partial(channels.attribute_nodes, f"{name}.{key}".lstrip("."), value)
                vars(module)[key] = Width.of(value, channels, counted, is_attribute=True)
