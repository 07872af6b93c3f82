"""What happens around the iterations of a training: seeds, the curve, progress, the end of one that diverges."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner, set_random_seed
from torch import Tensor

from classify.curve import Curve, Epoch, Iteration
from classify.tracking import Tracker
from command.errors import WorkError

__all__ = ["CurveKeeper", "EpochSeed", "LaterStart", "Progress", "SharedStatistics", "StepAverage", "check_outputs"]

_CURVE, _KEPT_PER_EPOCH = "curve", 20
"""The curve's name in a checkpoint; how many iterations of an epoch it has, at most."""
_CHECKED_IMAGES = 2
"""Of the training's, on which its model is tried once it is over."""
_READ_EVERY = 20
"""Iterations after which a GPU is waited for to read its losses; on a CPU, each time."""

Progress = Callable[[int, int, Callable[[], str]], None]
"""Called after every iteration with (iterations done, iterations in all, what says in words how it goes)."""


class EpochSeed(Hook):
    """Starts every epoch from its own seed, and from a whole batch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train(self, runner: Runner) -> None:
        """Let the processes that load, which live longer than an epoch, see its seed; mmengine copied the data set."""
        runner.train_dataloader.dataset.seed.share_memory_()

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the seeds."""
        runner.train_dataloader.dataset.seed.fill_((self.seed * 100_003 + runner.epoch) % 2**32)
        set_random_seed((self.seed * 100_003 + runner.epoch + get_rank() * 7919) % 2**32)
        # parts that are left over at the end of an epoch make a step: no checkpoint has their gradients
        runner.optim_wrapper.initialize_count_status(runner.model, 0, len(runner.train_dataloader))


