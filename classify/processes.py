"""Several processes that train one model, one for each GPU: started by torchrun or Slurm, on one machine or many."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from classify.liveness import Liveness
from command.errors import RequestError, WorkError
from command.options import Launcher

__all__ = ["Processes", "processes"]

_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
_IN_SLURM = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
_PATIENCE = timedelta(hours=3)
"""Others wait this long while the first process examines the data; one that ends is noticed in a minute."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    life: Liveness | None = None

    @property
    def is_first(self) -> bool:
        """Whether it is the one that examines data, reports and writes."""
        return self.rank == 0

    @contextmanager
    def first_one_first(self) -> Iterator[None]:
        """Run the block in the first process and then in the others: what it remembers and generates is there then."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def leave(self) -> None:
        """Part from the others for good: what follows is done by each process alone."""
        self.wait()  # none of them is missed by one that is still here
        if self.life:
            self.life.stop()
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def processes(launcher: Launcher | None) -> Iterator[Processes]:
    """Join the processes that were started together, until the block ends; without a launcher there is this one alone.

    They talk through NCCL where there are GPUs, else through gloo.

    Raises:
        RequestError: If this process was not started by that launcher, or by one that is not named.
        WorkError: If another process ended during the block; its message is in it. Where this process cannot notice by
            itself, it is ended within a minute.
    """
    if launcher is None:
        if os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1"):
            raise RequestError("--launcher: none given, got a process of torchrun; add --launcher pytorch")
        yield Processes()
        return
    _prepare(launcher)
    if torch.cuda.is_available():
        torch.cuda.set_device(_own_gpu(launcher, int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    life = Liveness(distributed.get_rank(), distributed.get_world_size())
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), life)
    except BaseException as error:
        if _is_of_another(error):
            raise WorkError(life.reason()) from error
        life.tell(error)
        raise
    finally:
        with contextlib.suppress(RuntimeError):  # others may be gone
            if distributed.is_initialized():
                distributed.destroy_process_group()
        life.stop()


def _own_gpu(launcher: Launcher, local_rank: int, num_gpus: int) -> int:
    """Return the GPU of a process among those that it sees; Slurm may show each task its own alone."""
    if launcher == "slurm" and num_gpus == 1:
        return 0
    if local_rank >= num_gpus:
        raise RequestError(
            f"--launcher {launcher}: more processes than GPUs on this machine, got process {local_rank + 1} and "
            f"{num_gpus} visible; start one for each GPU"
        )
    return local_rank


def _is_of_another(error: BaseException) -> bool:
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _prepare(launcher: Launcher) -> None:
    """Set what `init_process_group` reads from the environment, where Slurm tells it in another way."""
    if launcher == "slurm" and all(name in os.environ for name in _IN_SLURM.values()):
        os.environ.update({name: os.environ[given] for name, given in _IN_SLURM.items()})
        if "MASTER_ADDR" not in os.environ:
            nodes = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
            found = subprocess.run(nodes, capture_output=True, text=True).stdout.split()
            if not found:
                raise RequestError("scontrol: names no node of this job, got nothing; set MASTER_ADDR to one of them")
            os.environ["MASTER_ADDR"] = found[0]
        os.environ.setdefault("MASTER_PORT", "29500")
    missing = [name for name in _NEEDED if name not in os.environ]
    if missing:
        start = "srun --kill-on-bad-exit=1" if launcher == "slurm" else "torchrun --nproc_per_node N -m"
        raise RequestError(
            f"--launcher {launcher}: not started by it, got no {missing[0]} in the environment; "
            f"start it with: {start} espalier ..."
        )
    for name in _NUMBERS:
        if not os.environ[name].isdecimal():
            raise RequestError(f"{name}: no whole number, got {os.environ[name]!r}; it is set by what starts processes")
    rank, _, size, port = (int(os.environ[name]) for name in _NUMBERS)
    if not rank < size or not 0 < port < 2**16:
        raise RequestError(
            f"RANK, WORLD_SIZE, MASTER_PORT: do not fit, got {rank}, {size} and {port}; expected a rank below the "
            "size, and a port below 65536"
        )
