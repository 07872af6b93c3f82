"""The one interface over what can run a network, whatever runtime and device it is."""

from __future__ import annotations

from typing import Protocol

from deploy.runtimes.timed_step import Step
from deploy.tensors import Arrays, TensorSpec

__all__ = ["FileRunner", "Runner"]


class Runner(Protocol):
    """Something that computes outputs from inputs and says under what conditions."""

    runtime: str
    """Which runtime computes: a name in `registry.RUNTIMES`."""
    device: str
    """Either "cpu" or "cuda:<index>"."""
    num_threads: int | None
    """CPU threads it may use; None on a GPU."""
    file_sha256: str | None
    """Of the file it runs, when that was opened; None for a network in memory."""

    @property
    def precision(self) -> str:
        """Of most weights: "fp32", "tf32", "fp16", "bf16" or "int8"."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for these inputs."""

    def prepare(self, inputs: Arrays) -> Step:
        """Put the inputs in place and return the step to be timed; a later `prepare` or `run` may undo it."""


class FileRunner(Runner, Protocol):
    """A runner of a file, which says what it takes and gives."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
