"""Comparable latencies of several runners, and their statistics.

Runners are in `deploy.runtimes`, the conditions of a measurement in record.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from command.errors import RequestError
from deploy.nvml import GpuLog, GpuWatch, gpu_watch
from deploy.runtimes.runner import Runner
from deploy.runtimes.timed_step import Step, StepTimes
from deploy.tensors import Arrays

__all__ = [
    "NUM_RESAMPLES",
    "Latency",
    "Measurement",
    "Speedup",
    "Transfers",
    "inputs_by_name",
    "latency_from_samples",
    "measure",
    "measure_with_progress",
    "order_of_round",
    "speedup_from_samples",
]

NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Latency:
    """All samples of one candidate, in the order of the rounds, and their statistics; milliseconds per batch."""

    samples_ms: tuple[float, ...]
    median_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    mean_ms: float


@dataclass(frozen=True)
class Transfers:
    """Times of the copies between host and GPU, not part of the latency; milliseconds per batch."""

    host_to_device: Latency
    device_to_host: Latency


@dataclass(frozen=True)
class Speedup:
    """Median of the reference / median of a candidate, with its 95 % bootstrap interval; above 1 is faster."""

    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """Result of `measure`."""

    warmup: int
    rounds: int
    """Those that were kept."""
    throttled_rounds: int | None
    """Those that were left out because the GPU was throttled, unless it was in all; None where nobody watched it."""
    latencies: dict[str, Latency]
    """By candidate, in the order given."""
    transfers: dict[str, Transfers]
    """By candidate; without those on a CPU, which copy nothing."""
    batches: dict[str, int]
    """By candidate, images per run."""
    references: dict[str, str]
    """By candidate, the one it is compared with: the first with the same batch, possibly itself."""
    speedups: dict[str, Speedup]
    """By candidate, without the references."""
    gpu: GpuLog | None
    """None on a CPU, and without NVML."""


def measure(
    runners: Mapping[str, Runner],
    inputs: Arrays | Mapping[str, Arrays],
    *,
    warmup: int = 10,
    rounds: int = 100,
    seed: int = 0,
    clock: Callable[[], int] = time.perf_counter_ns,
    on_round: Callable[[], object] = lambda: None,
    watch: GpuWatch | None = None,
    references: Mapping[str, str] | None = None,
) -> Measurement:
    """Return the latency of every runner, and its speedup over its reference.

    A round runs each of them once, in alternating order, so that heat, clocks and other processes affect all alike.

    Args:
        runners: By candidate name; the first is the reference, the dense one.
        inputs: Arrays for all of them, or by candidate where batches differ. The first size of the first input is the
            batch.
        warmup: Rounds, >= 0, that are run and discarded.
        rounds: Rounds, >= 1, that are timed; those in which the GPU was throttled are left out, unless it was in all.
        seed: Seed of the bootstrap.
        clock: Monotonic, in nanoseconds; used where a runner has no device clock.
        on_round: Called after each round, outside the timed steps.
        watch: Reads the GPU's clocks between rounds; default: one for the runners' GPU.
        references: By candidate, the one whose speedup is 1; default: the first of the same batch.

    Raises:
        RequestError: If there is no runner or no round, the runners are on different devices or threads, or the inputs
            do not fit one of them.
    """
    if not runners or rounds < 1 or warmup < 0:
        raise RequestError(
            f"measure: nothing to time, got {len(runners)} runners, {rounds} rounds, warmup {warmup}; "
            f"expected at least 1, 1 and 0"
        )
    watch = watch or gpu_watch(_common_device(runners))
    own_inputs = inputs_by_name(list(runners), inputs)
    steps = {name: runner.prepare(own_inputs[name]) for name, runner in runners.items()}
    times, num_throttled = _timed(steps, warmup, rounds, clock, on_round, watch)
    latencies = {name: latency_from_samples([one.latency_ms for one in kept]) for name, kept in times.items()}
    batches = {name: _batch(own_inputs[name]) for name in runners}
    firsts: dict[int, str] = {}
    references = dict(references or {name: firsts.setdefault(batch, name) for name, batch in batches.items()})
    return Measurement(
        warmup=warmup,
        rounds=rounds - num_throttled,
        throttled_rounds=num_throttled if watch else None,
        latencies=latencies,
        transfers={name: found for name, kept in times.items() if (found := _transfers(kept))},
        batches=batches,
        references=references,
        speedups={
            name: speedup_from_samples(latencies[reference].samples_ms, latencies[name].samples_ms, seed=seed)
            for name, reference in references.items()
            if name != reference
        },
        gpu=watch.log if watch else None,
    )


def measure_with_progress(
    runners: Mapping[str, Runner],
    inputs: Arrays | Mapping[str, Arrays],
    warmup: int,
    rounds: int,
    progress: Callable[[int, int], object],
    references: Mapping[str, str] | None = None,
) -> Measurement:
    """Return the result of `measure`; `progress` is called after every round with rounds done and rounds in all."""
    ticks = itertools.count(1)
    return measure(
        runners,
        inputs,
        warmup=warmup,
        rounds=rounds,
        on_round=lambda: progress(next(ticks), warmup + rounds),
        references=references,
    )


def inputs_by_name(names: Sequence[str], inputs: Arrays | Mapping[str, Arrays]) -> dict[str, Arrays]:
    """Return each candidate's inputs, given for all or by candidate."""
    own = {name: value for name, value in inputs.items() if isinstance(value, Mapping)}
    shared = {name: value for name, value in inputs.items() if not isinstance(value, Mapping)}
    return {name: own.get(name, shared) for name in names}


