# ruff: noqa: N802, N815
# names as NVML gives them

import pytest

from deploy import measure
from deploy.nvml import GpuWatch, gpu_watch
from deploy.runtimes.timed_step import StepTimes


class FakeNvml:
    """NVML of one GPU: each reading is the next of its list, then the last one."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8
    nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvmlClocksThrottleReasonHwThermalSlowdown = 64
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 128

    class NVMLError(Exception):
        pass

    def __init__(self, sm_mhz=(1980,), power_mw=(300_000,), reasons=(0,)):
        self.lists = {"sm": list(sm_mhz), "power": list(power_mw), "reasons": list(reasons)}

    def following(self, name):
        readings = self.lists[name]
        return readings.pop(0) if len(readings) > 1 else readings[0]

    def nvmlDeviceGetClockInfo(self, handle, kind):
        assert handle == "the handle"
        return self.following("sm") if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetPowerUsage(self, handle):
        return self.following("power")

    def nvmlDeviceGetTemperature(self, handle, sensor):
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        return self.following("reasons")


class Clock:
    now_ns = 0

    def __call__(self):
        return self.now_ns


def watched(nvml, phases, seconds_apart=1.0):
    """Return the log of a watch that samples these phases in turn."""
    clock = Clock()
    watch = GpuWatch(nvml, "the handle", clock=clock)
    for phase in phases:
        watch.sample(phase)
        clock.now_ns += round(seconds_apart * 1e9)
    return watch.log


def test_a_sample_has_none_where_nvml_knows_nothing():
    (sample,) = watched(FakeNvml(power_mw=[301_500], reasons=[4 + 32]), ["measured"]).samples
    assert (sample.sm_clock_mhz, sample.memory_clock_mhz) == (1980, 2619)
    assert sample.power_w == 301.5
    assert sample.temperature_c is None
    assert sample.throttled_by == ("power limit", "temperature")


def test_each_phase_is_sampled_at_most_once_per_interval():
    log = watched(FakeNvml(), ["before", "warmup", *["measured"] * 5, "after"], seconds_apart=0.2)
    # measured at 0.4 s, then not before 0.4 + 0.5 s: at 1.0 s
    assert [(sample.phase, round(sample.time_s, 1)) for sample in log.samples] == [
        ("before", 0.0),
        ("warmup", 0.2),
        ("measured", 0.4),
        ("measured", 1.0),
        ("after", 1.4),
    ]


def test_clocks_that_rise_before_the_first_kept_round_are_no_fault():
    log = watched(FakeNvml(sm_mhz=[345, 1200, 1980, 1881]), ["before", "warmup", "measured", "after"])
    assert log.warning is None  # 1881 is 95 % of 1980
    assert log.summary == "SM clock 1881 to 1980 MHz, power 300 to 300 W"


def test_clocks_that_move_by_more_than_5_percent_give_a_warning():
    warning = watched(FakeNvml(sm_mhz=[1980, 1880]), ["measured", "after"]).warning
    assert warning.startswith("GPU: clocks not steady, got an SM clock of 1880 to 1980 MHz; lock them")
    assert "\n" not in warning


def test_the_warning_names_each_throttling_reason_once():
    log = watched(FakeNvml(reasons=[0, 4, 4]), ["measured", "measured", "after"])
    assert log.warning.startswith("GPU: clocks not steady, got throttling by power limit; ")


def test_an_idle_gpu_is_not_throttled():
    assert watched(FakeNvml(reasons=[1]), ["measured"]).warning is None  # 1: nothing to do


def test_measure_samples_before_warm_up_every_round_and_after():
    class Runner:
        runtime, device, precision, num_threads = "fake", "cpu", "fp32", 1

        def prepare(self, inputs):
            return lambda: None

    watch = GpuWatch(FakeNvml(sm_mhz=[345, 1000, 1980]), "the handle", interval_s=0)
    log = measure({"net": Runner()}, {}, warmup=1, rounds=2, watch=watch).gpu
    assert [sample.phase for sample in log.samples] == ["before", "warmup", "measured", "measured", "after"]
    assert [sample.sm_clock_mhz for sample in log.samples] == [345, 1000, 1980, 1980, 1980]


def measured_rounds(reasons):
    """Return the rounds of a measurement of three that were kept, how many were left out, and the samples' times."""

    class Runner:
        runtime, device, precision, num_threads = "fake", "cpu", "fp32", 1

        def prepare(self, inputs):
            times = iter([1.0, 2.0, 3.0])
            return lambda: StepTimes(next(times))

    watch = GpuWatch(FakeNvml(reasons=reasons), "the handle", interval_s=0)
    found = measure({"net": Runner()}, {}, warmup=0, rounds=3, watch=watch)
    return found.rounds, found.throttled_rounds, found.latencies["net"].samples_ms


def test_throttled_rounds_are_left_out_and_counted():
    assert measured_rounds([0, 0, 32, 0]) == (2, 1, (1.0, 3.0))  # before, first, second, third


def test_rounds_that_are_all_throttled_are_kept():
    assert measured_rounds([4]) == (3, 0, (1.0, 2.0, 3.0))


def test_a_cpu_has_no_watch():
    assert gpu_watch("cpu") is None


@pytest.mark.parametrize("name", ["SwPowerCap", "HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown"])
def test_the_fake_has_the_real_modules_names_and_values(name):
    pynvml = pytest.importorskip("pynvml")
    constant = f"nvmlClocksThrottleReason{name}"
    assert getattr(FakeNvml, constant) == getattr(pynvml, constant)
    assert (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM, pynvml.NVML_TEMPERATURE_GPU) == (1, 2, 0)
    assert all(hasattr(pynvml, function) for function in dir(FakeNvml) if function.startswith("nvmlDevice"))
