"""The conductor: whole experiments over the four other folders, which know nothing of it."""

from typing import TYPE_CHECKING, Any

import experiment.deployed.runtimes  # noqa: F401  # before the commands, whose help names every runtime

if TYPE_CHECKING:
    from experiment.deployed.detector import Detector

__all__ = ["Detector"]


def __getattr__(name: str) -> Any:
    if name == "Detector":  # it loads torch and mmdet, which no import of a command may
        from experiment.deployed.detector import Detector

        return Detector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
