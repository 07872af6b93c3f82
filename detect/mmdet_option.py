"""The option of every command that takes a detector of mmdet's own parts."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["MmdetConfig"]

MmdetConfig = Annotated[
    Path | None,
    typer.Option(
        "--mmdet",
        help="mmdet's config, for a checkpoint (.pth) of mmdet or a model file of its own parts; it is run.",
        show_default="none",
    ),
]
