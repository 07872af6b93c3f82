"""Training through mmengine's Runner: resumable, the same result whether it was interrupted or not.

`fit` trains any mmengine model, detectors included; `train_classifier` is its use for images and labels.
"""

import contextlib
import copy
import io
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, OPTIM_WRAPPERS, DefaultScope
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn
from torch.utils.data import Dataset

from classify.curve import Curve, Epoch, Iteration
from classify.data import MEAN, STD
from classify.resume import ResumableRunner, newest_checkpoint
from classify.schedule import Schedule
from command.errors import RequestError, WorkError

__all__ = [
    "BFloat16Wrapper",
    "ClassifierModel",
    "Progress",
    "check_batch_size",
    "collate",
    "fit",
    "make_runner",
    "silent",
    "train_classifier",
    "using_threads",
]

_NUMBERS = itertools.count()
"""Numbers the Runners of this process: mmengine gives two with the same name and second the same log."""

_CURVE, _KEPT_PER_EPOCH = "curve", 20
"""The curve's name in a checkpoint; how many iterations of an epoch it has, at most."""

Progress = Callable[[int, int], None]
"""Called after every iteration with (iterations done, iterations in all)."""


class ClassifierModel(BaseModel):
    """A classification network as mmengine trains it: uint8 RGB images in, cross-entropy or class scores out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(ImgDataPreprocessor(mean=list(MEAN), std=list(STD)))
        self.net = net

    def forward(self, inputs: Tensor, data_samples: Tensor, mode: str = "tensor") -> Any:
        """Return {"loss"} in mode "loss", (scores, label) pairs in mode "predict", else scores (N, classes)."""
        scores = self.net(inputs)
        if mode == "loss":
            return {"loss": nn.functional.cross_entropy(scores, data_samples)}
        return list(zip(scores, data_samples, strict=True)) if mode == "predict" else scores


def train_classifier(
    net: nn.Module,
    dataset: Dataset[Any],
    schedule: Schedule,
    work_dir: Path,
    seed: int,
    progress: Progress | None = None,
    model: ClassifierModel | None = None,
) -> Curve:
    """Train `net` in place on (uint8 image (3, S, S), label) pairs; goes on from `work_dir` if it was interrupted.

    A last batch of a single image, which BatchNorm may refuse, is left out. `model` is `net` with another loss than
    cross-entropy.

    Raises:
        RequestError: As `check_batch_size`, and if there is only one image.
    """
    num_images: int = len(dataset)  # type: ignore[arg-type]  # every one here has a length
    side = dataset[0][0].shape[-1]
    check_batch_size(net, side, min(schedule.batch_size, num_images))
    is_last_alone = num_images % schedule.batch_size == 1 < schedule.batch_size
    loader = {"dataset": dataset, "collate_fn": collate, "drop_last": is_last_alone and not _learns_from_one(net, side)}
    return fit(model or ClassifierModel(net), loader, schedule, work_dir, seed, progress)


def check_batch_size(net: nn.Module, image_size: int, batch_size: int) -> None:
    """Raise RequestError if batches have a single image, and a normalisation layer cannot train on one of that size."""
    if batch_size == 1 and not _learns_from_one(net, image_size):
        raise RequestError("batch_size: BatchNorm has one value per channel, got batches of one; expected 2 or more")


def _learns_from_one(net: nn.Module, image_size: int) -> bool:
    try:
        copy.deepcopy(net).train()(torch.zeros(1, 3, image_size, image_size))
    except ValueError:  # of BatchNorm
        return False
    return True


def fit(
    model: BaseModel,
    loader: dict[str, Any],
    schedule: Schedule,
    work_dir: Path,
    seed: int,
    progress: Progress | None = None,
    scope: str = "mmengine",
) -> Curve:
    """Train `model` in place, and return its curve.

    Every epoch starts from its own seed, so a run resumed at the last complete epoch equals an uninterrupted one.

    Args:
        model: Modified; on return it is on the CPU, in eval mode.
        loader: mmengine's data loader dictionary without sampler and batch size.
        schedule: Epochs, batch size and learning rate.
        work_dir: Holds log and checkpoints; training goes on from the newest checkpoint in it.
        seed: Of shuffling, augmentation and sampling; not of the weights, which come with `model`.
        progress: Called after every iteration.
        scope: mmengine's registry scope of the model and its data.

    Raises:
        WorkError: If the loss becomes NaN or infinite.
    """
    with DefaultScope.overwrite_default_scope(scope), silent():
        dataset = _Seeded(
            DATASETS.build(loader["dataset"]) if isinstance(loader["dataset"], dict) else loader["dataset"]
        )
    train_loader = {
        "batch_size": _part_of_batch(schedule),
        "num_workers": schedule.num_workers,
        "sampler": {"type": "DefaultSampler", "shuffle": True},
        **loader,
        "dataset": dataset,
    }
    if schedule.channels_last:
        model.to(memory_format=torch.channels_last)
    keeper = _CurveKeeper()
    averages = [EMAHook(momentum=1 - schedule.ema, update_buffers=True)] if schedule.ema else []
    runner = make_runner(
        model,
        work_dir,
        seed,
        scope,
        train_dataloader=train_loader,
        train_cfg={"by_epoch": True, "max_epochs": schedule.epochs},
        optim_wrapper=_optim_wrapper(schedule),
        param_scheduler=_param_scheduler(schedule),
        custom_hooks=[_EpochSeed(seed), _Watch(progress), keeper, *averages],
        launcher="none" if get_world_size() == 1 else "pytorch",  # joined already, whoever started them
        cfg=_runner_options(schedule),
        **_resumption(work_dir),
    )
    with silent():
        try:
            runner.train()
        except WorkError as error:  # with the trace in its message, if it comes from a process that loads data
            raise WorkError(str(error).splitlines()[-1].removeprefix("command.errors.WorkError: ")) from error
    for average in averages:
        average._swap_ema_parameters()
    model.cpu().eval()
    return keeper.curve


def _part_of_batch(schedule: Schedule) -> int:
    """Return the images that a process takes at a time.

    Raises:
        RequestError: If the batch cannot be shared out equally.
    """
    size, parts = schedule.batch_size, get_world_size() * schedule.accumulate
    if size % parts:
        raise RequestError(
            f"batch_size: not shared out equally, got {size} for {get_world_size()} processes and accumulate="
            f"{schedule.accumulate}; expected a multiple of {parts}"
        )
    return size // parts


def _runner_options(schedule: Schedule) -> dict[str, Any]:
    """Return what mmengine's Runner takes by its config alone."""
    if schedule.sync_bn and not torch.cuda.is_available():
        raise RequestError("sync_bn: on GPUs only, got a CPU; expected False")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return {
        "compile": {"backend": schedule.compile} if schedule.compile else None,
        "sync_bn": "torch" if schedule.sync_bn else None,
        "model_wrapper_cfg": {"type": "MMDistributedDataParallel", "broadcast_buffers": False, "device_ids": devices},
    }


