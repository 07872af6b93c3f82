"""What every command has that takes a detector of mmdet's own parts: the option, and what comes next."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["MmdetConfig", "next_step"]

MmdetConfig = Annotated[
    Path | None,
    typer.Option(
        "--mmdet",
        help="mmdet's config, for a checkpoint (.pth) of mmdet or a model file of its own parts; it is run.",
        show_default="none",
    ),
]


def next_step(model: Path, mmdet: Path | None) -> list[str | Path]:
    """Return the words of the command to run next on a detector: mmdet's own parts cannot all be exported."""
    return ["espalier", "mmdet", "test", mmdet, model] if mmdet else ["espalier", "deploy", "export", model]
