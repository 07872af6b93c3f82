"""How long and how fast a network is trained."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from command.bounds import Bounds
from command.errors import RequestError

__all__ = ["OPTIMIZERS", "Schedule"]

OPTIMIZERS = ("AdamW", "Adam", "SGD")
_OPTIONS = ("lr_batch_size", "accumulate", "amp", "ema", "channels_last", "compile", "sync_bn")

_BOUNDS = {
    "epochs": Bounds(1, 100_000),
    "batch_size": Bounds(1, 65_536),
    "lr": Bounds(1e-12, 1e30),
    "weight_decay": Bounds(0, 1e6),
    "momentum": Bounds(0, 1),
    "warmup_iters": Bounds(0, 10**9),
    "max_grad_norm": Bounds(0, is_open=True),
    "num_workers": Bounds(0, 1024),
    "lr_batch_size": Bounds(1, 65_536),
    "accumulate": Bounds(1, 65_536),
    "ema": Bounds(1e-9, 1 - 1e-9),  # at either end there is no average
}


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train."""

    epochs: int
    batch_size: int
    lr: float
    """Peak learning rate."""
    optimizer: str = "AdamW"
    """One of `OPTIMIZERS`."""
    weight_decay: float = 1e-4
    momentum: float = 0.9
    """Of SGD; other optimizers keep their own."""
    warmup_iters: int = 20
    """Iterations over which the learning rate rises linearly to its peak."""
    milestones: tuple[float, ...] = ()
    """Shares of the training after which the rate falls to a tenth; none = cosine to zero, (1.0,) = constant."""
    max_grad_norm: float | None = 10.0
    """Gradients are clipped to this L2 norm; None = not clipped."""
    num_workers: int = 0
    """Processes that load images."""
    lr_batch_size: int | None = None
    """Batch size that `lr` is for: the rate is scaled in proportion to `batch_size`. None = not scaled."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory; BatchNorm sees one part."""
    amp: Literal["bf16", "fp16"] | None = None
    """Precision of convolutions and matrix products; fp16 on a GPU only. None = fp32."""
    ema: float | None = None
    """Share of the averaged weights that stays in every step, as 0.9999; these are what is trained for in the end.
    None = no average."""
    channels_last: bool = False
    """Keep tensors with their channels last, which GPUs and some CPUs compute faster."""
    compile: str | None = None
    """Backend of `torch.compile`, as inductor; None = not compiled."""
    sync_bn: bool = False
    """BatchNorm over the batches of all processes; on GPUs only."""

    def __post_init__(self) -> None:
        """Raise RequestError for settings that cannot train."""
        for name, bounds in _BOUNDS.items():
            if (value := getattr(self, name)) is not None:
                bounds.check(name, value)
        for share in self.milestones:
            Bounds(0, 1, is_open=True).check("milestones", share)
        if list(self.milestones) != sorted(self.milestones):
            raise RequestError(f"milestones: out of order, got {self.milestones}; expected ascending shares")
        if self.batch_size % self.accumulate:
            raise RequestError(f"accumulate: does not divide batch_size {self.batch_size}, got {self.accumulate}")
        if self.optimizer not in OPTIMIZERS:
            raise RequestError(f"optimizer: unknown, got {self.optimizer!r}; expected one of {', '.join(OPTIMIZERS)}")
        if self.compile is not None:
            _check_backend(self.compile)

    @property
    def peak_lr(self) -> float:
        """The learning rate at its peak."""
        return self.lr * self.batch_size / (self.lr_batch_size or self.batch_size)

    @property
    def decay_epochs(self) -> tuple[int, ...]:
        """The whole epochs after which the rate falls to a tenth."""
        return tuple(max(1, round(share * self.epochs)) for share in self.milestones)

    def stretched(self, epochs: int) -> "Schedule":
        """Return the schedule of a training that is as long or longer.

        Decay points move in proportion, down to a whole epoch as in the official code of Liu et al., ICLR 2019:
        ResNet-34-A has 106 epochs with decay after every 35, ResNet-34-B 118 with decay after every 39.
        """
        if epochs == self.epochs:
            return self
        whole = [math.floor(round(share * epochs, 6)) for share in self.milestones]  # 0.29 x 100 is below 29
        return replace(self, epochs=epochs, milestones=tuple(max(1, epoch) / epochs for epoch in whole))

    def effective(self) -> dict[str, Any]:
        """Return the settings that have an effect, as JSON values: what a training depends on."""
        settings = asdict(self) | {"milestones": list(self.milestones)}
        for name in _OPTIONS:  # unset, they change nothing
            if settings[name] == getattr(Schedule, name):
                del settings[name]
        if self.optimizer != "SGD":
            del settings["momentum"]
        settings["warmup_iters"] = max(1, self.warmup_iters)  # the rate is at its peak from the start in both cases
        return settings


def _check_backend(name: str) -> None:
    """Raise RequestError if `torch.compile` has no such backend."""
    import torch  # takes seconds, and few compile

    if name not in torch.compiler.list_backends(exclude_tags=()):  # those for debugging are tagged
        known = ", ".join(torch.compiler.list_backends())
        raise RequestError(f"compile: unknown backend, got {name!r}; expected one of {known}")