class _Seeded(Dataset[Any]):
    """A data set whose random crops and flips depend on the epoch and the image alone.

    They are the same whichever process loads an image, and how many there are.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.seed = dataset, 0
        self.metainfo = getattr(dataset, "metainfo", {})

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        seed = (self.seed * 1_000_003 + index) % 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return self.dataset[index]


def make_runner(model: BaseModel, work_dir: Path, seed: int = 0, scope: str = "mmengine", **settings: Any) -> Runner:
    """Return a Runner that logs below `work_dir` and prints nothing on the terminal."""
    name = f"{work_dir.resolve()}-{next(_NUMBERS)}"
    # Two checkpoints: one is deleted before the next is written, and a kill in between must leave one.
    checkpoint = {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2}
    with (
        silent()
    ):  # the Runner's logger keeps the stream it was created with: created silent, it writes to its file only
        return ResumableRunner(
            model=model,
            work_dir=str(work_dir),
            experiment_name=name,
            randomness={"seed": seed},
            default_hooks={"checkpoint": checkpoint, "logger": {"type": "LoggerHook", "interval": 10}},
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


def collate(batch: Sequence[tuple[Tensor, int]]) -> dict[str, Any]:
    """Return {"inputs": images, "data_samples": labels (N,)} as `ClassifierModel` takes them."""
    images, labels = zip(*batch, strict=True)
    return {"inputs": list(images), "data_samples": torch.tensor(labels)}


def _resumption(work_dir: Path) -> dict[str, Any]:
    """Return the Runner's arguments for resuming from the newest complete checkpoint in the folder, if there is one."""
    newest = newest_checkpoint(work_dir)
    return {"resume": True, "load_from": str(newest)} if newest else {}


class _EpochSeed(Hook):
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Runner) -> None:
        runner.train_dataloader.dataset.seed = (self.seed * 100_003 + runner.epoch) % 2**32
        set_random_seed((self.seed * 100_003 + runner.epoch + get_rank() * 7919) % 2**32)