def order_of_round(names: Sequence[str], round_index: int) -> list[str]:
    """Return the names rotated by the round, reversed in every other cycle: for two AB, BA, BA, AB, AB, ...

    Each is first equally often, and a steady drift over the rounds favours none.
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
    """Return median reference / median other and its bootstrap interval, from resampled whole rounds.

    Args:
        reference_ms: Samples of the reference, one per round.
        other_ms: Samples of the candidate in the same rounds.
        seed: Seed of the resampling.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, sec. 13.3 (percentile interval).
    """
    reference, other = np.asarray(reference_ms), np.asarray(other_ms)
    drawn = np.random.default_rng(seed).integers(0, len(reference), (NUM_RESAMPLES, len(reference)))
    low, high = np.percentile(_median_ratio(reference[drawn], other[drawn]), [2.5, 97.5])
    return Speedup(ratio=float(_median_ratio(reference, other)), low=float(low), high=float(high))


def _common_device(runners: Mapping[str, Runner]) -> str:
    places = {(runner.device, runner.num_threads) for runner in runners.values()}
    if len(places) > 1:
        raise RequestError(f"runners: devices or threads differ, got {places}; expected the same for all")
    return places.pop()[0]


def _timed(
    steps: Mapping[str, Step],
    warmup: int,
    rounds: int,
    clock: Callable[[], int],
    on_round: Callable[[], object],
    watch: GpuWatch | None,
) -> tuple[dict[str, list[StepTimes]], int]:
    """Return the times of the measured rounds, and how many were left out."""
    times: dict[str, list[StepTimes]] = {name: [] for name in steps}
    is_steady: list[bool] = []
    if watch:
        watch.sample("before")
    for round_index in range(-warmup, rounds):
        for name in order_of_round(list(steps), round_index):
            found = _step_times(steps[name], clock)
            if round_index >= 0:
                times[name].append(found)
        if watch:
            watch.sample("measured" if round_index >= 0 else "warmup")
        if round_index >= 0:
            is_steady.append(not (watch and watch.is_throttled))
        on_round()
    if watch:
        watch.sample("after")
    if not any(is_steady):  # the record warns of it
        return times, 0
    return {name: list(itertools.compress(kept, is_steady)) for name, kept in times.items()}, is_steady.count(False)


def _step_times(step: Step, clock: Callable[[], int]) -> StepTimes:
    start_ns = clock()
    device_times = step()
    return device_times or StepTimes((clock() - start_ns) / 1e6)


def _transfers(times: Sequence[StepTimes]) -> Transfers | None:
    placed_ms = [one.host_to_device_ms for one in times if one.host_to_device_ms is not None]
    fetched_ms = [one.device_to_host_ms for one in times if one.device_to_host_ms is not None]
    return Transfers(latency_from_samples(placed_ms), latency_from_samples(fetched_ms)) if placed_ms else None


def _batch(inputs: Arrays) -> int:
    shapes = [array.shape for array in inputs.values()]
    return shapes[0][0] if shapes and shapes[0] else 1


def _median_ratio(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.median(reference, axis=-1) / np.median(other, axis=-1))
