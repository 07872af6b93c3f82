"""Options shared by the commands for deployed files."""

from typing import Annotated

import typer

from deploy.runtimes.registry import RUNTIMES

__all__ = ["RuntimeName"]

RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help=f"One of {', '.join(RUNTIMES)}; default: by the kind of file.")
]
