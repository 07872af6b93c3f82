"""The common interface of everything that can run a network, on any runtime and device."""

from __future__ import annotations

from typing import Protocol

from deploy.runtimes.timed_step import Step
from deploy.tensors import Arrays, TensorSpec

__all__ = ["FileRunner", "Runner"]


class Runner(Protocol):
    """Computes outputs from inputs, and names the conditions."""

    runtime: str
    """A name in `registry.RUNTIMES`."""
    device: str
    """Either "cpu" or "cuda:<index>"."""
    num_threads: int | None
    """CPU threads it may use; None on a GPU."""
    file_sha256: str | None
    """Hash of the file when it was opened; None for a network in memory."""

    @property
    def precision(self) -> str:
        """Precision of most weights: "fp32", "tf32", "fp16", "bf16" or "int8"."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for these inputs."""

    def prepare(self, inputs: Arrays) -> Step:
        """Set the inputs and return the step to be timed; a later `prepare` or `run` may invalidate it."""


class FileRunner(Runner, Protocol):
    """A runner of a file, with its inputs and outputs."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    classes: tuple[str, ...] | None
    """Class names in the file; None if it has none."""
