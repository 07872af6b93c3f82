"""Options shared by the commands for deployed files."""

from pathlib import Path
from typing import Annotated

import typer

from deploy.runtimes.registry import RUNTIMES

__all__ = ["DeployedPath", "RuntimeName"]

RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help=f"One of {', '.join(RUNTIMES)}; default: by the kind of file.")
]
DeployedPath = Annotated[Path, typer.Argument(help="Folder that deploy export wrote, or a file in it.")]
