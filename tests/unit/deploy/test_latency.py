import itertools

import numpy as np
import pytest

from deploy import measure
from deploy.latency import latency_from_samples, order_of_round, speedup_from_samples


class FakeClock:
    """Time that passes only inside the steps of FakeRunner."""

    now_ns = 0

    def __call__(self):
        return self.now_ns


class FakeRunner:
    """Takes the given times in turn and writes down that it ran."""

    runtime, device, precision, num_threads = "fake", "cpu", "float32", 1

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
    assert found.reference == "dense"
    assert found.latencies["dense"].samples_ms == (4, 8, 6)
    assert found.latencies["slim"].samples_ms == (2, 2, 3)
    assert found.speedups["slim"].ratio == 3  # median 6 / median 2
    assert list(found.speedups) == ["slim"]
    assert calls[2:] == ["dense", "slim", "slim", "dense", "slim", "dense"]


def test_a_device_clock_is_preferred_to_the_hosts():
    class OnDevice(FakeRunner):
        def prepare(self, inputs):
            return lambda: 0.25

    runner = OnDevice("net", [], FakeClock(), [])
    assert measure({"net": runner}, {}, warmup=0, rounds=2).latencies["net"].samples_ms == (0.25, 0.25)


def test_on_round_is_called_for_every_round_and_its_time_is_not_counted():
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
    speedup = speedup_from_samples(2 * slim, slim)  # a wild machine, yet every round says 2
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
