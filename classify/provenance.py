"""What a model file was made from, and its figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python

from classify.schedule import Schedule
from command.files import sha256_of

__all__ = ["origin", "outcome", "provenance", "what_counts"]


def origin(
    settings: object, parent: Path | None, data: Sequence[str] = (), teacher: Path | None = None
) -> dict[str, Any]:
    """Return what a model is made from: the hash of the file it starts from, its config, its data's fingerprints.

    The hash of a teacher's file is there if there is one.
    """
    return {
        "parent": sha256_of(parent) if parent else None,
        "config": to_jsonable_python(settings),
        "data": list(data),
        **({"teacher": sha256_of(teacher)} if teacher else {}),
    }


def what_counts(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a training must have in common with one that it goes on from: all but what changes no result."""
    config = {name: value for name, value in made_from["config"].items() if name != "tracking"}
    schedule = {name: value for name, value in config["schedule"].items() if name != "num_workers"}
    return {**made_from, "config": {**config, "schedule": schedule}}


def outcome(figures: Mapping[str, Any], schedule: Schedule | None = None) -> dict[str, Any]:
    """Return the other half of a model's provenance: its figures, and what produced them besides the config.

    The weights depend on the number of threads, too: sums are added in another order.

    Args:
        figures: Of the model.
        schedule: That it was trained with: a budget makes it longer than the config's.
    """
    made_by = {"torch": torch.__version__, "num_threads": torch.get_num_threads()}
    if schedule:
        made_by["schedule"] = {**schedule.effective(), "decay_epochs": list(schedule.decay_epochs)}
    return {"metrics": dict(figures), **made_by}


def provenance(
    settings: object, parent: Path | None, figures: Mapping[str, Any], schedule: Schedule | None = None
) -> dict[str, Any]:
    """Return the provenance of a model made without data of its own."""
    return {**origin(settings, parent), **outcome(figures, schedule)}
