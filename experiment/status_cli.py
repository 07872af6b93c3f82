"""`espalier status`: how far a run is, from its folder alone."""

import time
from collections import Counter
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from command.errors import RequestError
from command.options import AsJson
from command.progress import duration
from deploy.text import printable
from experiment.status import RunStatus, StageStatus, State, status_of

__all__ = ["status", "status_view"]

_EVERY_S = 2.0


def status(
    folder: Annotated[Path, typer.Argument(help="Run folder, as runs/quickstart.")],
    follow: Annotated[bool, typer.Option("--follow", help="Go on until no process works on it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, on this machine or on any other that works in the folder; write nothing."""
    if follow and as_json:
        raise RequestError("--follow: not with --json, got both; expected one of them")
    found = status_of(folder)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    console = Console()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while follow and found.state == "running":
            live.update(status_view(found), refresh=True)
            time.sleep(_EVERY_S)
            found = status_of(folder)
    console.print(status_view(found))


def status_view(found: RunStatus) -> Group:
    """Return what a terminal shows: a line for each name of stages, and one for each that runs or failed."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("stage")
    states = [state for state in get_args(State) if found.counts.get(state)]
    for state in states:
        table.add_column(state, justify="right")
    for name in dict.fromkeys(stage.name for stage in found.stages):
        counts = Counter(stage.state for stage in found.stages if stage.name == name)
        table.add_row(Text(printable(name)), *(str(counts[state] or "") for state in states))
    lines = [_line(stage) for stage in found.stages if stage.state in ("running", "interrupted", "failed")]
    return Group(Text(_headline(found)), table, *map(Text, lines))


def _headline(found: RunStatus) -> str:
    end = f", ends about {found.ends.astimezone():%Y-%m-%d %H:%M}" if found.ends else ""
    left = "" if found.left_s is None or found.state == "finished" else f", about {duration(found.left_s)} left{end}"
    what = "not running; its command goes on" if found.state == "stopped" else found.state
    return f"{printable(found.experiment)}: {what}; {found.counts.get('done', 0)} of {len(found.stages)} stages{left}"


def _line(stage: StageStatus) -> str:
    parts = [f"{stage.share:.0%}"] if stage.state != "failed" else []
    if stage.state == "running" and stage.left_s is not None:
        parts.append(f"about {duration(stage.left_s)} left")
    parts += filter(None, (stage.by, stage.reason))
    return f"{stage.state} {printable(stage.folder)}: {printable(', '.join(parts))}"
