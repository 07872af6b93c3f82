"""Jobs that share a run, sent to a Slurm cluster, or started on this machine, by submitit."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from command.config import literal
from command.errors import RequestError, WorkError
from command.extras import optional_module

__all__ = ["Executor", "executor_options", "submitted"]

Executor = Literal["slurm", "local"]
_FOLDER = "jobs"
_DEFAULTS = {"timeout_min": 24 * 60}
"""submitit's own is five minutes."""
_MOST_RESTARTS = 1000
"""A job that reaches its time limit, or makes room for another, is queued again and goes on; submitit's own is 3."""


def executor_options(texts: Sequence[str]) -> dict[str, Any]:
    """Return the options of jobs from `name=value` texts; a value is a Python literal, or else a string.

    Raises:
        RequestError: If a text is no such, or submitit is not installed.
    """
    optional_module("submitit", "--executor needs")
    pairs = [text.partition("=") for text in texts]
    for text, (name, equals, _) in zip(texts, pairs, strict=True):
        if not (name and equals):
            raise RequestError(f"--executor-set {text}: no name and value; expected as timeout_min=600")
    return {name: literal(value) for name, _, value in pairs}


def submitted(
    run: Sequence[str], folder: Path, executor: Executor, num_jobs: int, options: Mapping[str, Any]
) -> list[str]:
    """Submit the command of a run that was begun, and others that join it; return the jobs' names.

    Args:
        run: Arguments of `espalier`, without --join.
        folder: Run folder; the jobs' output goes into `jobs` in it.
        executor: Where to.
        num_jobs: In all. Any of them may begin first.
        options: Of each job, as submitit's AutoExecutor takes them.

    Raises:
        RequestError: If it takes no such option, or there is no Slurm here.
        WorkError: If Slurm refuses the jobs.
    """
    submitit = optional_module("submitit", "--executor needs")
    joined = [run[0], "--join", *run[1:]]  # what follows may end with `-- CONFIG`
    try:
        settings = {f"{executor}_max_num_timeout": _MOST_RESTARTS}
        jobs = submitit.AutoExecutor(folder=folder / _FOLDER, cluster=executor, **settings)
        jobs.update_parameters(**{"name": "espalier", **_DEFAULTS, **options})
    except (ValueError, NameError, TypeError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"--executor {executor}: {json.dumps(dict(options))} does not do, {reason}") from error
    try:
        with jobs.batch():
            sent = [jobs.submit(_restarting(submitit, words)) for words in (run, *[joined] * (num_jobs - 1))]
    except RuntimeError as error:
        raise WorkError(f"--executor {executor}: the jobs were refused, {' '.join(str(error).split())}") from error
    return [str(job.job_id) for job in sent]


def _restarting(submitit: Any, words: Sequence[str]) -> Any:
    """Return the work of a job, of submitit's own parts: nodes need not find ours, nor a user's of the same names."""
    work = submitit.helpers.FunctionSequence()
    work.add(submitit.helpers.CommandFunction([sys.executable, "-m", "espalier", *words]))
    return work
