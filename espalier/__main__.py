"""The `espalier` command, also as `python -m espalier`."""

import sys

from espalier.places import OursFirst

__all__ = ["main"]


def main() -> None:
    """Run the command; a user's files named like our folders are never imported instead of ours."""
    sys.meta_path.insert(0, OursFirst())
    from experiment.cli import main as run

    run()


if __name__ == "__main__":
    main()
