"""Times of several runners, taken so that they can be compared, and their statistics.

What runs lives in runtime.py; under which conditions, in record.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deploy.graph import Arrays
from deploy.runtime import Runner, Step

__all__ = [
    "Latency",
    "Measurement",
    "Speedup",
    "latency_from_samples",
    "measure",
    "order_of_round",
    "speedup_from_samples",
]

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Latency:
    """Every sample of one candidate, in the order of the rounds, and its statistics; milliseconds per batch."""

    samples_ms: tuple[float, ...]
    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float


@dataclass(frozen=True)
class Speedup:
    """Median of the reference / median of a candidate, with its 95 % bootstrap interval; above 1 is faster."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """What `measure` found."""

    reference: str
    """The candidate the others are compared with: the dense one."""
    warmup: int
    rounds: int
    latencies: dict[str, Latency]
    """By candidate, the reference first."""
    speedups: dict[str, Speedup]
    """By candidate, without the reference."""


def measure(
    runners: Mapping[str, Runner],
    inputs: Arrays,
    *,
    warmup: int = 10,
    rounds: int = 100,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    on_round: Callable[[], object] = lambda: None,
) -> Measurement:
    """Return the latency of every runner on the same inputs, and its speedup over the first one.

    A round runs each of them once, in alternating order, so that heat, clocks and neighbours meet all alike.

    Args:
        runners: By candidate name; the first is the reference, the dense one.
        inputs: Fed to all of them.
        warmup: Rounds, >= 0, that are run and not kept.
        rounds: Rounds, >= 1, of which every sample is kept.
        seed: Of the bootstrap.
        clock: Nanoseconds that only grow; used where a runner has no device clock of its own.
        on_round: Called after each round, outside the timed steps.

    Raises:
        ValueError: If there is no runner or no round, or the inputs do not fit one of the runners.
    """
    if not runners or rounds < 1 or warmup < 0:
        raise ValueError(
            f"measure: nothing to time, got {len(runners)} runners, {rounds} rounds, warmup {warmup}; "
            f"expected at least 1, 1 and 0"
        )
    steps = {name: runner.prepare(inputs) for name, runner in runners.items()}
    samples_ms: dict[str, list[float]] = {name: [] for name in steps}
    for round_index in range(-warmup, rounds):
        for name in order_of_round(list(steps), round_index):
            sample_ms = _sample_ms(steps[name], clock)
            if round_index >= 0:
                samples_ms[name].append(sample_ms)
        on_round()
    reference, *others = samples_ms
    return Measurement(
        reference=reference,
        warmup=warmup,
        rounds=rounds,
        latencies={name: latency_from_samples(samples) for name, samples in samples_ms.items()},
        speedups={name: speedup_from_samples(samples_ms[reference], samples_ms[name], seed=seed) for name in others},
    )


def order_of_round(names: Sequence[str], round_index: int) -> list[str]:
    """Return the names rotated by the round, backwards in every other cycle: for two AB, BA, BA, AB, AB, ...

    Each goes first equally often, and a steady drift over the rounds favours none.
    """
    cycle, shift = divmod(round_index, len(names))
    rotated = [*names[shift:], *names[:shift]]
    return rotated[::-1] if cycle % 2 else rotated


def latency_from_samples(samples_ms: Sequence[float]) -> Latency:
    """Return the statistics of at least one sample; percentiles interpolate between neighbours."""
    p90_ms, p99_ms = np.percentile(samples_ms, [90, 99])
    return Latency(
        samples_ms=tuple(samples_ms),
        median_ms=float(np.median(samples_ms)),
        p90_ms=float(p90_ms),
        p99_ms=float(p99_ms),
        min_ms=float(np.min(samples_ms)),
        mean_ms=float(np.mean(samples_ms)),
    )


def speedup_from_samples(reference_ms: Sequence[float], other_ms: Sequence[float], *, seed: int = 0) -> Speedup:
    """Return median reference / median other and the interval of that ratio when whole rounds are drawn again.

    Args:
        reference_ms: Samples of the reference, one per round.
        other_ms: Samples of the candidate in the same rounds.
        seed: Of the draws.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, sec. 13.3 (percentile interval).
    """
    reference, other = np.asarray(reference_ms), np.asarray(other_ms)
    drawn = np.random.default_rng(seed).integers(0, len(reference), (NUM_RESAMPLES, len(reference)))
    low, high = np.percentile(_median_ratio(reference[drawn], other[drawn]), [2.5, 97.5])
    return Speedup(ratio=float(_median_ratio(reference, other)), low=float(low), high=float(high))


def _sample_ms(step: Step, clock: Callable[[], int]) -> float:
    start_ns = clock()
    device_ms = step()
    host_ms = (clock() - start_ns) / 1e6
    return host_ms if device_ms is None else device_ms


def _median_ratio(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.median(reference, axis=-1) / np.median(other, axis=-1))
