"""`espalier run`: a whole experiment, its plan, a share of its work, or jobs that do it."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from command.config import check_name
from command.errors import RequestError, WorkError
from command.extras import loading
from command.options import AsJson, Overrides, check_together, closing
from experiment.executors import Executor, executor_options, submitted

if TYPE_CHECKING:
    from experiment.config import ExperimentConfig

__all__ = ["run"]


def run(
    config: Annotated[Path, typer.Argument(help="Config: a name, as quickstart, or a file.")],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder.", show_default="runs/<name>, the name in the config")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Trust finished stages whose files have the recorded size and time."),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the stages, those that are there and those that are left; do nothing.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=1024, help="Processes that share the work, each on its own GPU.")] = 1,
    join: Annotated[
        bool, typer.Option("--join", help="Share the work of a run that was begun in the folder, on any machine.")
    ] = False,
    redo: Annotated[
        bool, typer.Option("--redo", help="Do changed stages again, and what was made from them; they are listed.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune-folder", help="List the stages that the run does not need; --force deletes them.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Delete what --prune-folder lists.")] = False,
    only: Annotated[
        str | None,
        typer.Option(
            help="latency: train nothing; build, evaluate and time what this machine can of the config's targets.",
            show_default="everything",
        ),
    ] = None,
    executor: Annotated[
        Executor | None,
        typer.Option(
            "--executor", help="Send --jobs jobs that share the work, and return.", show_default="the work is done here"
        ),
    ] = None,
    executor_set: Annotated[
        list[str] | None,
        typer.Option(
            "--executor-set",
            help="Option of these jobs, as timeout_min=600.",
            show_default="timeout_min=1440, else submitit's own",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a whole experiment, or the unfinished rest of it."""
    only_latency = only is not None and check_name(only, ("latency",), "--only") == "latency"
    given = {"plan": plan, "prune_folder": prune, "executor": bool(executor), "only": only_latency, "join": join}
    more = {"jobs": jobs > 1, "redo": redo, "quick": quick, "json": as_json, "force": force}
    _check_options({**given, **more, "executor_set": bool(executor_set)})
    with loading("torch and mmdet"):
        from command.config import read_config
        from experiment.config import ExperimentConfig
        from experiment.run import begun, join_experiment, run_experiment
        from experiment.running import parent_process
    check_together("--join", join and parent_process() is None, jobs=jobs > 1, redo=redo, json=as_json)
    settings = read_config(config, overrides or (), ExperimentConfig)
    folder = out or Path("runs") / settings.name
    if plan:
        _print_plan(settings, folder, as_json, only_latency)
    elif prune:
        _prune(settings, folder, force, as_json)
    elif join:
        join_experiment(settings, folder, Console(stderr=True), only_latency)
    elif executor:
        options = executor_options(executor_set or ())
        with begun(settings, folder, _command(), Console(stderr=True), quick, redo):
            pass  # the jobs go on
        _submit(config, folder, executor, jobs, options, [*(["--quick"] if quick else []), *_set_again(overrides)])
    else:
        console = Console(stderr=True)
        results = run_experiment(settings, folder, _command(), console, quick, jobs, redo, only_latency)
        if results is None:
            again = ["espalier", "run", str(config), *_set_again(overrides), "--out", str(folder), "--only", "latency"]
            closing(f"built all models in {folder / 'stages'}; no target is run here", again)
        else:
            _print_results(results, folder, as_json)


_NOT_WITH = {
    "plan": ("jobs", "join", "redo", "prune_folder"),
    "prune_folder": ("jobs", "join", "redo", "quick"),
    "executor": ("plan", "join", "prune_folder", "json"),
    "only": ("redo", "prune_folder", "executor"),
}
"""Option -> others that would do nothing beside it."""
_NEEDS = {"force": "prune_folder", "executor_set": "executor"}


def _check_options(given: dict[str, bool]) -> None:
    """Raise RequestError if options do not go together, or one lacks another that it needs."""
    for option, others in _NOT_WITH.items():
        check_together(_dashed(option), given[option], **{other: given[other] for other in others})
    for option, needed in _NEEDS.items():
        if given[option] and not given[needed]:
            raise RequestError(f"{_dashed(option)}: not used without {_dashed(needed)}; give both")


def _dashed(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _set_again(overrides: list[str] | None) -> list[str]:
    return [word for text in overrides or () for word in ("--set", text)]


def _submit(
    config: Path, folder: Path, executor: Executor, jobs: int, options: dict[str, Any], more: list[str]
) -> None:
    names = submitted(["run", "--out", str(folder), *more, "--", str(config)], folder, executor, jobs, options)
    closing(f"submitted {', '.join(names)}", ["espalier", "status", folder, "--follow"])


def _command() -> str:
    """Return the command of this process; arguments that are not UTF-8 hold lone surrogates, which no file can."""
    return shlex.join(["espalier", *sys.argv[1:]]).encode(errors="backslashreplace").decode()


def _print_plan(settings: "ExperimentConfig", folder: Path, as_json: bool, only_latency: bool) -> None:
    from experiment.plan_table import plan_figures, plan_table

    figures = plan_figures(settings, folder, only_latency)
    typer.echo(json.dumps(figures, indent=1)) if as_json else Console().print(plan_table(figures))


def _prune(settings: "ExperimentConfig", folder: Path, force: bool, as_json: bool) -> None:
    from experiment.unneeded import lines_of, prune_folder

    figures = prune_folder(settings, folder, force)
    typer.echo(json.dumps(figures, indent=1) if as_json else "\n".join(lines_of(figures)))
    if not force and figures["stages"]:
        closing("nothing was deleted", ["espalier", *sys.argv[1:], "--force"])


def _print_results(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the rows; raise WorkError if some failed."""
    from experiment.report import table_text

    if as_json:
        typer.echo(json.dumps(results["rows"], indent=1))
    else:
        Console().print(table_text(results))
    closing(f"wrote {folder / 'report.html'}", ["espalier", "report", folder, "--json"])
    if failed := results.get("failed"):
        raise WorkError(
            f"{len(failed)} of {len(failed) + len(results['rows'])} rows failed, {failed[0]['name']} first; "
            "give the same command again, or see the report"
        )
