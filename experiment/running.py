"""The stages of a run, done by one process or shared by several; where one fails, the rest goes on.

Processes share the work by claims: locks on files, one for each stage, which die with their owner. Any number of them
may work in a folder, on one machine or on several that see the same disk.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from classify.mmengine_runner import using_threads
from command.errors import WorkError, is_lack_of_memory
from command.files import shown
from command.progress import RunProgress
from experiment.claims import Claims
from experiment.stages import LATENCY, Stage, StageStore
from experiment.status import StatusFile

__all__ = ["parent_process", "run_stages", "with_workers"]

_WAIT_S = 0.5
_LOG = "worker-%d.log"
_PARENT = "ESPALIER_PARENT"
"""Environment variable: number of the process whose worker this one is."""


def run_stages(
    stages: Sequence[Stage], store: StageStore, progress: RunProgress, num_threads: int, parent: int | None = None
) -> None:
    """Do the stages, or what other processes leave of them; return when each is finished, or failed.

    Args:
        stages: In an order in which they can run.
        store: Where they are kept.
        progress: Has the costs of `stages`.
        num_threads: Of torch.
        parent: Process without which this one stops after its stage.
    """
    claims, status = Claims(store.root), StatusFile(store.root.parent)
    while left := [stage for stage in stages if not store.is_finished(stage) and not claims.reason(stage)]:
        for place, stage in enumerate(stages):
            if stage in left and _can_run(stage, left, store):
                with claims.claimed(stage.key) as is_ours:
                    if is_ours and not store.is_finished(stage) and not claims.reason(stage):
                        progress.finished(i for i, one in enumerate(stages) if store.is_finished(one))
                        _run(stage, place, store, claims, progress, status, num_threads)
                        break
        else:
            status.refresh()
            time.sleep(_WAIT_S)  # others work on what is left
        if parent is not None and os.getppid() != parent:
            return


def _can_run(stage: Stage, left: Sequence[Stage], store: StageStore) -> bool:
    """Return whether all that the stage reads is there; times are taken when nothing else runs, one after another."""
    is_alone = all(one.name == LATENCY for one in left) and stage is left[0]
    return all(map(store.is_finished, stage.inputs)) and (stage.name != LATENCY or is_alone)


def _run(
    stage: Stage,
    place: int,
    store: StageStore,
    claims: Claims,
    progress: RunProgress,
    status: StatusFile,
    num_threads: int,
) -> None:
    try:
        with (
            progress.stage(stage.name, place),
            claims.noted(stage, progress, status.refresh) as report,
            using_threads(num_threads),
        ):
            store.run(stage, report)
    except Exception as error:
        if not (isinstance(error, WorkError) or is_lack_of_memory(error)):
            raise
        reason = str(error) or "out of memory"
        claims.add(stage, reason)
        sys.stderr.write(f"espalier: {stage.name} failed, the rest goes on: {shown(reason)}\n")


@contextmanager
def with_workers(num: int, folder: Path) -> Iterator[None]:
    """Let so many more processes share this one's run while the block runs; each has a GPU of its own where it can.

    Args:
        num: Processes besides this one, which are given the same command.
        folder: The run's; their output goes into files in it.
    """
    workers = []
    try:
        for number in range(1, num + 1):
            with (folder / (_LOG % number)).open("w") as log:
                own = ["--join", "--out", str(folder)]  # first: what follows may end with `-- CONFIG`
                command = [sys.executable, "-m", "espalier", *sys.argv[1:2], *own, *sys.argv[2:]]
                workers.append(subprocess.Popen(command, env=_environment(number), stdout=log, stderr=log))
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def parent_process() -> int | None:
    """Return the process that this one works for; None if a user started it."""
    return int(os.environ[_PARENT]) if _PARENT in os.environ else None


def _environment(number: int) -> dict[str, str]:
    num_gpus = torch.cuda.device_count()
    own = {**os.environ, _PARENT: str(os.getpid())}
    return {**own, **({"CUDA_VISIBLE_DEVICES": str(number % num_gpus)} if num_gpus > 1 else {})}
