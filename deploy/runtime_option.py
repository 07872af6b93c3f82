"""Options shared by the commands for deployed files."""

from typing import Annotated

import typer

from deploy.runtimes.registry import RUNTIMES

__all__ = ["MOST_ROUNDS", "RuntimeName", "Threads"]

MOST_ROUNDS = 1_000_000
"""Of a measurement: every time is kept."""

RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help=f"One of {', '.join(RUNTIMES)}.", show_default="by the kind of file")
]
Threads = Annotated[int, typer.Option(help="CPU threads of a runtime.", min=1, max=1024)]
