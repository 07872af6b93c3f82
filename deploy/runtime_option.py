"""Options shared by the commands for deployed files."""

from typing import Annotated

import typer

from deploy.runtimes.registry import RUNTIMES

__all__ = ["MOST_ROUNDS", "RuntimeName", "Shapes", "Threads"]

MOST_ROUNDS = 1_000_000
"""Of a measurement: every time is kept."""

RuntimeName = Annotated[
    str | None, typer.Option("--runtime", help=f"One of {', '.join(RUNTIMES)}.", show_default="by the kind of file")
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        help="Sizes of an input with free dimensions, as image=1,3,224,224; may be repeated.",
        show_default="the file's own",
    ),
]
Threads = Annotated[int, typer.Option(help="CPU threads of a runtime.", min=1, max=1024)]
