from contextlib import nullcontext

import torch

from deploy.runtimes.timed_step import StepTimes, cuda_step


def test_copies_and_computation_are_timed_separately_and_in_order(monkeypatch):
    now, log = [0.0], []

    class Event:
        """A CUDA event on a clock that only the three parts move."""

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time_ms = now[0]

        def synchronize(self):
            log.append("waited")

        def elapsed_time(self, end):
            return end.time_ms - self.time_ms

    def part(name, duration_ms):
        def run():
            log.append(name)
            now[0] += duration_ms

        return run

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    step = cuda_step(None, part("in", 0.5), part("compute", 4.0), part("out", 0.25))
    assert step() == StepTimes(latency_ms=4.0, host_to_device_ms=0.5, device_to_host_ms=0.25)
    assert log == ["in", "compute", "out", "waited"]
