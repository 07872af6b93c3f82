"""Checkpoints of a training: written whole, read without executing anything in them."""

import zipfile
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from classify.checkpoint import UNREADABLE, torch_content
from command.errors import WorkError
from command.files import written_atomically

__all__ = ["ResumableRunner", "newest_checkpoint"]

_KEPT = "keep_ckpt_ids"
"""What mmengine's CheckpointHook remembers to delete old checkpoints: the numbers of the epochs that it kept."""
_UNFIT = (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError)
"""What mmengine and torch raise if a state is not that of this training."""


class ResumableRunner(Runner):
    """mmengine's Runner with checkpoints of tensors, numbers and text only.

    mmengine's own also hold its config as Python, which it runs when it resumes, and logs as pickled objects.
    """

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Write the checkpoint whole or not at all."""
        if is_main_process():
            with written_atomically(Path(out_dir) / filename) as beside:
                super().save_checkpoint(out_dir, beside.name, *args, **kwargs)

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
        fresh = [_kinds(scheduler.state_dict()) for scheduler in self.param_schedulers or ()]
        if [_kinds(state) for state in checkpoint["param_schedulers"]] != fresh:  # would replace their methods
            raise _refusal(filename, "other learning rates")
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
        except WorkError:
            raise
        except _UNFIT as error:
            raise _refusal(self._load_from, str(error)) from error


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in the folder that is not cut short."""
    checkpoints = [path for path in folder.glob("epoch_*.pth") if path.stem.removeprefix("epoch_").isdecimal()]
    whole = filter(zipfile.is_zipfile, checkpoints)
    return max(whole, key=lambda path: int(path.stem.removeprefix("epoch_")), default=None)


def _reduce(checkpoint: dict[str, Any]) -> None:
    """Drop what resuming does not need, in place."""
    kept = checkpoint["message_hub"]["runtime_info"].get(_KEPT, [])
    checkpoint["meta"] = {key: checkpoint["meta"][key] for key in ("epoch", "iter")}
    checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {_KEPT: kept}, "resumed_keys": {_KEPT: True}}


def _read(path: Path, map_location: Any) -> dict[str, Any]:
    try:
        checkpoint = torch_content(path, map_location)
        kept = [int(number) for number in checkpoint["message_hub"]["runtime_info"][_KEPT]]
        checkpoint["meta"] = {key: int(checkpoint["meta"][key]) for key in ("epoch", "iter")}
    except (*UNREADABLE, *_UNFIT) as error:
        raise _refusal(path, "something else in it") from error
    checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {_KEPT: kept}, "resumed_keys": {_KEPT: True}}
    return dict(checkpoint)


def _kinds(state: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in state.items()}


def _refusal(path: object, reason: str) -> WorkError:
    reason = " ".join(reason.split())[:200]
    return WorkError(
        f"{path}: not a checkpoint of this training, got {reason}; delete it and give the same command again"
    )
