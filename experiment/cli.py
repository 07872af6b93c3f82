"""The `espalier` command."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["app", "doctor", "main", "report", "run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune backbones, transfer them to Faster R-CNN, and measure what it really buys.",
)

Overrides = Annotated[list[str] | None, typer.Option("--set", help="a.b=value over the config; may be repeated.")]


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Experiment config, as configs/experiment/quickstart.py.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name> unless given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Figures alone on standard output.")] = False,
) -> None:
    """Run a whole experiment, or what is left of it."""
    console = Console(stderr=True)
    with console.status("Loading torch and mmdet ..."):
        from experiment.config import load_config
        from experiment.report import table_text
        from experiment.run import run_experiment
    settings = load_config(config, overrides or [])
    folder = out or Path("runs") / settings.name
    command = shlex.join(["espalier", *sys.argv[1:]])
    results = run_experiment(settings, folder, command, console)
    if as_json:
        print(json.dumps(results["rows"], indent=1))
    else:
        Console().print(table_text(results))
    _closing(console, f"Report: {folder / 'report.html'}", f"Next: espalier report {folder} --json")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder, as runs/quickstart.")],
    as_json: Annotated[bool, typer.Option("--json", help="Figures alone on standard output.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")] = False,
) -> None:
    """Write a run's report again from its results, and print its table."""
    from experiment.report import table_markdown, table_text, write_report

    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a finished run, made by espalier run CONFIG")
    results = json.loads(path.read_text())
    written = write_report(results, folder)
    if as_json:
        print(json.dumps(results["rows"], indent=1))
    elif markdown:
        print(table_markdown(results))
    else:
        Console().print(table_text(results))
    _closing(
        Console(stderr=True), f"Report: {written}", f"Next: espalier deploy bench {folder}/stages/export-*/model.onnx"
    )


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON.")] = False) -> None:
    """Tell what this machine can do, and what to install for the rest."""
    from experiment.doctor import examine, report_table

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        Console().print(report_table(findings))
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command; a wrong request is one line and exit code 2, work that failed one line and exit code 1."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    from deploy.cli import app as deploy_app

    app.add_typer(deploy_app, name="deploy", help="Export, build engines, measure.")
    try:
        app()
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        _fail(error, 2)
    except (RuntimeError, OSError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    if os.environ.get("ESPALIER_TRACEBACK"):
        raise error
    print(f"espalier: {error}", file=sys.stderr)
    sys.exit(code)


def _closing(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
