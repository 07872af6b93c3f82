"""Figures of a training for TensorBoard, Weights & Biases or MLflow, through mmengine's backends."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmengine.registry import VISBACKENDS

from classify.mmengine_runner import silent
from command.extras import optional_module

__all__ = ["Backend", "Tracker", "tracked", "tracking_folder"]

Backend = Literal["tensorboard", "wandb", "mlflow"]

_TYPES = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend", "mlflow": "MLflowVisBackend"}


class Tracker:
    """Writes the figures of a training.

    Args:
        backends: Where to.
        folder: Of the files that they write; made with the first figures.

    Raises:
        RequestError: If one of them is not installed.
    """

    def __init__(self, backends: Sequence[Backend], folder: Path) -> None:
        for name in backends:
            optional_module(name, "tracking needs")
        self._step = 0
        self._backends = [VISBACKENDS.build({"type": _TYPES[name], "save_dir": str(folder)}) for name in backends]

    def write(self, figures: Mapping[str, Any], prefix: str, step: int | None = None) -> None:
        """Write the numbers among the figures as `prefix`/name, after so many iterations, or after the last ones."""
        self._step = self._step if step is None else step
        numbers = {f"{prefix}/{name}": one for name, one in figures.items() if isinstance(one, int | float)}
        with silent():
            for backend in self._backends:
                backend.add_scalars(numbers, self._step)

    def close(self) -> None:
        """Write what is left."""
        with silent():
            for backend in self._backends:
                backend.close()


@contextmanager
def tracked(backends: Sequence[Backend], model: Path, is_first: bool) -> Iterator[Tracker | None]:
    """Yield what writes to these backends, beside a model file, while the block runs; None without any.

    Raises:
        RequestError: If one of them is not installed.
    """
    if not backends or not is_first:
        yield None
        return
    tracker = Tracker(backends, tracking_folder(model))
    try:
        yield tracker
    finally:
        tracker.close()


def tracking_folder(model: Path) -> Path:
    """Return the folder of the files beside a model file."""
    return model.with_suffix(".tracking")
