"""Packages that only some commands need: `pip install espalier` installs those for deployed models, extras the rest."""

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from command.errors import RequestError

__all__ = ["install_command", "loading", "optional_module"]

_OWN_EXTRAS = {
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "openvino": "openvino",
    "pynvml": "nvml",
    "submitit": "slurm",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
}
"""Modules that have an extra of their own; all others come with `train`."""
_OURS = {"classify", "command", "deploy", "detect", "espalier", "experiment", "prune"}


def install_command(module: str) -> str:
    """Return the command that installs the extra with a module."""
    return f'pip install "espalier[{_OWN_EXTRAS.get(module.partition(".")[0], "train")}]"'


def optional_module(name: str, need: str) -> ModuleType:
    """Return a module that an extra installs.

    Args:
        name: Of the module.
        need: Subject and verb of the sentence in the error, such as "engines need".

    Raises:
        RequestError: If it is not installed; the message ends with the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RequestError(f"{name} is not installed; {need} it: {install_command(name)}") from error


@contextmanager
def loading(what: str = "torch", need: str = "this command needs") -> Iterator[None]:
    """Show on a terminal, while the block imports, what is loading.

    Raises:
        RequestError: If a package that the block imports is not installed; the message names the extra to install.
    """
    from rich.console import Console  # not needed by a deployed detector

    try:
        with Console(stderr=True).status(f"Loading {what} ..."):
            yield
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if (
            not name or name in _OURS or importlib.util.find_spec(name)
        ):  # a part of something installed is missing: no extra helps
            raise
        raise RequestError(f"{name} is not installed; {need} it: {install_command(name)}") from error
