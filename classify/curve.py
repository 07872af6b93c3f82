"""The curve of a training: losses and learning rate, as `curve.json` holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from command.errors import RequestError
from command.files import model_from_json, write_json

__all__ = [
    "CURVE",
    "Curve",
    "Epoch",
    "Iteration",
    "curve_at_risk",
    "curve_file",
    "curve_picture_file",
    "read_curve",
    "save_curve",
]

CURVE = "curve.json"
"""Name of the file in the folder of a training that has one."""

# Bounds that hold for all of float32, so that sums and plots of what passes are finite.
_Figure = Annotated[float, Field(gt=-1e39, lt=1e39)]
_Number = Annotated[int, Field(ge=1, lt=2**53)]
_REMEDY = "expected the curve of a training, as espalier writes it"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Epoch(_Part):
    """One epoch of a training."""

    epoch: _Number
    lr: _Figure
    """Learning rate of its last iteration."""
    losses: dict[str, _Figure]
    """Mean over its iterations of "loss", which is minimised, and of each loss that it is the sum of, if any."""
    figures: dict[str, _Figure | None] = {}
    """Figures on the validation images, where they were evaluated after it."""


class Iteration(_Part):
    """One iteration of a training; about twenty of every epoch are kept."""

    iteration: _Number
    """Counted from the start of the training."""
    loss: _Figure
    lr: _Figure


class Curve(_Part):
    """The whole file; without times, so that it is the same whether the training was interrupted or not."""

    version: Literal[1] = 1
    epochs: tuple[Epoch, ...] = ()
    """All of them; of a training that an earlier version of Espalier began, those since it was resumed."""
    iterations: tuple[Iteration, ...] = ()

    def continued_by(self, later: "Curve") -> "Curve":
        """Return the curve of one training that went on with another network; its epochs are numbered on."""
        return Curve(epochs=(*self.epochs, *later.epochs), iterations=(*self.iterations, *later.iterations))

    def evaluated(self, figures: Mapping[str, Any]) -> "Curve":
        """Return the curve with validation figures at its last epoch; figures by class are left out."""
        flat = {name: figure for name, figure in figures.items() if not isinstance(figure, Mapping)}
        last = tuple(epoch.model_copy(update={"figures": flat}) for epoch in self.epochs[-1:])
        return self.model_copy(update={"epochs": (*self.epochs[:-1], *last)})

    def followed_by(self, other: "Curve") -> "Curve":
        """Return the epochs of two trainings, one after the other; iterations, of which some are kept, are left out."""
        later = (one.model_copy(update={"epoch": one.epoch + len(self.epochs)}) for one in other.epochs)
        return Curve(epochs=(*self.epochs, *later))


def curve_file(model: Path) -> Path:
    """Return the place of the curve of a model file that may have others beside it."""
    return model.with_suffix(f".{CURVE}")


def curve_picture_file(model: Path) -> Path:
    """Return the place of the picture beside a model file."""
    return model.with_suffix(".curve.png")


def curve_at_risk(model: Path) -> tuple[Path, ...]:
    """Return what `save_curve` would replace beside a model file, other than an earlier curve."""
    path = curve_file(model)
    try:
        read_curve(path)
    except RequestError:
        return (path,)
    return ()


def save_curve(curve: Curve, path: Path) -> None:
    """Write the file whole or not at all."""
    write_json(path, curve.model_dump(mode="json"))


def read_curve(path: Path) -> Curve:
    """Read a curve.

    Raises:
        MissingFileError: If there is no such file.
        RequestError: If the file holds anything else.
    """
    return model_from_json(Curve, path, _REMEDY)
