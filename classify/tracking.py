"""Figures of a training for TensorBoard, Weights & Biases or MLflow, through mmengine's backends."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

from classify.curve import Curve
from classify.mmengine_runner import silent
from command.extras import optional_module

__all__ = ["Backend", "Tracker", "check_backends", "tracked", "tracking_folder"]

Backend = Literal["tensorboard", "wandb", "mlflow"]

_ENDING = ".tracking"


class Tracker:
    """Writes the figures of a training, from its start: what one left that was killed is deleted for TensorBoard.

    At the others this is another run.

    Args:
        backends: Where to.
        folder: Of the files that they write; made with the first figures. Its name is that of the run.

    Raises:
        RequestError: If one of them is not installed.
    """

    def __init__(self, backends: Sequence[Backend], folder: Path) -> None:
        check_backends(backends)
        self._step, self._has_written = 0, False
        self._earlier = list(folder.glob("events.out.tfevents.*"))  # TensorBoard's
        self._backends = {name: VISBACKENDS.build(_settings(name, folder)) for name in backends}

    def write(self, figures: Mapping[str, Any], prefix: str, step: int | None = None) -> None:
        """Write the numbers among the figures as `prefix`/name, after so many iterations, or after the last ones."""
        if not self._has_written:
            for path in self._earlier:
                path.unlink(missing_ok=True)
        self._step, self._has_written = self._step if step is None else step, True
        numbers = {f"{prefix}/{name}": one for name, one in figures.items() if isinstance(one, int | float)}
        with silent():
            for name, backend in self._backends.items():
                more = {"iteration": self._step} if name == "wandb" else {}  # its own steps only count the calls
                backend.add_scalars({**numbers, **more}, self._step)

    def replay(self, curve: Curve, num_batches: int) -> None:
        """Write what a training that was killed, and goes on, has behind it.

        Args:
            curve: Of its whole epochs.
            num_batches: Iterations in an epoch.
        """
        for one in curve.iterations:
            self.write({"loss": one.loss, "learning rate": one.lr}, "iteration", one.iteration)
        for epoch in curve.epochs:
            self.write(epoch.losses, "epoch", epoch.epoch * num_batches)
            if epoch.figures:
                self.write(epoch.figures, "validation")

    def close(self) -> None:
        """Write what is left."""
        if self._has_written:
            with silent():
                for name, backend in self._backends.items():
                    _CLOSE[name](backend)


def check_backends(backends: Sequence[Backend]) -> None:
    """Raise RequestError if one of them is not installed."""
    for name in backends:
        optional_module(name, "tracking needs")


@contextmanager
def tracked(backends: Sequence[Backend], folder: Path) -> Iterator[Tracker | None]:
    """Yield what writes to these backends, files into a folder, while the block runs; None without any.

    Raises:
        RequestError: If one of them is not installed.
    """
    if not backends:
        yield None
        return
    tracker = Tracker(backends, folder)
    try:
        yield tracker
    finally:
        tracker.close()


def tracking_folder(model: Path) -> Path:
    """Return the folder of the files beside a model file."""
    return model.with_suffix(_ENDING)


def _settings(name: Backend, folder: Path) -> dict[str, Any]:
    """Return the settings that mmengine builds a backend from; each run is named after its folder."""
    run = folder.name.removesuffix(_ENDING)
    own: dict[Backend, dict[str, Any]] = {
        "tensorboard": {"type": "TensorboardVisBackend"},
        "wandb": {
            "type": "WandbVisBackend",
            "init_kwargs": {"name": run},
            "define_metric_cfg": [{"name": "*", "step_metric": "iteration"}],
        },
        "mlflow": {
            "type": "MLflowVisBackend",
            "run_name": run,
            "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI"),  # mmengine's default hides it
        },
    }
    return {**own[name], "save_dir": str(folder)}


_CLOSE: Mapping[Backend, Callable[[BaseVisBackend], None]] = {
    "tensorboard": lambda backend: backend.close(),
    "wandb": lambda backend: backend.experiment.finish(),  # mmengine calls `join`, which is gone
    "mlflow": lambda backend: backend.experiment.end_run(),  # mmengine's also wants a config with a work folder
}
