"""The `espalier` command."""

import json
import os
import re
import shlex
import shutil
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from classify.cli import app as classify_app
from command.config import config_file, shipped_configs
from command.errors import RequestError, exit_code_of
from command.extras import loading
from command.options import AsJson, AsLatex, Force, check_one_form, check_together, closing, refuse_existing
from detect.cli import app as detect_app
from detect.cli import mmdet
from experiment.deploy_cli import app as deploy_app
from experiment.import_cli import bring
from experiment.prune_cli import app as prune_app
from experiment.run_cli import run
from experiment.status_cli import status

__all__ = ["app", "configs", "copy", "doctor", "main", "report", "run"]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune backbones, transfer them to Faster R-CNN, and measure the real speedup.",
)
app.command("import")(bring)
app.command()(run)
app.command()(status)
app.add_typer(classify_app, name="classify")
app.add_typer(prune_app, name="prune")
app.add_typer(detect_app, name="detect")
app.add_typer(deploy_app, name="deploy")
app.command("mmdet", context_settings={"allow_interspersed_args": False})(mmdet)
configs_app = typer.Typer(help="List the configs that come with Espalier, or copy one to edit.")
app.add_typer(configs_app, name="configs")


def _print_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"espalier {metadata.version('espalier')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Prune backbones, transfer them to Faster R-CNN, and measure the real speedup."""


@configs_app.callback(invoke_without_command=True)
def configs(context: typer.Context) -> None:
    """List the configs that come with Espalier, each with its first line."""
    if context.invoked_subcommand:
        return
    kind = None
    for name, path in shipped_configs().items():
        if path.parent.name != kind:
            kind = path.parent.name
            typer.echo(f"\n{kind}" if name != next(iter(shipped_configs())) else kind)
        first_line = path.read_text("utf-8").strip('"').partition("\n")[0]
        typer.echo(f"  {name:28} {first_line}")


@configs_app.command()
def copy(
    name: Annotated[str, typer.Argument(help="Name of a config, as quickstart.")],
    folder: Annotated[Path, typer.Argument(file_okay=False, help="Folder to copy it to.")] = Path(),
    force: Force = False,
) -> None:
    """Copy a config that comes with Espalier, to edit it."""
    source, target = config_file(name), folder / f"{Path(name).stem}.py"
    if source not in shipped_configs().values():
        raise RequestError(f"{name}: a file of yours; expected a name that espalier configs lists")
    refuse_existing(force, target)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    closing(f"wrote {target}", _command_with(source, target))


def _command_with(source: Path, target: Path) -> str:
    """Return the command in a config's docstring, with another path of the config."""
    name = rf" {source.stem}(?= |$)"
    lines = source.read_text("utf-8").splitlines()
    command = next(line for line in lines if "espalier " in line and re.search(name, line))
    return re.sub(name, f" {shlex.quote(str(target))}", command[command.index("espalier ") :], count=1)


@app.command()
def report(
    folders: Annotated[
        list[Path], typer.Argument(help="Run folder, as runs/quickstart; of several, all are compared with the first.")
    ],
    merge: Annotated[
        bool, typer.Option("--merge", help="Unite the stages of several folders of one experiment in --out.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder that --merge makes.", show_default="none")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_latex: AsLatex = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print only the table, as CSV.")] = False,
) -> None:
    """Write a run's report again from its results, and print the table of results; or compare several runs."""
    forms = {"json": as_json, "markdown": markdown, "latex": as_latex, "csv": as_csv}
    check_one_form(**forms)
    check_together("--merge", merge, **forms)
    if out and not merge:
        raise RequestError(f"--out {out}: not used without --merge; give both")
    with loading("the report"):
        from experiment import folders_cli
        from experiment.report import csv_of_rows, table_latex, table_markdown, table_text, write_report
        from experiment.results import RESULTS, read_results
    if merge:
        folders_cli.merge(folders, out)
        return
    if len(folders) > 1:
        folders_cli.print_side_by_side(folders, next((form for form, is_asked in forms.items() if is_asked), "text"))
        return
    (folder,) = folders
    results = read_results(folder / RESULTS)
    written = write_report(results, folder)
    if as_json:
        print(json.dumps(results["rows"], indent=1))
    elif markdown:
        print(table_markdown(results))
    elif as_latex:
        print(table_latex(results), end="")
    elif as_csv:
        print(csv_of_rows(results["rows"]), end="")
    else:
        Console().print(table_text(results))
    closing(f"wrote {written}", _bench(results["rows"], folder))


def _bench(rows: list[dict[str, Any]], folder: Path) -> list[str]:
    """Return the words of the command that times the first seed's models again, the dense one first, on one target.

    Of classifiers, which differ by their weights alone where they are cut alike, one of each.
    """
    first = [row for row in rows if all(row.get(key) == rows[0].get(key) for key in ("seed", "target"))]
    dense_first = sorted(first, key=lambda row: row["ordering"] != "dense")
    if all(row["map"] is None for row in rows):
        cuts = {
            (row.get("backbone"), row["method"], row["prune_ratio"], row.get("limit")): row for row in dense_first[::-1]
        }
        dense_first = list(cuts.values())[::-1]
    files = dict.fromkeys(folder / (row.get("engine") or row["onnx"]) for row in dense_first)
    return ["espalier", "deploy", "bench", *map(str, files)]


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check what this machine can do, and what to install for the rest."""
    from experiment.doctor import examine, report_table

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        Console().print(report_table(findings))
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command and end the process with its exit code; see `command.errors`."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS"):
        os.environ.pop(name, None)  # torch would wait for ever for the threads that a config asks for
    sys.exit(exit_code_of(_parse_and_run))


def _parse_and_run() -> None:
    """Run the command of this process's arguments; wrong usage is a RequestError, in one line as all others."""
    try:
        sys.exit(app(prog_name="espalier", standalone_mode=False))
    except Exception as error:
        message, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
        if message is None:  # not an error of typer's parser, whose classes are private
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(context.get_help() if context else "", err=True)
            sys.exit(2)
        path = context.command_path if context else "espalier"
        what = " ".join(message().split()).rstrip(".")
        raise RequestError(f"{path}: {what}; see {path} --help") from error
