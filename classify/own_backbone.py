"""Networks of the user's own: the function that makes one is named in a config, an option or an argument.

A model file holds that name as text alone. Nothing imports it: the file opens where the user has named the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, with_config
from torch import nn

from classify.data import MEAN, STD
from command.errors import RequestError
from command.files import shown
from command.own_code import failure, is_own_code, own_code

__all__ = ["OwnBackbone", "call_named", "check_named", "name_backbone", "normalisation_of"]

Rgb = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
_Positive = Annotated[FiniteFloat, Field(gt=0)]


@with_config(ConfigDict(arbitrary_types_allowed=True))
@dataclass(frozen=True)
class OwnBackbone:
    """What the user's function returns, which is called with `num_classes`: a network and what Espalier must know."""

    net: nn.Module
    """From normalised images (N, 3, H, W) to scores (N, num_classes), in one call."""
    head: str | tuple[str, ...]
    """The layers that a detector does not need, by their names in `net`: the head, and others after the stages."""
    stages: tuple[str, ...] = ()
    """The layers of which a detector reads the output, maps of strides 4, 8, 16 and 32; none if there are no such."""
    image_side: Annotated[int, Field(ge=1, le=16_384)] = 224
    """Of the images that it is made for, in pixels."""
    mean_rgb: Rgb = MEAN
    """Subtracted from pixels of 0 to 255, before the network sees them."""
    std_rgb: tuple[_Positive, _Positive, _Positive] = STD
    """Divided by, after the mean is subtracted."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The layers of the head."""
        return (self.head,) if isinstance(self.head, str) else self.head


_FIELDS = TypeAdapter(OwnBackbone)
_NAMED: dict[str, Callable[..., object]] = {}
"""The code that the user has named in this process. Text of a file is looked up here, and nowhere else."""
_NORMALISATION = "normalisation"
"""The attribute of a network that has its mean and standard deviation; copies and slim ones have it too."""


def name_backbone(name: str) -> None:
    """Import the user's function, so that its networks can be built and their model files opened in this process.

    Args:
        name: `package.module:function`, from a config, an option or an argument; never from a model file.

    Raises:
        RequestError: If there is no such function.
    """
    if name not in _NAMED:
        _NAMED[name] = own_code(name, "backbone")


def check_named(name: str, subject: object = "backbone") -> None:
    """Raise RequestError if a network is the user's own, and they have not named its code in this process."""
    if is_own_code(name) and name not in _NAMED:
        named = f", not {', '.join(_NAMED)}" if _NAMED else ""
        raise RequestError(
            f"{subject}: made by code outside Espalier, got {shown(name)!r}{named}, which no file may load; if it is "
            "code of yours, name it again: --backbone package.module:function, or backbone=... where a config has file="
        )


def call_named(name: str, num_classes: int) -> OwnBackbone:
    """Return what the user's function makes.

    Raises:
        RequestError: If it was not named, fails, or returns something else or names that the network has not.
    """
    check_named(name)
    try:
        made = _NAMED[name](num_classes=num_classes)
    except (Exception, SystemExit) as error:  # whatever the user's function does
        raise RequestError(
            f"backbone: {name} fails with num_classes={num_classes}, got {failure(error)}; expected an OwnBackbone"
        ) from error
    if not isinstance(made, OwnBackbone) or not isinstance(made.net, nn.Module):
        kind = type(made.net if isinstance(made, OwnBackbone) else made).__name__
        raise RequestError(f"backbone: {name} makes no network, got {kind}; expected an OwnBackbone around a module")
    try:
        made = _FIELDS.validate_python(vars(made))
    except ValidationError as error:
        fault = error.errors()[0]
        where, got = ".".join(map(str, fault["loc"])), shown(repr(fault["input"]))
        raise RequestError(
            f"backbone: {name} makes a wrong OwnBackbone, got {where}={got}; expected: {fault['msg']}"
        ) from error
    layers = [layer for layer, _ in made.net.named_modules() if layer]
    for kind, given in (("head", made.heads), ("stages", made.stages)):
        if missing := [layer for layer in given if layer not in layers]:
            children = ", ".join(layer for layer, _ in made.net.named_children())
            raise RequestError(f"backbone: {name} has no such {kind}, got {missing}; expected layers below {children}")
    setattr(made.net, _NORMALISATION, (made.mean_rgb, made.std_rgb))
    return made


def normalisation_of(net: nn.Module) -> tuple[Rgb, Rgb]:
    """Return the mean and standard deviation of the pixels that a classifier is made for, in 0 to 255."""
    found: tuple[Rgb, Rgb] = getattr(net, _NORMALISATION, (MEAN, STD))
    return found
