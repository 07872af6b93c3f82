"""One timed pass through a network; on a GPU its three parts are timed by CUDA events.

Steps are made by the runners of this folder; latency.py turns the times into statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from deploy.tensors import Arrays, TensorSpec

if TYPE_CHECKING:
    import torch

__all__ = ["CudaBuffers", "Step", "StepTimes", "cuda_step"]


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of one pass; the copies are None on a CPU."""

    latency_ms: float
    """The computation alone, without copies."""
    host_to_device_ms: float | None = None
    device_to_host_ms: float | None = None


Step = Callable[[], StepTimes | None]
"""One pass over prepared inputs, which returns when the device is done: with the device's times, or None if the caller
measures."""


class CudaBuffers:
    """Inputs and outputs of a graph on the current GPU, at fixed addresses, with the inputs pinned on the host.

    Args:
        inputs: Arrays for the graph.
        outputs: Specs of fixed shape.
    """

    def __init__(self, inputs: Arrays, outputs: Mapping[str, TensorSpec]) -> None:
        import torch

        self._pinned = {name: torch.from_numpy(array).pin_memory() for name, array in inputs.items()}
        self.inputs = {name: tensor.cuda() for name, tensor in self._pinned.items()}
        self.outputs = {
            name: torch.empty(spec.fixed_shape(name), dtype=getattr(torch, spec.dtype), device="cuda")
            for name, spec in outputs.items()
        }
        torch.cuda.synchronize()  # the copies ran on another stream than the network's

    def load(self, inputs: Arrays) -> None:
        """Set other inputs of the same shapes; `place` copies them to the GPU."""
        import torch

        for name, tensor in self._pinned.items():
            tensor.copy_(torch.from_numpy(inputs[name]))

    def place(self) -> None:
        """Copy the inputs to the GPU again."""
        for name, tensor in self._pinned.items():
            self.inputs[name].copy_(tensor, non_blocking=True)

    def fetch(self) -> None:
        """Copy the outputs to pinned memory on the host."""
        for tensor in self.outputs.values():
            tensor.to("cpu", non_blocking=True)

    def arrays(self) -> Arrays:
        """Return the outputs."""
        return {name: tensor.cpu().numpy() for name, tensor in self.outputs.items()}


def cuda_step(
    stream: torch.cuda.Stream, place: Callable[[], object], launch: Callable[[], object], fetch: Callable[[], object]
) -> Step:
    """Return a step that copies in, computes and copies out on one stream, with events around each."""
    import torch

    events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]

    def step() -> StepTimes:
        with torch.cuda.stream(stream):
            events[0].record()
            for part, done in zip((place, launch, fetch), events[1:], strict=True):
                part()
                done.record()
        events[-1].synchronize()
        placed_ms, computed_ms, fetched_ms = (start.elapsed_time(end) for start, end in pairwise(events))
        return StepTimes(computed_ms, placed_ms, fetched_ms)

    return step
