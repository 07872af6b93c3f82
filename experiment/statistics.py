"""Differences of two rows, paired by seed and by validation image: interval, verdict in three values, power."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

__all__ = ["MOST_SEEDS", "Difference", "Verdict", "paired_difference", "seeds_to_separate", "verdicts_of"]

Verdict = Literal["above", "below", "not separable"]
_ERROR = 0.05
"""Share of false verdicts where there is no difference: all intervals are of 95 %."""
_POWER = 0.8
MOST_SEEDS = 1000
_NO_SPREAD = 1e-12
_LEAST_P = 1e-12
"""Below it a chance is as good as none."""


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of two rows that have the same seed, and how sure it is.

    Other seeds and other images would each have given another mean. Their variances add up: over seeds by Student, over
    images by the bootstrap. What a seed does to an image is in both, so that errors are rather too large than too small
    (Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 2007).

    What counts as large is the mean of Student's bounds for seeds and for images, weighted by their variances (Cochran
    and Cox, Experimental Designs, 1950, section 4.14): rather too much than too little. Satterthwaite's degrees of
    freedom are wrong too often where two or three seeds happen to lie close together.
    """

    mean: float
    num_seeds: int
    seed_spread: float | None
    """Sample standard deviation of the seeds' differences; None where there is one seed."""
    image_error: float | None
    """Standard error of the mean over draws of validation images; None where no draws are known."""
    num_images: int = 0
    """How many validation images there are, where draws of them are known."""

    @property
    def is_known(self) -> bool:
        """Whether anything tells how sure the mean is.

        Seeds that differ by the very same do not, as a coarse score, the share of a few images, has few values. Nor
        does a single seed without draws of images, or whose draws are all alike.
        """
        spread = self.image_error if self.num_seeds == 1 else self.seed_spread
        return (spread or 0.0) > _NO_SPREAD

    @property
    def low(self) -> float:
        """Lower bound of the 95 % interval; minus infinity where nothing is known."""
        return self.mean - self._reach

    @property
    def high(self) -> float:
        """Upper bound, likewise."""
        return self.mean + self._reach

    @property
    def p_value(self) -> float:
        """How often so large a mean would come about by chance; below 0.05 where the interval does not hold 0."""
        if not self.is_known or not self._is_above(1.0):
            return 1.0
        if self._is_above(_LEAST_P):
            return _LEAST_P
        return float(brentq(lambda p: self._bound(p) - abs(self.mean), _LEAST_P, 1.0, xtol=1e-15))

    def power(self, num_seeds: int, error: float = _ERROR) -> float:
        """Return how often that many seeds, at least two, find a difference of this size and spread, and its sign."""
        reach = math.hypot(*self._errors(num_seeds))
        if reach == 0:
            return float(self.mean != 0)
        shift = min(abs(self.mean) / reach, 30.0)
        return float(nct.sf(self._bound(error, num_seeds) / reach, self._freedom(num_seeds), shift))

    @property
    def _reach(self) -> float:
        if not self.is_known:
            return math.inf
        return self._bound(_ERROR)

    def _is_above(self, chance: float) -> bool:
        return abs(self.mean) > self._bound(chance)

    def _bound(self, chance: float, num_seeds: int | None = None) -> float:
        """Return what the mean exceeds, up or down, with this chance where there is no difference."""
        num_seeds = num_seeds or self.num_seeds
        errors, freedoms = self._errors(num_seeds), (num_seeds - 1, self.num_images - 1)
        bounds = [
            error**2 * student.isf(chance / 2, freedom)
            for error, freedom in zip(errors, freedoms, strict=True)
            if error > 0
        ]
        return float(sum(bounds) / math.hypot(*errors)) if bounds else 0.0

    def _errors(self, num_seeds: int) -> tuple[float, float]:
        """Return the standard errors of the mean, over seeds and over images."""
        return (self.seed_spread or 0.0) / math.sqrt(num_seeds), self.image_error or 0.0

    def _freedom(self, num_seeds: int) -> float:
        """Return Satterthwaite's degrees of freedom; of variances that are taken for the true ones, they are right."""
        errors, freedoms = self._errors(num_seeds), (num_seeds - 1, self.num_images - 1)
        parts = [error**4 / freedom for error, freedom in zip(errors, freedoms, strict=True) if error > 0]
        return float(math.hypot(*errors) ** 4 / sum(parts))


def paired_difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    first_draws: Mapping[int, Sequence[float]] | None = None,
    second_draws: Mapping[int, Sequence[float]] | None = None,
    num_images: int = 0,
) -> Difference:
    """Return the mean of first minus second over the seeds that both have.

    Args:
        first: Figure of each seed.
        second: The same; at least one seed in common.
        first_draws: By seed, the figure on each of many draws of the validation images, the same draws everywhere;
            used where all common seeds have them.
        second_draws: The same.
        num_images: How many validation images there are; draws of fewer than two tell nothing.
    """
    seeds = sorted(first.keys() & second.keys())
    differences = [first[seed] - second[seed] for seed in seeds]
    spread = statistics.stdev(differences) if len(seeds) > 1 else None
    drawn = [[draws[seed] for seed in seeds if seed in draws] for draws in (first_draws or {}, second_draws or {})]
    mean = statistics.fmean(differences)
    if num_images < 2 or any(len(known) < len(seeds) for known in drawn):
        return Difference(mean, len(seeds), spread, None)
    error = np.std(np.mean(np.subtract(*map(np.array, drawn)), axis=0), ddof=1)
    error *= math.sqrt(num_images / (num_images - 1))  # draws spread by the images' deviation from their own mean
    return Difference(mean, len(seeds), spread, float(error), num_images)


def verdicts_of(differences: Sequence[Difference]) -> list[Verdict]:
    """Return whether each first is above its second, wrong in 5 % of all such lists at most where none differ.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 1979.
    Differences of which nothing is known are not separable, and not counted.
    """
    known = sorted((i for i, one in enumerate(differences) if one.is_known), key=lambda i: differences[i].p_value)
    verdicts: list[Verdict] = ["not separable"] * len(differences)
    for rank, i in enumerate(known):
        if differences[i].p_value >= _ERROR / (len(known) - rank):
            break
        verdicts[i] = "above" if differences[i].mean > 0 else "below"
    return verdicts


def seeds_to_separate(difference: Difference, num_compared: int = 1) -> int | None:
    """Return the fewest seeds that find a difference of this size and spread in four cases of five.

    Args:
        difference: Of at least two seeds.
        num_compared: Differences that are judged together: as many are found whichever is Holm's first.

    Returns:
        None if `MOST_SEEDS` are too few: more images are needed, or there is no difference.
    """
    low, high = 1, MOST_SEEDS
    error = _ERROR / num_compared
    if difference.power(high, error) < _POWER:
        return None
    while high - low > 1:  # power grows with seeds
        middle = (low + high) // 2
        low, high = (low, middle) if difference.power(middle, error) >= _POWER else (middle, high)
    return high