class _CurveKeeper(Hook):
    """Gathers the curve; whole epochs are in the checkpoints, so that a resumed training has each of them once."""

    curve = Curve()

    def before_train_epoch(self, runner: Runner) -> None:
        self.sums: dict[str, float] = {}
        self.kept: list[Iteration] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        named = {name: value for name, value in (outputs or {}).items() if "loss" in name}
        # one copy from the GPU, not one for each
        losses = dict(zip(named, torch.stack([value.detach() for value in named.values()]).tolist(), strict=True))
        self.sums = {name: self.sums.get(name, 0.0) + loss for name, loss in losses.items()}
        self.lr = runner.optim_wrapper.get_lr()["lr"][0]  # of this step: schedules go on after this hook
        if batch_idx % math.ceil(len(runner.train_dataloader) / _KEPT_PER_EPOCH) == 0:
            self.kept.append(Iteration(iteration=runner.iter + 1, loss=losses["loss"], lr=self.lr))

    def after_train_epoch(self, runner: Runner) -> None:
        means = {name: total / len(runner.train_dataloader) for name, total in self.sums.items()}
        means, self.kept = _over_processes(means, self.kept)
        epoch = Epoch(epoch=runner.epoch + 1, lr=self.lr, losses=means)
        iterations = (*self.curve.iterations, *self.kept)
        self.curve = Curve(epochs=(*self.curve.epochs, epoch), iterations=iterations)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint[_CURVE] = self.curve.model_dump(mode="json")

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.curve = Curve.model_validate(checkpoint.get(_CURVE, {}))  # none in those of earlier versions


def _over_processes(means: dict[str, float], kept: list[Iteration]) -> tuple[dict[str, float], list[Iteration]]:
    """Return losses as their means over all processes, which had equal parts of each batch."""
    values = torch.tensor([*means.values(), *(iteration.loss for iteration in kept)], dtype=torch.float64)
    all_reduce(values, "mean")
    found = iter(values.tolist())
    return {name: next(found) for name in means}, [one.model_copy(update={"loss": next(found)}) for one in kept]


class _Watch(Hook):
    """Reports progress; stops a training whose loss is no longer finite."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Tensor] | None = None
    ) -> None:
        loss = (outputs or {})["loss"].item()
        if not math.isfinite(loss):
            where = f"epoch {runner.epoch + 1}, iteration {batch_idx + 1}"
            raise WorkError(f"{runner.work_dir}: the loss is {loss} at {where}; lower the learning rate")
        if self.progress:
            self.progress(runner.iter + 1, runner.max_iters)


@OPTIM_WRAPPERS.register_module()
class BFloat16Wrapper(OptimWrapper):
    """Computes convolutions and matrix products in bfloat16, whose range needs no scaling of the loss; on CPUs too."""

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Compute the block in it."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


def _optim_wrapper(schedule: Schedule) -> dict[str, Any]:
    optimizer = {"type": schedule.optimizer, "lr": schedule.peak_lr, "weight_decay": schedule.weight_decay}
    if schedule.optimizer == "SGD":
        optimizer["momentum"] = schedule.momentum
    clip = {"max_norm": schedule.max_grad_norm} if schedule.max_grad_norm is not None else None
    settings = {"optimizer": optimizer, "clip_grad": clip, "accumulative_counts": schedule.accumulate}
    if schedule.amp == "fp16" and not torch.cuda.is_available():
        raise RequestError("amp: fp16 is for GPUs, got a CPU; expected bf16 or None")
    types = {None: "OptimWrapper", "bf16": BFloat16Wrapper.__name__, "fp16": "AmpOptimWrapper"}
    return {"type": types[schedule.amp], **settings, **({"dtype": "float16"} if schedule.amp == "fp16" else {})}


def _param_scheduler(schedule: Schedule) -> list[dict[str, Any]]:
    warmup = []
    if schedule.warmup_iters > 1:  # mmengine's LinearLR refuses 0, and at 1 never leaves the start factor
        end = schedule.warmup_iters * schedule.accumulate  # mmengine counts parts of batches
        warmup = [{"type": "LinearLR", "start_factor": 0.01, "by_epoch": False, "begin": 0, "end": end}]
    if schedule.milestones:
        return [*warmup, {"type": "MultiStepLR", "milestones": list(schedule.decay_epochs), "gamma": 0.1}]
    cosine = {"type": "CosineAnnealingLR", "T_max": schedule.epochs, "eta_min": 0.0, "convert_to_iter_based": True}
    return [*warmup, cosine]
