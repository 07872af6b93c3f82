"""The common part of the records of these measurements; tables.py reads `columns` and `table`."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.record import cpu_model, git_commit, installed_versions

__all__ = ["write_cpu_record"]


def write_cpu_record(
    path: Path,
    what: str,
    conditions: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    table: Sequence[Sequence[str]],
) -> None:
    """Write a record measured on this machine's CPU, and print its table."""
    record = {
        "kind": f"{what}, measured on a CPU",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": cpu_model(),
        **conditions,
        "commit": git_commit(),
        "versions": installed_versions(),
        "results": results,
        "columns": columns,
        "table": table,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    for row in table:
        print(*row, sep="  ")
