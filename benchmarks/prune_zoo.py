"""Prune every network of the zoo with Espalier and with torch-pruning, and say which slim models are right.

Run:     python benchmarks/prune_zoo.py RECORD.json [--rounds 5] [--side 224] [--threads 2] [--only 'timm/*']
         --rounds 0 proves only, and times nothing: any machine will do; --proof-side 64 proves on smaller images
Writes:  a record: per network and tool whether the slim model equals the masked one (see masked_twin.py) and trains,
         the share of MACs and parameters removed, seconds of both in turn, and peak memory in sizes of the dense model

Both cut half of every group by the same criterion, and leave the dense model unchanged: torch-pruning cuts in place, so
its time includes the copy that it works on. Every network gets the same call: neither is told of its architecture, but
torch-pruning of the layers that compute outputs. Each step runs in a process of its own with limits on time and memory.
Results are kept as they come: the same command goes on where it was stopped, until code, options or versions change.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import warnings
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch_pruning
import torchvision
from masked_twin import FOREIGN_ERRORS, randomised
from records import write_cpu_record
from zoo_models import ZooModel, zoo_model, zoo_names
from zoo_pruners import RATIO, TOOLS, peak, proof, seconds
from zoo_tables import network_table, row, summary_table

from command.files import written_atomically

ROOT = Path(__file__).parents[1]


def step(path: Path, work: Callable[[], dict[str, Any]], limit_s: float, memory_gb: float) -> dict[str, Any]:
    """Return the result kept at `path`; where there is none, let a process of its own work, and keep its result."""
    if not path.exists():
        process = multiprocessing.get_context("fork").Process(target=_limited, args=(path, work, memory_gb))
        process.start()
        process.join(limit_s)
        if process.is_alive():
            process.kill()
            process.join()
            _keep(path, {"status": "not finished", "why": f"within {limit_s:.0f} s"})
        elif not path.exists():
            _keep(path, {"status": "crashed", "why": f"its process ended with code {process.exitcode}"})
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _limited(path: Path, work: Callable[[], dict[str, Any]], memory_gb: float) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_gb * 2**30),) * 2)
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends all the same, this process ends first
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    torch.manual_seed(0)
    try:
        _keep(path, work())
    except FOREIGN_ERRORS as error:
        _keep(path, {"status": "unmeasured", "why": f"{type(error).__name__}: {error}".splitlines()[0]})


def _keep(path: Path, result: dict[str, Any]) -> None:
    with written_atomically(path) as file:
        file.write_text(json.dumps(result))


def result_of(name: str, kind: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return all that is known of one network; what is kept already is not done again."""

    def kept(what: str, work: Callable[[ZooModel], dict[str, Any]], side: int) -> dict[str, Any]:
        path = folder / f"{name.replace('/', '.')}.{what}-{side}.json"
        return step(path, lambda: work(_made(name, side)), options.limit_s, options.memory_gb)

    result: dict[str, Any] = {"network": name, "kind": kind}
    for tool in TOOLS:
        result[tool] = kept(f"proof-{tool}", partial(proof, tool=tool), options.proof_side or options.side)
    if options.rounds:
        what = f"seconds-{options.rounds}-{options.threads}"
        times = kept(what, partial(seconds, rounds=options.rounds), options.side)
        result |= {key: times.get(key) for key in ("samples", "same_channels")}
        for tool in TOOLS:
            result[tool]["peak"] = kept(f"peak-{tool}", partial(peak, tool=tool), options.side).get("peak")
    return result


def _made(name: str, side: int) -> ZooModel:
    zoo = zoo_model(name, side)
    randomised(zoo.model)
    return zoo


def fingerprint(versions: dict[str, str], limits: tuple[float, float]) -> str:
    """Return a hash of all that a result depends on."""
    ours = [Path(__file__).with_name(f"{name}.py") for name in ("masked_twin", "zoo_models", "zoo_pruners")]
    content = [path.read_text() for path in (*sorted((ROOT / "prune").rglob("*.py")), *ours)]
    return hashlib.sha256(json.dumps([content, versions, limits]).encode()).hexdigest()[:12]


def main() -> None:
    """Work through the zoo and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("record", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--proof-side", type=int, help="of the images that proofs use, where it differs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["*"], help="names of networks, or patterns")
    parser.add_argument("--kept", type=Path, default=ROOT / "runs/prune-zoo", help="where results are kept")
    parser.add_argument("--limit-s", type=float, default=1800, help="of each step")
    parser.add_argument("--memory-gb", type=float, default=12, help="of each step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    versions = _versions()
    folder = options.kept / fingerprint(versions, (options.limit_s, options.memory_gb))
    names = {name: kind for name, kind in zoo_names().items() if any(fnmatch(name, only) for only in options.only)}
    results = []
    for number, (name, kind) in enumerate(names.items(), 1):
        results.append(result_of(name, kind, folder, options))
        print(f"{number}/{len(names)}", *row(results[-1]), sep="  ", flush=True)
    conditions = {name: vars(options)[name] for name in ("side", "proof_side", "threads", "limit_s", "memory_gb")}
    conditions |= {"ratio": RATIO, "packages": versions}
    columns, table = network_table(results)
    conditions["networks"] = {"columns": columns, "table": table}
    write_cpu_record(options.record, "pruning", conditions, results, *summary_table(results))


def _versions() -> dict[str, str]:
    installed = [torch, torchvision, torch_pruning]
    try:
        import timm

        installed.append(timm)
    except ImportError:
        pass
    return {module.__name__: module.__version__ for module in installed}


if __name__ == "__main__":
    main()
