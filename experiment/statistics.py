"""Differences between seeds' means: paired by seed, with an interval and a verdict in three values."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student

__all__ = ["Difference", "Verdict", "paired_difference"]

Verdict = Literal["above", "below", "not separable"]
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of two rows that have the same seed."""

    mean: float
    low: float
    """Bounds of the 95 % interval; infinite where there is one seed, which tells nothing of the spread."""
    high: float
    num_seeds: int

    @property
    def verdict(self) -> Verdict:
        """Whether the first is above the second; not separable where the interval holds 0."""
        if self.low > 0:
            return "above"
        return "below" if self.high < 0 else "not separable"


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Return the mean of first minus second over the seeds that both have, with Student's interval.

    Args:
        first: Figure of each seed.
        second: The same; at least one seed in common.
    """
    seeds = first.keys() & second.keys()
    differences = [first[seed] - second[seed] for seed in sorted(seeds)]
    mean, num = statistics.fmean(differences), len(differences)
    if num < 2:
        return Difference(mean, -math.inf, math.inf, num)
    reach = float(student.ppf((1 + _CONFIDENCE) / 2, num - 1)) * statistics.stdev(differences) / math.sqrt(num)
    return Difference(mean, mean - reach, mean + reach, num)
