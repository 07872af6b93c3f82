"""What a user should know though the work goes on."""

from functools import cache

__all__ = ["note"]


@cache  # each line once
def note(text: str) -> None:
    """Print a line to standard error, the first time that it is given."""
    from rich.console import Console  # not needed by a deployed detector

    Console(stderr=True).print(f"note: {text}", highlight=False, markup=False, soft_wrap=True)
