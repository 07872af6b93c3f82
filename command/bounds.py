"""Ranges of numbers in settings, and one message for all numbers outside them."""

import math
from dataclasses import dataclass

from command.errors import RequestError

__all__ = ["Bounds"]


@dataclass(frozen=True)
class Bounds:
    """A range of numbers; NaN and infinity are in none."""

    low: float
    high: float = math.inf
    is_open: bool = False
    """Whether `low` itself is outside."""

    def check(self, name: str, value: float) -> None:
        """Raise RequestError, beginning with a setting's name, unless the value is in the range."""
        is_high_enough = value > self.low if self.is_open else value >= self.low
        if not (is_high_enough and value <= self.high and math.isfinite(value)):
            raise RequestError(f"{name}: out of range, got {value}; expected {self}")

    def __str__(self) -> str:
        least = f"above {self.low:,}" if self.is_open else f"at least {self.low:,}"
        return f"a number {least}" if self.high == math.inf else f"{least} and at most {self.high:,}"
