"""PyTorch among the runtimes of `espalier deploy bench`: of model files, which `deploy` itself does not know."""

from pathlib import Path
from typing import Any

from deploy.runtimes import RUNTIMES, Runtime

__all__ = ["TORCH"]


def _torch(*, on_gpu: bool = False, compiled: bool = False) -> Runtime:
    def runner(path: Path, num_threads: int) -> Any:
        from experiment.deployed.graphs import ModelRunner  # which loads torch and mmdet

        device = "cuda:0" if on_gpu else "cpu"
        return ModelRunner(path, num_threads=num_threads, device=device, compiled=compiled)

    return Runtime(".safetensors", runner, "expected a model file")


TORCH = {
    "torch": _torch(),
    "torch_compile": _torch(compiled=True),
    "torch_cuda": _torch(on_gpu=True),
    "torch_compile_cuda": _torch(on_gpu=True, compiled=True),
}
RUNTIMES |= TORCH
