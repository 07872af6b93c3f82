"""What every command has that opens model files: the option that names the user's own code again."""

from typing import Annotated

import typer

from command.extras import loading

__all__ = ["BackboneCode"]


def _named(name: str | None) -> str | None:
    if name:
        with loading():
            from classify.backbones import check_backbone
        check_backbone(name)
    return name


BackboneCode = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="Your own code that makes the network of a model file; it is run.",
        show_default="none",
        callback=_named,
    ),
]
