"""Options and closing lines that the commands of all folders share."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from command.errors import RequestError
from command.files import shown
from command.own_code import is_own_code

__all__ = [
    "AsJson",
    "AsLatex",
    "Force",
    "Launcher",
    "LauncherOption",
    "Overrides",
    "check_file_name",
    "check_one_form",
    "check_together",
    "closing",
    "model_output",
    "out_file",
    "refuse_existing",
    "setting",
    "show",
]

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a config key, as a.b=value; may be repeated.", show_default="the config's own"
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace existing output.")]
Launcher = Literal["pytorch", "slurm"]
"""What starts several processes of one training: torchrun, or srun."""
LauncherOption = Annotated[
    Launcher | None,
    typer.Option(
        "--launcher",
        help="Take part in a training that torchrun (pytorch) or srun (slurm) started several processes of.",
        show_default="this process trains alone",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only the figures on standard output, as JSON.")]

AsLatex = Annotated[bool, typer.Option("--latex", help="Print only the table, for LaTeX with the package booktabs.")]


def out_file(default: str) -> Any:
    """Return the option of the model file that a command writes; its help shows the default."""
    return typer.Option(dir_okay=False, help="Model file to write.", show_default=default)


def model_output(out: Path | None, default: Path) -> Path:
    """Return the model file to write.

    Raises:
        RequestError: If its name does not end in .safetensors, by which model files are recognised.
    """
    if out and out.suffix != ".safetensors":
        raise RequestError(
            f"--out {out}: not a model file's name, got the ending {out.suffix!r}; expected .safetensors"
        )
    return out or default


def check_file_name(path: Path) -> None:
    """Raise RequestError if a path has no file name, as one from an empty shell variable."""
    if not path.name:
        raise RequestError(f"{str(path)!r}: not a file; expected a file's name")


def refuse_existing(force: bool, *paths: Path) -> None:
    """Raise RequestError if a path exists, unless `force`."""
    for path in paths:
        if path.exists() and not force and not _is_unfinished(path):
            raise RequestError(f"{path}: exists already; give another --out, or --force to replace it")


def _is_unfinished(path: Path) -> bool:
    """Return whether a folder holds only what a process that was killed while filling it left there."""
    return path.is_dir() and {entry.name for entry in path.iterdir()} in ({".lock"}, {".lock", ".partial"})


def check_together(option: str, is_given: bool, **others: bool) -> None:
    """Raise RequestError if an option is given with others that would do nothing beside it."""
    if is_given and (found := [f"--{name.replace('_', '-')}" for name, is_there in others.items() if is_there]):
        raise RequestError(f"{' '.join(found)}: not used with {option}; give one of them")


def check_one_form(**chosen: bool) -> None:
    """Raise RequestError if more than one of these output formats is chosen; the names are those of the options."""
    forms = [f"--{name}" for name, is_chosen in chosen.items() if is_chosen]
    if len(forms) > 1:
        raise RequestError(f"{' '.join(forms)}: more than one output format, got {len(forms)}; expected one")


def show(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print figures on standard output: JSON, or one line each; of figures by name, those names in their place."""
    if as_json:
        typer.echo(json.dumps(figures, indent=1))
        return
    named = [(key, value) for key, value in figures.items() if isinstance(value, Mapping)]
    flat = {key: value for key, value in figures.items() if not isinstance(value, Mapping)}
    flat |= {f"  {shown(name)}": figure for _, inner in named for name, figure in inner.items()}
    width = max(map(len, flat))
    for name, figure in flat.items():
        typer.echo(f"{name:{width}}  {_figure_text(figure)}")


def _figure_text(figure: float | None) -> str:
    if figure is None:
        return "none"
    return f"{figure:,.4f}" if isinstance(figure, float) else f"{figure:,}"


def setting(name: str, value: Any) -> str:
    """Return the argument of `--set` that gives a key a value, in double quotes, which the shell's single ones hold."""
    return f"{name}={_literal(value)}"


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{json.dumps(key)}: {_literal(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))},)"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def closing(done: str, next_command: str | Sequence[str | Path], backbone: str | None = None) -> None:
    """Print on standard error what was written and what to run next.

    Args:
        done: What was written.
        next_command: A command line, or its words, to be quoted.
        backbone: The option `--backbone`, which the next command needs too if it names own code.
    """
    line = next_command if isinstance(next_command, str) else shlex.join(map(str, next_command))
    line += f" --backbone {shlex.quote(backbone)}" if backbone and is_own_code(backbone) else ""
    typer.echo(f"{done}\nnext: {line}", err=True)
