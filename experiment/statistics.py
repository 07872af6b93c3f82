"""Differences of two rows, paired by seed and by validation image: interval, verdict in three values, power."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import nct
from scipy.stats import t as student

__all__ = ["MOST_SEEDS", "Difference", "Verdict", "paired_difference", "seeds_to_separate", "verdicts_of"]

Verdict = Literal["above", "below", "not separable"]
_ERROR = 0.05
"""Share of false verdicts where there is no difference: all intervals are of 95 %."""
_POWER = 0.8
MOST_SEEDS = 1000
_NO_SPREAD = 1e-12
_MOST_FREEDOM = 1e4
"""Degrees of freedom above which Student's distribution is as good as normal."""


@dataclass(frozen=True)
class Difference:
    """Mean of the differences of two rows that have the same seed, and how sure it is.

    Other seeds and other images would each have given another mean. Their variances add up: over seeds by Student, over
    images by the bootstrap. What a seed does to an image is in both, so that intervals are rather too wide than too
    narrow (Owen, The Pigeonhole Bootstrap, Annals of Applied Statistics 2007).
    """

    mean: float
    num_seeds: int
    seed_spread: float | None
    """Sample standard deviation of the seeds' differences; None where there is one seed."""
    image_error: float | None
    """Standard error of the mean over draws of validation images; None where no draws are known."""

    @property
    def is_known(self) -> bool:
        """Whether anything tells how sure the mean is.

        Without draws of images a single seed does not, nor do seeds that differ by the very same: a coarse score, as
        the share of a few images, has few values.
        """
        return (self.seed_spread or 0.0) > _NO_SPREAD or self.image_error is not None

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
        error = self._error(self.num_seeds)
        if not self.is_known or error == 0:
            return float(not self.is_known or self.mean == 0)
        return float(2 * student.sf(abs(self.mean) / error, self._freedom(self.num_seeds)))

    def power(self, num_seeds: int, error: float = _ERROR) -> float:
        """Return how often that many seeds, at least two, find a difference of this size and spread, and its sign."""
        reach = self._error(num_seeds)
        if reach == 0:
            return float(self.mean != 0)
        shift, freedom = min(abs(self.mean) / reach, 30.0), self._freedom(num_seeds)
        return float(nct.sf(student.isf(error / 2, freedom), freedom, shift))

    @property
    def _reach(self) -> float:
        if not self.is_known:
            return math.inf
        return float(student.isf(_ERROR / 2, self._freedom(self.num_seeds))) * self._error(self.num_seeds)

    def _error(self, num_seeds: int) -> float:
        return math.hypot((self.seed_spread or 0.0) / math.sqrt(num_seeds), self.image_error or 0.0)

    def _freedom(self, num_seeds: int) -> float:
        """Return Satterthwaite's degrees of freedom: draws of images have no end of them."""
        of_seeds = (self.seed_spread or 0.0) ** 2 / num_seeds
        if of_seeds == 0:
            return _MOST_FREEDOM if self.image_error else max(1, num_seeds - 1)
        return min(_MOST_FREEDOM, (num_seeds - 1) * (1 + (self.image_error or 0.0) ** 2 / of_seeds) ** 2)


def paired_difference(
    first: Mapping[int, float],
    second: Mapping[int, float],
    first_draws: Mapping[int, Sequence[float]] | None = None,
    second_draws: Mapping[int, Sequence[float]] | None = None,
) -> Difference:
    """Return the mean of first minus second over the seeds that both have.

    Args:
        first: Figure of each seed.
        second: The same; at least one seed in common.
        first_draws: By seed, the figure on each of many draws of the validation images, the same draws everywhere;
            used where all common seeds have them.
        second_draws: The same.
    """
    seeds = sorted(first.keys() & second.keys())
    differences = [first[seed] - second[seed] for seed in seeds]
    spread = statistics.stdev(differences) if len(seeds) > 1 else None
    drawn = [[draws[seed] for seed in seeds if seed in draws] for draws in (first_draws or {}, second_draws or {})]
    error = None
    if all(len(known) == len(seeds) for known in drawn):
        error = float(np.std(np.mean(np.subtract(*map(np.array, drawn)), axis=0), ddof=1))
    return Difference(statistics.fmean(differences), len(seeds), spread, error)


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
