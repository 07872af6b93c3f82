"""The stages of a run, done by one process or shared by several; where one fails, the rest goes on.

Processes share the work by claims: locks on files, one for each stage, which die with their owner. Any number of them
may work in a folder, on one machine or on several that see the same disk.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from pydantic import BaseModel

from classify.mmengine_runner import using_threads
from command.errors import RequestError, WorkError, is_lack_of_memory
from command.files import check_folder, make_folder, model_from_json, shown, write_json
from command.progress import RunProgress
from experiment.stages import Stage, StageStore

__all__ = ["FailedStages", "parent_process", "run_stages", "with_workers"]

_WAIT_S = 0.5
_LOG = "worker-%d.log"
_PARENT = "ESPALIER_PARENT"
"""Environment variable: number of the process whose worker this one is."""


class _Failure(BaseModel):
    """Why a stage failed, as the file says it."""

    reason: str


class FailedStages:
    """What failed in a run, as files, so that no process of it tries a stage again."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "claims"

    def check(self) -> None:
        """Raise RequestError if there is something else where a run puts these files, and its locks."""
        check_folder(self._folder)
        for path in self._folder.glob("*.*"):
            if path.suffix in (".failed", ".lock") and (path.is_symlink() or not path.is_file()):
                raise RequestError(f"{path}: not a file that a run made; delete it and give the same command again")

    def clear(self) -> None:
        """Forget them: a run that is given again tries again."""
        for path in self._folder.glob("*.failed"):
            path.unlink(missing_ok=True)

    def add(self, stage: Stage, reason: str) -> None:
        """Keep why a stage failed."""
        write_json(self._path(_name(stage), "failed"), {"reason": reason})

    def reason(self, stage: Stage) -> str | None:
        """Return why a stage failed, or one that it needs; None if none did."""
        return self.own_reason(stage) or next(filter(None, map(self.reason, stage.inputs)), None)

    def own_reason(self, stage: Stage) -> str | None:
        """Return why the stage itself failed; None if it did not."""
        path = self._path(_name(stage), "failed")
        if path.is_file():
            with contextlib.suppress(FileNotFoundError):  # a run that is given again has just deleted it
                return model_from_json(_Failure, path, "delete it and give the same command again").reason
        return None

    @contextmanager
    def claimed(self, name: str) -> Iterator[bool]:
        """Yield whether this process alone may work on the stage whose folder has that name, until the block ends."""
        make_folder(self._folder)
        lock = FileLock(self._path(name, "lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def was_claimed(self, name: str) -> bool:
        """Return whether a process of the run ever worked on the stage whose folder has that name."""
        return self._path(name, "lock").is_file()

    def _path(self, name: str, ending: str) -> Path:
        return self._folder / f"{name}.{ending}"


def _name(stage: Stage) -> str:
    return f"{stage.name}-{stage.hash}"


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
    failed = FailedStages(store.root)
    while left := [stage for stage in stages if not store.is_finished(stage) and not failed.reason(stage)]:
        for place, stage in enumerate(stages):
            if stage in left and _can_run(stage, left, store):
                with failed.claimed(store.folder(stage).name) as is_ours:
                    if is_ours and not store.is_finished(stage) and not failed.reason(stage):
                        progress.finished(i for i, one in enumerate(stages) if store.is_finished(one))
                        _run(stage, place, store, failed, progress, num_threads)
                        break
        else:
            time.sleep(_WAIT_S)  # others work on what is left
        if parent is not None and os.getppid() != parent:
            return


def _can_run(stage: Stage, left: Sequence[Stage], store: StageStore) -> bool:
    """Return whether all that the stage reads is there; times are taken when nothing else runs."""
    return all(map(store.is_finished, stage.inputs)) and (stage.name != "latency" or len(left) == 1)


def _run(
    stage: Stage, place: int, store: StageStore, failed: FailedStages, progress: RunProgress, num_threads: int
) -> None:
    try:
        with progress.stage(stage.name, place), using_threads(num_threads):
            store.run(stage, progress)
    except Exception as error:
        if not (isinstance(error, WorkError) or is_lack_of_memory(error)):
            raise
        reason = str(error) or "out of memory"
        failed.add(stage, reason)
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
