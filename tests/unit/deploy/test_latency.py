import itertools

import numpy as np
import pytest

from deploy import measure
from deploy.latency import latency_from_samples, order_of_round, speedup_from_samples
from deploy.runtimes.timed_step import StepTimes


class FakeClock:
    """Time that passes only inside the steps of FakeRunner."""

    now_ns = 0

    def __call__(self):
        return self.now_ns


class FakeRunner:
    """Takes the given times in turn and records that it ran."""

    runtime, device, precision, num_threads = "fake", "cpu", "fp32", 1
    file_sha256 = None

    def __init__(self, name, times_ms, clock, calls):
        self.name, self.times_ms, self.clock, self.calls = name, iter(times_ms), clock, calls

    def prepare(self, inputs):
        def step():
            self.calls.append(self.name)
            self.clock.now_ns += round(next(self.times_ms) * 1e6)

        return step


def test_warm_up_is_excluded_and_the_clocks_milliseconds_are_kept():
    clock, calls = FakeClock(), []
    runners = {
        "dense": FakeRunner("dense", [99, 4, 8, 6], clock, calls),
        "slim": FakeRunner("slim", [99, 2, 2, 3], clock, calls),
    }
    found = measure(runners, {}, warmup=1, rounds=3, clock=clock)
    assert found.references == {"dense": "dense", "slim": "dense"}
    assert found.latencies["dense"].samples_ms == (4, 8, 6)
    assert found.latencies["slim"].samples_ms == (2, 2, 3)
    assert found.speedups["slim"].ratio == 3  # median 6 / median 2
    assert list(found.speedups) == ["slim"]
    assert calls[2:] == ["dense", "slim", "slim", "dense", "slim", "dense"]


def test_a_device_clock_is_preferred_and_its_copies_are_kept_apart():
    class OnDevice(FakeRunner):
        def prepare(self, inputs):
            times = iter([StepTimes(9, 9, 9), StepTimes(0.25, 0.5, 0.125), StepTimes(0.75, 1.5, 0.125)])
            return lambda: next(times)

    found = measure({"net": OnDevice("net", [], FakeClock(), [])}, {}, warmup=1, rounds=2)
    assert found.latencies["net"].samples_ms == (0.25, 0.75)
    assert found.transfers["net"].host_to_device.samples_ms == (0.5, 1.5)
    assert found.transfers["net"].device_to_host.median_ms == 0.125


def test_on_a_cpu_there_are_no_copies_and_no_gpu():
    clock = FakeClock()
    found = measure({"net": FakeRunner("net", [1], clock, [])}, {}, warmup=0, rounds=1, clock=clock)
    assert (found.transfers, found.gpu) == ({}, None)


def test_each_is_compared_with_the_first_of_its_own_batch():
    clock, shapes = FakeClock(), {}

    class Sees(FakeRunner):
        def prepare(self, inputs):
            shapes[self.name] = inputs["image"].shape
            return super().prepare(inputs)

    times_ms = {"dense-1": 6, "dense-8": 40, "slim-8": 10, "slim-1": 4}
    runners = {name: Sees(name, [ms], clock, []) for name, ms in times_ms.items()}
    inputs = {name: {"image": np.ones((int(name[-1]), 3), np.float32)} for name in runners}
    found = measure(runners, inputs, warmup=0, rounds=1, clock=clock)
    assert shapes == {"dense-1": (1, 3), "dense-8": (8, 3), "slim-8": (8, 3), "slim-1": (1, 3)}
    assert found.batches == {"dense-1": 1, "dense-8": 8, "slim-8": 8, "slim-1": 1}
    assert found.references == {"dense-1": "dense-1", "dense-8": "dense-8", "slim-8": "dense-8", "slim-1": "dense-1"}
    assert {name: speedup.ratio for name, speedup in found.speedups.items()} == {"slim-8": 4, "slim-1": 1.5}


