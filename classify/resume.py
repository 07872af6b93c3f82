"""Checkpoints of a training: written whole, read without executing anything in them."""

from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from classify.checkpoint import UNREADABLE, torch_content
from command.errors import WorkError, is_of_the_machine
from command.files import sha256_of, written_atomically
from command.notes import note

__all__ = ["ResumableRunner", "newest_checkpoint"]

_KEPT = "keep_ckpt_ids"
"""What mmengine's CheckpointHook remembers to delete old checkpoints: the numbers of the epochs that it kept."""
_COUNTED, _MOST_STEPS = ("last_step", "_global_step", "_last_value", "lr"), 10**12
"""What changes in the state of a schedule or of an optimizer, besides its tensors; and no such number is above this."""
_UNFIT = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError)
"""What mmengine and torch raise if a state is not that of this training."""


class ResumableRunner(Runner):
    """mmengine's Runner with checkpoints of tensors, numbers and text only.

    mmengine's own also hold its config as Python, which it runs when it resumes, and logs as pickled objects.
    """

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write the checkpoint whole or not at all."""
        if is_main_process():
            path = Path(out_dir) / filename
            with written_atomically(path) as beside:
                super().save_checkpoint(out_dir, beside.name, *args, **kwargs)
            with written_atomically(_sum_file(path)) as beside:
                beside.write_text(sha256_of(path))
            for left in path.parent.glob(_sum_file(Path("epoch_*.pth")).name):  # mmengine deletes checkpoints alone
                if not left.with_suffix("").exists():
                    left.unlink()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call the hooks; before a checkpoint is saved, reduce it to what resuming needs."""
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":
            _reduce(kwargs["checkpoint"])

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", **_: Any) -> dict[str, Any]:
        """Load the weights of a checkpoint that `save_checkpoint` wrote; return all that is in it.

        Raises:
            WorkError: If it is something else.
        """
        checkpoint = _read(Path(filename), map_location)
        rates = [scheduler.state_dict() for scheduler in self.param_schedulers or ()]
        if not _is_alike(rates, checkpoint["param_schedulers"]):  # would replace their methods
            raise _refusal(filename, "other learning rates")
        groups = self.optim_wrapper.state_dict()["param_groups"]
        if not _is_alike(groups, checkpoint["optimizer"]["param_groups"]):
            raise _refusal(filename, "another optimizer")
        epoch, iteration = checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"]
        if not 1 <= epoch <= self.max_epochs or iteration != epoch * len(self.train_dataloader):
            raise _refusal(filename, f"epoch {epoch} of {self.max_epochs}, iteration {iteration}")
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        (self.model.module if is_model_wrapper(self.model) else self.model).load_state_dict(checkpoint["state_dict"])
        return checkpoint

    def load_or_resume(self) -> None:
        """Resume, where `resume` and `load_from` are given.

        Raises:
            WorkError: If the checkpoint is not of this training.
        """
        try:
            super().load_or_resume()
            if self._load_from:
                self._check_optimizer()
        except WorkError:
            raise
        except _UNFIT as error:
            if is_of_the_machine(error):  # the checkpoint is good, the memory too small
                raise
            raise _refusal(self._load_from, str(error)) from error

    def _check_optimizer(self) -> None:
        state = self.optim_wrapper.optimizer.state
        if not all(_is_state_of(parameter, found) for parameter, found in state.items()):
            raise ValueError("state of other weights in its optimizer")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in the folder that is as it was written; newer ones that are not are named."""
    checkpoints = [path for path in folder.glob("epoch_*.pth") if path.is_file() and path.stem[6:].isdecimal()]
    for path in sorted(checkpoints, key=lambda path: int(path.stem[6:]), reverse=True):
        if _is_whole(path):
            return path
        if is_main_process():
            note(f"{path}: not as it was written, cut off or damaged; the training goes on from an earlier epoch")
    return None


def _sum_file(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name}.sha256")


def _is_whole(checkpoint: Path) -> bool:
    known = _sum_file(checkpoint)
    return known.is_file() and known.read_bytes() == sha256_of(checkpoint).encode()


def _reduce(checkpoint: dict[str, Any]) -> None:
    """Drop what resuming does not need, in place."""
    kept = checkpoint["message_hub"]["runtime_info"].get(_KEPT, [])
    checkpoint["meta"] = {key: checkpoint["meta"][key] for key in ("epoch", "iter")}
    checkpoint["message_hub"] = _message_hub(kept)


def _message_hub(kept: list[int]) -> dict[str, Any]:
    return {"log_scalars": {}, "runtime_info": {_KEPT: kept}, "resumed_keys": {_KEPT: True}}


def _read(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        checkpoint = torch_content(path, map_location)
        kept = [int(number) for number in checkpoint["message_hub"]["runtime_info"][_KEPT]]
        checkpoint["meta"] = {key: int(checkpoint["meta"][key]) for key in ("epoch", "iter")}
    except (*UNREADABLE, *_UNFIT) as error:
        if is_of_the_machine(error):
            raise
        raise _refusal(path, "something else in it") from error
    checkpoint["message_hub"] = _message_hub(kept)
    return dict(checkpoint)


def _is_alike(fresh: Any, found: Any, is_counted: bool = False) -> bool:
    """Return whether a state is a fresh one of the same settings after some steps."""
    if type(fresh) is not type(found):
        return False
    if isinstance(fresh, dict):
        return fresh.keys() == found.keys() and all(_is_alike(fresh[key], found[key], key in _COUNTED) for key in fresh)
    if isinstance(fresh, list | tuple):
        return len(fresh) == len(found) and all(
            _is_alike(one, other, is_counted) for one, other in zip(fresh, found, strict=True)
        )
    return bool(abs(found) < _MOST_STEPS if is_counted else found == fresh)


def _is_state_of(parameter: Tensor, state: dict[str, Any]) -> bool:
    """Return whether an optimizer's state of a parameter holds single numbers and tensors of its shape alone."""
    return all(value is None or value.shape in ((), parameter.shape) for value in state.values())


def _refusal(path: object, reason: str) -> WorkError:
    reason = " ".join(reason.split())[:200]
    return WorkError(
        f"{path}: not a checkpoint of this training, got {reason}; delete it and give the same command again"
    )
