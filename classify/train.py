"""Training through mmengine's Runner: resumable, the same result whether it was interrupted or not.

`fit` trains any mmengine model, detectors included; `train_classifier` is its use for images and labels.
"""

import contextlib
import copy
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, DefaultScope
from torch import nn
from torch.utils.data import Dataset

from classify.classifier_model import ClassifierModel, collate
from classify.curve import Curve
from classify.hooks import (
    CurveKeeper,
    EpochSeed,
    LaterStart,
    Progress,
    SharedStatistics,
    StepAverage,
    check_outputs,
)
from classify.learning import MethodHook
from classify.mmengine_runner import make_runner, silent
from classify.optimization import optim_wrapper, param_scheduler
from classify.resume import newest_checkpoint
from classify.schedule import Schedule
from classify.tracking import Tracker
from classify.validation import Validation, ValidationHook
from command.errors import RequestError, WorkError, is_lack_of_memory
from command.notes import note
from prune.learn.method import Method

__all__ = ["Seeded", "check_batch_size", "fit", "run_training", "train_classifier"]


def train_classifier(
    net: nn.Module,
    dataset: Dataset[Any],
    schedule: Schedule,
    work_dir: Path,
    seed: int,
    progress: Progress | None = None,
    model: ClassifierModel | None = None,
    tracker: Tracker | None = None,
    validation: Validation | None = None,
    method: Method | None = None,
    first_epoch: int = 0,
) -> Curve:
    """Train `net` in place on (uint8 image (3, S, S), label) pairs; goes on from `work_dir` if it was interrupted.

    A last batch of a single image, which BatchNorm may refuse, is left out. `model` is `net` with another loss than
    cross-entropy; `method` acts on `net`, and may end the training before its last epoch. It begins after
    `first_epoch` epochs of the schedule.

    Raises:
        RequestError: As `check_batch_size`, and if there is only one image.
    """
    num_images: int = len(dataset)  # type: ignore[arg-type]  # every one here has a length
    side = dataset[0][0].shape[-1]
    num_own, part = math.ceil(num_images / get_world_size()), _part_of_batch(schedule)  # of this process
    check_batch_size(net, side, min(part, num_own))
    is_last_alone = num_own % part == 1 < part
    loader = {"dataset": dataset, "collate_fn": collate, "drop_last": is_last_alone and not _learns_from_one(net, side)}
    return fit(
        model or ClassifierModel(net),
        loader,
        schedule,
        work_dir,
        seed,
        progress,
        tracker=tracker,
        validation=validation,
        acting=MethodHook(method, net) if method else None,
        first_epoch=first_epoch,
    )


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
    tracker: Tracker | None = None,
    validation: Validation | None = None,
    acting: MethodHook | None = None,
    first_epoch: int = 0,
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
        tracker: Gets losses, rates and figures.
        validation: Of a `ClassifierModel`, during its training.
        acting: A pruning method on the network that it was made for.
        first_epoch: Epochs of the schedule that are over; the curve begins after them.

    Raises:
        WorkError: If the loss or a weight becomes NaN or infinite.
    """
    with DefaultScope.overwrite_default_scope(scope), silent():
        dataset = Seeded(
            DATASETS.build(loader["dataset"]) if isinstance(loader["dataset"], dict) else loader["dataset"]
        )
    if (num := len(dataset)) < schedule.batch_size and is_main_process():
        note(f"batch_size: more than there are images, got {schedule.batch_size}; a batch has all {num} of them")
    if schedule.channels_last:
        model.to(memory_format=torch.channels_last)
    keeper = CurveKeeper(progress, tracker)
    averages = [StepAverage(momentum=1 - schedule.ema, update_buffers=True)] if schedule.ema else []
    validations = [ValidationHook(validation, keeper, averages, schedule.num_workers)] if validation else []
    run_training(
        model,
        schedule,
        work_dir,
        seed,
        scope,
        train_dataloader={**_loading(schedule), **loader, "dataset": dataset},
        train_cfg={"by_epoch": True, "max_epochs": schedule.epochs},
        optim_wrapper=optim_wrapper(schedule),
        param_scheduler=param_scheduler(schedule),
        custom_hooks=[
            LaterStart(first_epoch),
            EpochSeed(seed),
            SharedStatistics(averages),
            *([acting] if acting else []),
            keeper,
            *averages,
            *validations,
        ],
        launcher="none" if get_world_size() == 1 else "pytorch",  # joined already, whoever started them
        cfg=_runner_options(schedule),
    )
    return keeper.curve


def run_training(model: BaseModel, schedule: Schedule, work_dir: Path, seed: int, scope: str, **settings: Any) -> None:
    """Train `model` in place, as `fit` does, with mmengine's own settings.

    Args:
        model: Modified; averaged weights replace its own.
        schedule: Tells the messages how long the training is.
        work_dir: As for `fit`.
        seed: As for `fit`.
        scope: As for `fit`.
        settings: Of mmengine's Runner. For a resumed training to equal an uninterrupted one, its data set is a `Seeded`
            and its hooks have an `EpochSeed`.
    """
    runner = make_runner(model, work_dir, seed, scope, **settings, **_resumption(work_dir))
    with silent(), _explained(schedule):
        runner.train()
    for hook in runner.hooks:
        if isinstance(hook, EMAHook) and hook._ema_started(runner):
            hook._swap_ema_parameters()
    model.eval()
    with silent(), _numbers_of(seed):
        check_outputs(runner, model, schedule.lr)
    model.cpu()


@contextlib.contextmanager
def _explained(schedule: Schedule) -> Iterator[None]:
    """Say in one line what failed in the block, and which settings help."""
    try:
        yield
    except WorkError as error:  # with the trace in its message, if it comes from a process that loads data
        raise WorkError(str(error).splitlines()[-1].removeprefix("command.errors.WorkError: ")) from error
    except (RuntimeError, MemoryError) as error:
        if is_lack_of_memory(error):
            raise WorkError(
                f"training: out of memory, got {_part_of_batch(schedule)} images at a time; lower schedule.batch_size, "
                f"or compute a batch in parts with schedule.accumulate{'' if schedule.amp else ', or set schedule.amp'}"
            ) from error
        if "DataLoader worker (pid" in str(error):
            raise WorkError(
                f"training: a process that loads images was killed, got {schedule.num_workers} of them, perhaps with "
                "too little memory; lower schedule.num_workers or schedule.batch_size"
            ) from error
        raise


def _loading(schedule: Schedule) -> dict[str, Any]:
    """Return what mmengine's data loader takes besides the data."""
    return {
        "batch_size": _part_of_batch(schedule),
        "num_workers": schedule.num_workers,
        "persistent_workers": schedule.num_workers > 0,
        "generator": torch.Generator(),  # a loader that starts its workers draws from the training's numbers otherwise
        "pin_memory": torch.cuda.is_available(),
        "sampler": {"type": "DefaultSampler", "shuffle": True},
    }


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


class Seeded(Dataset[Any]):
    """A data set whose random crops and flips depend on the epoch and the image alone.

    They are the same whichever process loads an image, and how many there are.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.seed = dataset, torch.zeros((), dtype=torch.int64)
        self.metainfo = getattr(dataset, "metainfo", {})

    def __getattr__(self, name: str) -> Any:
        """Return what samplers and hooks of mmdet read of a data set."""
        if name.startswith("__") or name == "dataset":  # asked for by `copy` before there is one
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        with _numbers_of((int(self.seed) * 1_000_003 + index) % 2**32):
            return self.dataset[index]


@contextlib.contextmanager
def _numbers_of(seed: int) -> Iterator[None]:
    """Draw the numbers of a seed in the block; what the training draws itself is the same whoever loads its images."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not those of GPUs, which only compute
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _resumption(work_dir: Path) -> dict[str, Any]:
    """Return the Runner's arguments for resuming from the newest complete checkpoint in the folder, if there is one."""
    newest = newest_checkpoint(work_dir)
    return {"resume": True, "load_from": str(newest)} if newest else {}
