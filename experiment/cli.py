"""The `espalier` command."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from classify.cli import AsJson, Overrides, closing, loading
from classify.cli import app as classify_app
from experiment.deployed.cli import app as deploy_app
from experiment.prune_cli import app as prune_app

__all__ = ["app", "doctor", "main", "report", "run"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prune backbones, transfer them to Faster R-CNN, and measure what it really buys.",
)


class _Detect(TyperGroup):
    """The commands of `detect`, read when one is asked for: importing that package loads torch and mmdet."""

    @cached_property
    def _group(self) -> TyperGroup:
        with loading("torch and mmdet"):
            from experiment.deployed.predict_cli import app as detect_app
        return typer.main.get_group(detect_app)

    def list_commands(self, ctx: Any) -> list[str]:
        return self._group.list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._group.get_command(ctx, cmd_name)


app.add_typer(classify_app, name="classify")
app.add_typer(typer.Typer(cls=_Detect, no_args_is_help=True), name="detect", help="Train, evaluate and try detectors.")
app.add_typer(prune_app, name="prune")
app.add_typer(deploy_app, name="deploy", help="Export, build engines, measure.")


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Experiment config, as configs/experiment/quickstart.py.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/<name> unless given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a whole experiment, or what is left of it."""
    with loading("torch and mmdet"):
        from experiment.config import load_config
        from experiment.report import table_text
        from experiment.run import run_experiment
    settings = load_config(config, overrides or [])
    folder = out or Path("runs") / settings.name
    command = shlex.join(["espalier", *sys.argv[1:]])
    results = run_experiment(settings, folder, command, Console(stderr=True))
    if as_json:
        print(json.dumps(results["rows"], indent=1))
    else:
        Console().print(table_text(results))
    closing(f"wrote {folder / 'report.html'}", f"espalier report {folder} --json")


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Run folder, as runs/quickstart.")],
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")] = False,
) -> None:
    """Write a run's report again from its results, and print its table."""
    from experiment.report import read_results, table_markdown, table_text, write_report

    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected a finished run, made by espalier run CONFIG")
    results = read_results(path)
    written = write_report(results, folder)
    if as_json:
        print(json.dumps(results["rows"], indent=1))
    elif markdown:
        print(table_markdown(results))
    else:
        Console().print(table_text(results))
    closing(f"wrote {written}", f"espalier deploy bench {folder}/stages/export-*/model.onnx")


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
    try:
        app(prog_name="espalier")
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        _fail(error, 2)
    except (RuntimeError, OSError) as error:
        _fail(error, 1)


def _fail(error: Exception, code: int) -> None:
    if os.environ.get("ESPALIER_TRACEBACK"):
        raise error
    print(f"espalier: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
