"""Training by a user's config of mmdet: its data, optimizer, schedule and hooks; seed, folder and resuming are ours."""

import importlib.util
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from classify.backbones import Architecture
from classify.curve import Curve
from classify.hooks import CurveKeeper, EpochSeed, Progress
from classify.learning import MethodHook
from classify.mmengine_runner import make_runner, silent
from classify.schedule import Schedule
from classify.tracking import Tracker
from classify.train import Seeded, run_training
from command.errors import RequestError
from command.files import sha256_of
from command.notes import note
from detect.fixed_shape import FixedShapeDetector, check_parts
from detect.foreign import new_given_detector, read_mmdet
from detect.given_data import GivenData, given_set
from detect.given_model import backbone_changes, plain, reason_of, start_changes
from detect.openmmlab import DATASETS, DefaultScope

__all__ = ["GivenSchedule", "check_given_detector", "from_mmdet", "given_content", "given_schedule", "train_by_config"]

_TRAINING = (
    *("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "custom_hooks", "default_hooks"),
    *("auto_scale_lr", "activation_checkpointing", "efficient_conv_bn_eval"),
)
_OURS = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint", "visualization")
"""mmengine's default hooks, which show and save; others in `default_hooks` act."""
_NEEDS_VALIDATION = ("EarlyStoppingHook", "ReduceOnPlateau")
"""What acts by figures on validation images during training, of which there are none."""


@dataclass(frozen=True)
class GivenSchedule(Schedule):
    """The training that a config of mmdet describes; the other fields tell how long and how fast it is."""

    settings: Any = field(default=None, compare=False, repr=False)
    """The whole config."""

    def __post_init__(self) -> None:
        """Check nothing: mmengine does."""

    def effective(self) -> dict[str, Any]:
        """Return what a training depends on, as JSON values."""
        return {"epochs": self.epochs, "lr": self.lr, "mmdet": given_content(self.settings, *_TRAINING)}


def given_content(settings: Config, *names: str) -> dict[str, Any]:
    """Return parts of a config as JSON values, and the hashes of the modules of the user's own that it imports.

    Raises:
        RequestError: If one is something else.
    """
    parts = {name: plain(settings[name]) for name in names if settings.get(name) is not None}
    try:
        content: dict[str, Any] = json.loads(json.dumps(parts, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise RequestError(f"{settings.filename}: not plain values, got {error}; expected text and numbers") from error
    imports = (settings.get("custom_imports") or {}).get("imports") or ()
    origins = {name: importlib.util.find_spec(name) for name in ([imports] if isinstance(imports, str) else imports)}
    code = {name: sha256_of(Path(spec.origin)) for name, spec in origins.items() if spec and spec.origin}
    return {**content, **({"code": code} if code else {})}


def from_mmdet(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an experiment's detectors with those that `mmdet_config` names.

    Raises:
        RequestError: If others are given, or a config is none of a detector and its training.
    """
    for name in ("data", "model", "train", "finetune", "learning"):
        if values.get(name) is not None:
            raise RequestError(f"{name}: not used with mmdet_config, got {values[name]!r:.80}; drop it")
    settings = read_mmdet(values["mmdet_config"])
    train = finetune = given_schedule(settings)
    data = GivenData.of(settings)
    if values.get("mmdet_finetune"):
        other = read_mmdet(values["mmdet_finetune"])
        finetune = given_schedule(other)
        alike = {"model": plain(settings.model) == plain(other.get("model"))}
        alike["train_dataloader.dataset"] = given_set(other, "train") == data.train
        for name in (name for name, is_alike in alike.items() if not is_alike):
            raise RequestError(f"{other.filename}: {name}: another than in {settings.filename}; expected the same")
    return {**values, "data": data, "train": train, "finetune": finetune}


def given_schedule(settings: Config) -> GivenSchedule:
    """Return the training of a config.

    Raises:
        RequestError: If it has none, or one that does not go by epochs.
    """
    where = settings.filename
    for name in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if not isinstance(settings.get(name), Mapping):
            got = f"{name}={settings.get(name)!r:.80}"
            raise RequestError(f"{where}: no training, got {got}; expected the config of a whole training")
    loop, loader = settings.train_cfg, settings.train_dataloader
    optimizer = settings.optim_wrapper.get("optimizer", {})
    if not isinstance(optimizer, Mapping):
        raise RequestError(f"{where}: optimizer: not settings, got {optimizer}; expected dict(type=..., ...)")
    by_epoch = loop.get("by_epoch", str(plain(loop.get("type"))).rpartition(".")[2] == EpochBasedTrainLoop.__name__)
    if not by_epoch or "max_epochs" not in loop:
        raise RequestError(f"{where}: train_cfg: not by epochs, got {plain(loop)}; expected dict(by_epoch=True, ...)")
    if not isinstance(loop["max_epochs"], int) or loop["max_epochs"] < 1:
        raise RequestError(f"{where}: max_epochs: not usable, got {loop['max_epochs']!r}; expected at least 1")
    return GivenSchedule(
        epochs=loop["max_epochs"],
        batch_size=loader.get("batch_size", 1),
        lr=optimizer.get("lr", 0.0),
        optimizer=str(plain(optimizer.get("type", ""))).rpartition(".")[2],
        weight_decay=optimizer.get("weight_decay", 0.0),
        momentum=optimizer.get("momentum", 0.0),
        num_workers=loader.get("num_workers", 0),
        settings=settings,
    )


def train_by_config(
    detector: nn.Module,
    schedule: GivenSchedule,
    work_dir: Path,
    seed: int,
    progress: Progress | None = None,
    tracker: Tracker | None = None,
    acting: MethodHook | None = None,
) -> Curve:
    """Train mmdet's detector in place as its user's config says; continues from `work_dir` if it was interrupted.

    There is no validation, and what the config says of logs and checkpoints is not used.

    Args:
        detector: Modified.
        schedule: The config's.
        work_dir: As for `classify.train.fit`.
        seed: As there.
        progress: As there.
        tracker: As there.
        acting: As there.
    """
    keeper = CurveKeeper(progress, tracker)
    hooks = [EpochSeed(seed), *([acting] if acting else []), keeper]
    run_training(detector, schedule, work_dir, seed, "mmdet", **_runner_settings(schedule.settings, hooks))
    return keeper.curve


def check_given_detector(settings: Config, backbone: Architecture, finetune: Schedule) -> None:
    """Build a config's detector on a backbone, its export and its trainings once; say what is replaced.

    Raises:
        RequestError: If one of them cannot be.
    """
    with _naming(settings.filename):
        detector, card = new_given_detector(settings, backbone, given_set(settings, "train").classes, seed=0)
        note(backbone_changes(settings, backbone, card.preprocessing))
        if not card.preprocessing.keep_ratio:
            raise RequestError(
                "val_dataloader: stretches images, got keep_ratio=False; expected True, as exported detectors do"
            )
        check_parts(detector)
        FixedShapeDetector(detector, card.preprocessing.image_hw)
    _check_training(detector, given_schedule(settings))
    if isinstance(finetune, GivenSchedule) and finetune.settings is not settings:
        if changes := start_changes(finetune.settings):
            note(f"{finetune.settings.filename}: replaced are {'; '.join(changes)}")
        _check_training(detector, finetune)


@contextmanager
def _naming(config: str) -> Iterator[None]:
    """Begin with the config's name what is said of its parts."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{config}: {str(error).removeprefix(f'{config}: ')}") from error


def _check_training(detector: nn.Module, schedule: GivenSchedule) -> None:
    """Build all that a training needs, and read one image.

    Raises:
        RequestError: If something cannot be built, or cannot be resumed to the same result.
    """
    where = schedule.settings.filename
    with tempfile.TemporaryDirectory() as folder:
        try:
            runner = make_runner(
                detector, Path(folder), 0, "mmdet", **_runner_settings(schedule.settings, [EpochSeed(0)])
            )
            with silent():
                loader = runner.build_train_loop(runner._train_loop).dataloader
                runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
                schedulers = runner.build_param_scheduler(runner.param_schedulers or [])
                loader.dataset[0]
        except Exception as error:
            raise RequestError(
                f"{where}: cannot train, got {reason_of(error)}; expected what mmdet trains with"
            ) from error
    acting = [type(one).__name__ for one in (*runner.hooks, *schedulers)]
    for name in (name for name in acting if name.startswith(_NEEDS_VALIDATION)):
        raise RequestError(f"{where}: {name}: needs validation during training, which there is none; expected without")
    samplers = loader.sampler, getattr(loader.batch_sampler, "sampler", loader.sampler)
    has_end = next(itertools.islice(samplers[1], len(samplers[1]), None), None) is None
    if not has_end or not any(hasattr(sampler, "set_epoch") for sampler in samplers):
        kind = type(samplers[1]).__name__
        raise RequestError(f"{where}: sampler: goes through all epochs in one, got {kind}; expected DefaultSampler")
    _check_patterns(where, detector, schedule.settings.optim_wrapper.get("paramwise_cfg") or {})


def _check_patterns(where: str, detector: nn.Module, paramwise: Mapping[str, Any]) -> None:
    names = [name for name, _ in detector.named_parameters()]
    for pattern in paramwise.get("custom_keys") or {}:
        if not any(pattern in name for name in names):
            layers = ", ".join(name for name in names if name.startswith("backbone."))[:80]
            raise RequestError(f"{where}: custom_keys: no weight has {pattern!r} in its name; expected as in {layers}")


def _runner_settings(settings: Config, hooks: list[Hook]) -> dict[str, Any]:
    """Return the arguments of mmengine's Runner."""
    loader = given_set(settings, "train").loader
    with DefaultScope.overwrite_default_scope("mmdet"), silent():
        dataset = Seeded(DATASETS.build(loader["dataset"]))
    more = [hook for name, hook in (settings.get("default_hooks") or {}).items() if hook and name not in _OURS]
    loading = {"generator": torch.Generator(), "pin_memory": torch.cuda.is_available()}  # as in classify.train
    options = ("activation_checkpointing", "efficient_conv_bn_eval")
    return {
        "train_dataloader": {**loading, **loader, "dataset": dataset},
        "train_cfg": {"by_epoch": True, "max_epochs": settings.train_cfg["max_epochs"]},
        "optim_wrapper": settings.optim_wrapper,
        "param_scheduler": settings.get("param_scheduler"),
        "auto_scale_lr": settings.get("auto_scale_lr"),
        "custom_hooks": [*hooks, *more, *(settings.get("custom_hooks") or ())],
        "cfg": {name: settings[name] for name in options if settings.get(name)},
    }
