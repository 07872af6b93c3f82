"""How mmengine's Runner is built and kept silent, and how many threads compute."""

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from classify.resume import ResumableRunner

__all__ = ["make_runner", "silent", "using_threads"]

_NUMBERS = itertools.count()
"""Numbers the Runners of this process: mmengine gives two with the same name and second the same log."""


def make_runner(model: BaseModel, work_dir: Path, seed: int = 0, scope: str = "mmengine", **settings: Any) -> Runner:
    """Return a Runner that logs below `work_dir` and prints nothing on the terminal."""
    name = f"{work_dir.resolve()}-{next(_NUMBERS)}"
    # Two checkpoints: one is deleted before the next is written, and a kill in between must leave one.
    checkpoint = {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2}
    hooks = {"checkpoint": checkpoint, "runtime_info": _Place(), "timer": None, "logger": None}  # the curve is our log
    # The Runner's logger keeps the stream it was created with: created silent, it writes to its file only.
    with silent():
        return ResumableRunner(
            model=model,
            work_dir=str(work_dir),
            experiment_name=name,
            randomness={"seed": seed},
            default_hooks=hooks,
            default_scope=scope,
            **settings,
        )


@contextlib.contextmanager
def using_threads(num_threads: int) -> Iterator[None]:
    """Compute with so many CPU threads in the block: weights depend on it, as sums are added in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def silent() -> contextlib.AbstractContextManager[Any]:
    """Suppress what libraries print on the terminal."""
    return contextlib.redirect_stdout(_Nowhere())


class _Nowhere(io.TextIOBase):
    def write(self, text: str) -> int:
        return len(text)


class _Place(RuntimeInfoHook):
    """Tells mmdet's parts the epoch and the iteration; mmengine's own also reads and keeps every loss, for its log."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Tell the iteration."""
        runner.message_hub.update_info("iter", runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Keep nothing."""