@pytest.mark.parametrize(("attribute", "value"), [("device", "cuda:0"), ("num_threads", 2)])
def test_runners_on_different_devices_or_threads_are_refused(attribute, value):
    calls = []
    runners = {name: FakeRunner(name, [], FakeClock(), calls) for name in ("dense", "slim")}
    setattr(runners["slim"], attribute, value)
    with pytest.raises(ValueError, match=r"runners: devices or threads differ, got .*; expected the same"):
        measure(runners, {})
    assert calls == []


def test_on_round_is_called_for_every_round_and_is_not_timed():
    clock = FakeClock()

    def slow():
        clock.now_ns += 10**9

    runners = {"net": FakeRunner("net", itertools.repeat(1), clock, [])}
    assert measure(runners, {}, warmup=2, rounds=3, clock=clock, on_round=slow).latencies["net"].mean_ms == 1
    assert clock.now_ns == 5 * 10**9 + 5 * 10**6


def test_two_take_turns_abba():
    orders = ["".join(order_of_round("AB", index)) for index in range(4)]
    assert orders == ["AB", "BA", "BA", "AB"]


@pytest.mark.parametrize("num_names", [1, 2, 3, 5])
def test_each_is_equally_often_at_each_place(num_names):
    orders = [order_of_round(range(num_names), index) for index in range(2 * num_names)]
    for place in range(num_names):
        assert sorted(order[place] for order in orders) == sorted([*range(num_names)] * 2)


def test_statistics_worked_by_hand():
    latency = latency_from_samples([5.0, 1.0, 2.0, 3.0, 14.0])
    assert latency.samples_ms == (5.0, 1.0, 2.0, 3.0, 14.0)
    assert latency.median_ms == 3
    assert latency.min_ms == 1
    assert latency.mean_ms == 5  # 25 / 5
    # sorted 1 2 3 5 14: place 0.9 x 4 = 3.6 -> 5 + 0.6 x 9 = 10.4; place 0.99 x 4 = 3.96 -> 5 + 0.96 x 9 = 13.64
    assert latency.p90_ms == pytest.approx(10.4)
    assert latency.p99_ms == pytest.approx(13.64)


def test_rounds_are_drawn_in_pairs():
    slim = np.random.default_rng(0).uniform(1, 10, 50)
    speedup = speedup_from_samples(2 * slim, slim)  # noisy times, but the ratio is 2 in every round
    assert (speedup.ratio, speedup.low, speedup.high) == pytest.approx((2, 2, 2))


def test_interval_of_two_rounds_worked_by_hand():
    # draws of 2 rounds: (1, 1) -> 1 / 1, (2, 2) -> 3 / 1, mixed -> 2 / 1; each end has probability 1/4 > 2.5 %
    speedup = speedup_from_samples([1.0, 3.0], [1.0, 1.0])
    assert (speedup.ratio, speedup.low, speedup.high) == (2, 1, 3)


def test_interval_covers_the_true_ratio_and_repeats_with_its_seed():
    rng = np.random.default_rng(0)
    dense, slim = rng.normal(3, 0.1, 200), rng.normal(2, 0.1, 200)
    speedup = speedup_from_samples(dense, slim, seed=7)
    assert speedup.low < 1.5 < speedup.high
    assert speedup.high - speedup.low < 0.06
    assert speedup == speedup_from_samples(dense, slim, seed=7)


@pytest.mark.parametrize(("num_runners", "rounds", "warmup"), [(0, 1, 0), (1, 0, 0), (1, 1, -1)])
def test_nothing_to_time_is_refused(num_runners, rounds, warmup):
    runners = {"net": FakeRunner("net", [], FakeClock(), [])} if num_runners else {}
    with pytest.raises(ValueError, match=r"measure: nothing to time, got .*; expected at least 1, 1 and 0"):
        measure(runners, {}, warmup=warmup, rounds=rounds)
