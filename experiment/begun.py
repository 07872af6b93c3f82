"""What a run writes first, by which other commands know whose folder it is."""

import json
from pathlib import Path

from pydantic import BaseModel, JsonValue

from command.errors import RequestError
from command.files import model_from_json
from experiment.config import ExperimentConfig
from experiment.results import RUN

__all__ = ["check_begun"]


class _Begun(BaseModel):
    config: dict[str, JsonValue]


def check_begun(config: ExperimentConfig, folder: Path, option: str) -> None:
    """Raise RequestError unless the last run in the folder is of this experiment; the option needs one."""
    if not (folder / RUN).is_file():
        raise RequestError(f"{folder}: no run was begun there; give the command without {option} first")
    begun = model_from_json(_Begun, folder / RUN, f"give the command without {option} again")
    if begun.config != json.loads(json.dumps(config.model_dump(mode="json"))):
        raise RequestError(
            f"{folder}: begun with another config; give the config and options of its run, or another --out"
        )