class LaterStart(Hook):
    """Starts a training in the middle of its schedule: another network had the epochs before."""

    def __init__(self, first_epoch: int) -> None:
        self.first_epoch = first_epoch

    def before_train(self, runner: Runner) -> None:
        """Skip these epochs, unless the training is resumed in a later one."""
        if runner.epoch >= self.first_epoch:
            return
        num_batches = len(runner.train_dataloader)
        runner.train_loop._epoch = self.first_epoch
        runner.train_loop._iter = self.first_epoch * num_batches
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Detected call of `scheduler.step"
            )  # of schedulers ahead of the optimizer
            for scheduler in runner.param_schedulers:
                for _ in range(self.first_epoch * (1 if scheduler.by_epoch else num_batches)):
                    scheduler.step()


class StepAverage(EMAHook):
    """Averages the weights once a step; mmengine's own does once for every part of a batch."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Update the average if the iteration ended with a step."""
        if runner.optim_wrapper.should_update():
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


class SharedStatistics(Hook):
    """Gives all processes the mean of their statistics, BatchNorm's, after every epoch.

    Each process has its own while it trains, of its part of the images; files and checkpoints hold one process's.
    """

    def __init__(self, averages: Sequence[EMAHook]) -> None:
        self._averages = averages

    def after_train_epoch(self, runner: Runner) -> None:
        """Set the buffers of the model and of its averaged copies."""
        models = [runner.model, *(average.ema_model for average in self._averages)]
        buffers = [buffer for model in models for buffer in model.buffers() if buffer.is_floating_point()]
        if get_world_size() == 1 or not buffers:
            return
        # in float64 the mean of equal constants is exactly what they are, for any number of processes
        means = torch.cat([buffer.double().flatten() for buffer in buffers])
        all_reduce(means, "mean")
        for buffer, mean in zip(buffers, means.split([buffer.numel() for buffer in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))


@dataclass(frozen=True)
class _Step:
    """An iteration whose losses are perhaps still being computed."""

    batch_idx: int
    iteration: int
    lr: float
    losses: dict[str, Tensor]


class CurveKeeper(Hook):
    """Gathers the curve, reports progress, and stops a training whose loss or weights are no longer finite.

    Whole epochs are in the checkpoints, so that a resumed training has each of them once.
    """

    curve = Curve()

    def __init__(self, progress: Progress | None = None, tracker: Tracker | None = None) -> None:
        self.progress, self.tracker = progress, tracker

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin with no iteration."""
        self.sums: dict[str, float] = {}
        self.kept: list[Iteration] = []
        self.waiting: list[_Step] = []
        self.known = next((epoch for epoch in reversed(self.curve.epochs) if "top1" in epoch.figures), None)
        self.began = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        """Keep the losses; report."""
        losses = {name: value.detach() for name, value in (outputs or {}).items() if "loss" in name}
        self.lr = runner.optim_wrapper.param_groups[0]["lr"]  # of this step: schedules go on after this hook
        self.waiting.append(_Step(batch_idx, runner.iter + 1, self.lr, losses))
        if len(self.waiting) == _READ_EVERY or not losses["loss"].is_cuda:
            self._read(runner)
        if self.progress:
            self.progress(runner.iter + 1, runner.max_iters, partial(self._in_words, runner, batch_idx + 1))

    def after_train_epoch(self, runner: Runner) -> None:
        """Add the epoch to the curve."""
        self._read(runner)
        _check_weights(runner)
        means = {name: total / len(runner.train_dataloader) for name, total in self.sums.items()}
        means, self.kept = _over_processes(means, self.kept)
        epoch = Epoch(epoch=runner.epoch + 1, lr=self.lr, losses=means)
        iterations = (*self.curve.iterations, *self.kept)
        self.curve = Curve(epochs=(*self.curve.epochs, epoch), iterations=iterations)
        self._track(means, "epoch", runner.iter)

    def add_figures(self, figures: dict[str, float]) -> None:
        """Add figures on the validation images to the last epoch."""
        self.curve = self.curve.evaluated(figures)
        self._track(figures, "validation")

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Put the curve into the checkpoint."""
        checkpoint[_CURVE] = self.curve.model_dump(mode="json")

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Take the curve from the checkpoint."""
        self.curve = Curve.model_validate(checkpoint.get(_CURVE, {}))  # none in those of earlier versions
        if self.tracker:
            self.tracker.replay(self.curve, len(runner.train_dataloader))

    def _read(self, runner: Runner) -> None:
        """Add the losses that wait, all in one copy from the GPU."""
        if not self.waiting:
            return
        values = iter(torch.stack([loss for step in self.waiting for loss in step.losses.values()]).tolist())
        for step in self.waiting:
            self._add(runner, step, {name: next(values) for name in step.losses})
        self.waiting = []

    def _add(self, runner: Runner, step: _Step, losses: dict[str, float]) -> None:
        self.loss = losses["loss"]
        if not math.isfinite(self.loss):
            where = f"epoch {runner.epoch + 1}, iteration {step.batch_idx + 1}"
            raise WorkError(f"{runner.work_dir}: the loss is {self.loss} at {where}, {_remedy(step.lr)}")
        self.sums = {name: self.sums.get(name, 0.0) + loss for name, loss in losses.items()}
        if step.batch_idx % math.ceil(len(runner.train_dataloader) / _KEPT_PER_EPOCH) == 0:
            self.kept.append(Iteration(iteration=step.iteration, loss=self.loss, lr=step.lr))
            self._track({"loss": self.loss, "learning rate": step.lr}, "iteration", step.iteration)

    def _track(self, figures: dict[str, float], prefix: str, step: int | None = None) -> None:
        if self.tracker:
            self.tracker.write(figures, prefix, step)

    def _in_words(self, runner: Runner, num_batches: int) -> str:
        loader = runner.train_dataloader
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", 1)  # of mmdet's sampler of batches
        num_images = num_batches * size * get_world_size()
        speed = num_images / max(time.monotonic() - self.began, 1e-9)
        loss = f"loss {self.loss:.4g}, " if hasattr(self, "loss") else ""
        return (
            f"epoch {runner.epoch + 1} of {runner.max_epochs}, {loss}{self._accuracy()}learning rate {self.lr:.3g}, "
            f"{speed:,.{0 if speed >= 10 else 1}f} images a second"
        )

    def _accuracy(self) -> str:
        if self.known is None:
            return ""
        return f"validation accuracy {100 * (self.known.figures['top1'] or 0):.1f} % after epoch {self.known.epoch}, "


def _check_weights(runner: Runner) -> None:
    """Raise WorkError if weights are not finite: a step can break them after a loss that is."""
    floats = [tensor for tensor in runner.model.state_dict().values() if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in floats]).all():
        lr = runner.optim_wrapper.param_groups[0]["lr"]
        raise WorkError(f"{runner.work_dir}: weights are not finite after epoch {runner.epoch + 1}, {_remedy(lr)}")


def check_outputs(runner: Runner, model: BaseModel, lr: float) -> None:
    """Raise WorkError if a trained model's loss is not finite: nothing else reads what the last step left.

    Args:
        runner: Of the training, which is over.
        model: In eval mode: as whoever reads it will use it.
        lr: Named in the error.
    """
    loader = runner.train_dataloader
    few = loader.collate_fn([loader.dataset[i] for i in range(min(_CHECKED_IMAGES, len(loader.dataset)))])
    with torch.no_grad():
        losses = model(**model.data_preprocessor(few, training=True), mode="loss")
    loss, _ = model.parse_losses(losses)
    if not loss.isfinite():
        raise WorkError(
            f"{runner.work_dir}: the trained model's loss is {loss.item()}, after epoch {runner.epoch}, iteration "
            f"{runner.iter} in all, {_remedy(lr)}"
        )


def _remedy(lr: float) -> str:
    return f"learning rate {lr:.3g}; lower it"


def _over_processes(means: dict[str, float], kept: list[Iteration]) -> tuple[dict[str, float], list[Iteration]]:
    """Return losses as their means over all processes, which had equal parts of each batch."""
    values = torch.tensor([*means.values(), *(iteration.loss for iteration in kept)], dtype=torch.float64)
    all_reduce(values, "mean")
    found = iter(values.tolist())
    return {name: next(found) for name in means}, [one.model_copy(update={"loss": next(found)}) for one in kept]
