"""Which lines are compared, and what is found: above, below, not separable; faster, slower, not decided."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

from experiment.comparison import SCORES, way_of
from experiment.report_lines import Line
from experiment.statistics import MOST_SEEDS, Difference, Verdict, paired_difference, seeds_to_separate, verdicts_of

__all__ = [
    "Draws",
    "Judged",
    "Speed",
    "SpeedVerdict",
    "judged_lines",
    "judged_speeds",
    "speed_counts",
    "verdict_counts",
]

Draws = Mapping[str, Sequence[float]]
"""Row's name -> its score on each draw of the validation images."""
SpeedVerdict = Literal["faster", "slower", "not decided"]


@dataclass(frozen=True)
class Judged:
    """The score of one line against another's."""

    first: Line
    second: Line
    difference: Difference
    verdict: Verdict
    """Corrected for the comparisons of the whole experiment."""
    num_compared: int
    """How many those are."""

    def sentence(self) -> str:
        """Return the verdict in words, with the difference, its 95 % interval and the number of seeds."""
        one, other, score, found = self.first.label, self.second.label, SCORES[self.first.score], self.difference
        if self.verdict == "not separable":
            interval = f" ({_signed(found.low)} to {_signed(found.high)})" if found.is_known else ""
            return f"{one} and {other} are not separable: {_signed(found.mean)} {score}{interval}, {self._seeds()}."
        low, high = (found.low, found.high) if self.verdict == "above" else (-found.high, -found.low)
        interval = f"({low:.3f} to {high:.3f})"
        return f"{one} is {self.verdict} {other} by {abs(found.mean):.3f} {score} {interval}, {self._seeds()}."

    def _seeds(self) -> str:
        found = self.difference
        if not found.is_known:
            seeds = "one seed" if found.num_seeds == 1 else f"{found.num_seeds} seeds with the same difference"
            return f"{seeds}, which tells nothing of the spread"
        if found.num_seeds == 1:
            return "one seed, the interval is over images alone"
        return f"{found.num_seeds} seeds{self._needed() if self.verdict == 'not separable' else ''}"

    def _needed(self) -> str:
        """Return how many seeds would tell them apart."""
        num = seeds_to_separate(self.difference, self.num_compared)
        if num is None:
            more = ", more validation images might" if self.difference.image_error else ""
            return f"; {MOST_SEEDS} seeds would not separate a difference of this size{more}"
        return f"; about {num} seeds would separate a difference of this size (power 80 %)"


@dataclass(frozen=True)
class Speed:
    """The latency of a line's models against that of the dense one."""

    line: Line
    low: float
    high: float
    """Bounds of all its seeds' 95 % intervals."""
    verdict: SpeedVerdict

    def sentence(self) -> str:
        """Return the verdict in words, with the speedup and its interval."""
        name, figures = self.line.label, f"{self.line.mean('speedup'):.2f}x ({self.low:.2f} to {self.high:.2f})"
        if self.verdict == "not decided":
            return f"Whether {name} is faster than dense is not decided: {figures}."
        return f"{name} is {self.verdict} than dense: {figures}."


def judged_lines(lines: Sequence[Line], draws: Draws, num_images: int = 0) -> list[Judged]:
    """Return the differences between slim lines of one method and ratio, and between each line and the dense ones.

    Args:
        lines: Of the results.
        draws: Of validation images.
        num_images: How many of those there are.
    """
    score = lines[0].score
    pairs = [pair for pair in _pairs(lines) if pair[0].by_seed(score).keys() & pair[1].by_seed(score).keys()]
    differences = [
        paired_difference(one.by_seed(score), other.by_seed(score), one.drawn(draws), other.drawn(draws), num_images)
        for one, other in pairs
    ]
    num = sum(difference.is_known for difference in differences)
    found = zip(pairs, differences, verdicts_of(differences), strict=True)
    return [Judged(*pair, difference, verdict, num) for pair, difference, verdict in found]


def _pairs(lines: Sequence[Line]) -> Iterator[tuple[Line, Line]]:
    for family in dict.fromkeys(line.family for line in lines):
        yield from _pairs_of([line for line in lines if line.family == family])


def _pairs_of(lines: Sequence[Line]) -> Iterator[tuple[Line, Line]]:
    uncut = [line for line in lines if not line.is_slim]
    yield from ((line, other) for other, line in combinations(uncut, 2))
    yield from ((line, other) for other in uncut for line in lines if line.is_slim)
    for other, line in combinations([line for line in lines if line.is_slim], 2):
        if line.cut == other.cut:
            yield line, other


def judged_speeds(lines: Sequence[Line]) -> list[Speed]:
    """Return the speed of every slim line.

    It is decided where the intervals of all seeds lie outside of those of the dense network's other seeds and of the
    controls: these are the same graph as dense, and their speedups differ from 1 by the noise of the clock alone.
    """
    speeds = []
    for line in (line for line in lines if line.is_slim and _bounds(line)):
        uncut = [other for other in lines if not other.is_slim and other.family == line.family]
        same = [1.0, *(bound for other in uncut for bound in _bounds(other))]
        least, most = min(same), max(same)
        low, high = min(_bounds(line)), max(_bounds(line))
        verdict: SpeedVerdict = "faster" if low > most else "slower" if high < least else "not decided"
        speeds.append(Speed(line, low, high, verdict))
    return speeds


def speed_counts(speeds: Sequence[Speed]) -> list[str]:
    """Return how many lines are faster, and the sentences of the others."""
    others = [speed.sentence() for speed in speeds if speed.verdict != "faster"]
    return [f"{len(speeds) - len(others)} of {len(speeds)} rows are faster than dense.", *others]


def _bounds(line: Line) -> list[float]:
    return [*line.values("speedup_low"), *line.values("speedup_high")]


def verdict_counts(judged: Sequence[Judged]) -> list[str]:
    """Return a sentence for each two ways to weights that several methods or ratios have: how often one is above."""
    ways: dict[tuple[str, str], list[Verdict]] = {}
    for one in judged:
        if one.first.is_slim:
            ways.setdefault((_way(one.first), _way(one.second)), []).append(one.verdict)
    return [
        f"{first} against {second}, paired by seed, {len(found)} comparisons: "
        f"{', '.join(f'{text} in {found.count(text)}' for text in get_args(Verdict))}."
        for (first, second), found in ways.items()
        if len(found) > 1
    ]


def _way(line: Line) -> str:
    return way_of(line.rows[0], line.score) if line.is_slim else line.label


def _signed(number: float) -> str:
    return f"{round(number, 3) + 0.0:+.3f}"  # no minus before a zero
