"""Stages of one experiment that were done in several folders, on several machines, united in one."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from command.errors import RequestError
from command.files import flush, flush_entry, make_folder
from command.folders import locked
from experiment.planned import free_bytes
from experiment.results import RESULTS, RUN
from experiment.stages import LATENCY, StageRecord, as_written, stage_folders

__all__ = ["merge_folders"]

_Found = dict[str, tuple[Path, StageRecord]]
"""Name of a stage's folder -> where it is, and its record."""


def merge_folders(folders: Sequence[Path], out: Path) -> int:
    """Copy the finished stages of run folders into a new one, whole or not at all; return how many it has.

    `espalier run` takes the times there, and writes results as of a run that did everything. A merge that was killed
    goes on where it is given again.

    Args:
        folders: Of runs.
        out: Run folder; created.

    Raises:
        RequestError: If a folder has no stages, a stage was changed, two folders differ in what they hold of one stage
            or of what it was made from, there is a run in `out`, or too little space.
    """
    for folder in folders:
        if not (folder / "stages").is_dir():
            raise RequestError(f"{folder}: no stages, expected the folder of a run")
    if (out / RUN).exists() or (out / RESULTS).exists():
        raise RequestError(f"{out}: exists already, with a run in it; give another --out")
    with locked(out):
        there, found = _found([out]), _found([*folders, out])
        _check_inputs(found)
        left = {name: found[name] for name in found if name not in there}
        need = sum(record.num_bytes for _, record in left.values())
        if need > (free := free_bytes(out)):
            raise RequestError(f"{out}: {free / 1e9:.1f} GB free on its disk; expected at least {need / 1e9:.1f} GB")
        for name, (source, _) in left.items():
            _copy(source, out / "stages" / name)
    return len(found)


def _found(folders: Sequence[Path]) -> _Found:
    """Return all finished stages but those of times; raise RequestError where two folders have different ones."""
    found: _Found = {}
    for path, record in _stages(folders):
        first, known = found.setdefault(path.name, (path, record))
        if known.content != record.content:
            raise RequestError(
                f"{path}: differs from {first}, the same stage done elsewhere; delete one of both and what was made "
                "from it: the run of the merged folder does that again"
            )
    return found


def _stages(folders: Sequence[Path]) -> Iterator[tuple[Path, StageRecord]]:
    for folder in folders:
        for path in stage_folders(folder / "stages"):
            record = as_written(path)
            if path.name != f"{record.name}-{record.hash}":
                raise RequestError(f"{path}: of another stage, got {record.name}-{record.hash}; delete it")
            if record.name != LATENCY:  # those of several machines are not comparable: all are taken again
                yield path, record


def _check_inputs(found: _Found) -> None:
    for path, record in found.values():
        for name, content in record.inputs.items():
            if name in found and found[name][1].content != content:
                raise RequestError(f"{path}: made from another {name} than {found[name][0]}; delete one of both")


def _copy(source: Path, target: Path) -> None:
    """Copy a stage; what a kill leaves has no record, which is copied last, and is no finished stage."""
    partial = target.with_name(f"{target.name}.partial")
    make_folder(target.parent)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=lambda folder, _: ["stage.json"] if Path(folder) == source else [])
    flush(partial)
    shutil.copy2(source / "stage.json", partial)
    flush_entry(partial / "stage.json")
    partial.rename(target)
    flush_entry(target.parent)
