"""Imports run one way, prune <- classify <- detect, deploy alone, experiment over all, wherever they are written."""

import ast
import graphlib
from collections.abc import Iterator, Mapping

import pytest

ALLOWED = {
    "prune": set(),
    "classify": {"prune"},
    "detect": {"prune", "classify"},
    "deploy": set(),
    "experiment": {"prune", "classify", "detect", "deploy"},
}
ONLY_IN = {
    "mmcv": "detect",
    "mmdet": "detect",
    "torch_pruning": "tests",
    "tensorrt": "deploy",
    "tensorrt_rtx": "deploy",
}


def imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield (line, full name) of all imports, those inside functions too."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(text, path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def wrong_directions(sources: Mapping[str, str]) -> list[str]:
    found = []
    for path, text in sources.items():
        importer = path.split("/")[0]
        for line, name in imports(path, text):
            imported = name.split(".")[0]
            if imported in ALLOWED and imported not in ALLOWED[importer] | {importer}:
                allowed = ", ".join(sorted(ALLOWED[importer])) or "none of the others"
                found.append(f"{path}:{line}: {importer} imports {imported}; it may import {allowed}")
            if ONLY_IN.get(imported, importer) != importer:
                found.append(f"{path}:{line}: {importer} imports {imported}; only {ONLY_IN[imported]} may")
    return found


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of one import cycle, the first again at the end; empty without one."""
    module_of = {path: path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in sources}
    modules = set(module_of.values())
    graph = {
        module_of[path]: {
            # `from a import b` needs the module a.b where there is one, else the module a
            name if name in modules else name.rpartition(".")[0]
            for _, name in imports(path, text)
        }
        & modules
        for path, text in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return []


def test_imports_run_one_way(package_sources):
    found = wrong_directions(package_sources)
    assert not found, "\n".join(["move what both need to the lower package:", *found])


def test_no_modules_import_each_other(package_sources):
    found = cycle(package_sources)
    assert not found, f"{' imports '.join(found)}; move what both need to a module of its own"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("prune/bad.py", "import classify.train"),
        ("deploy/bad.py", "def late():\n    from prune import cost"),
        ("detect/bad.py", "from experiment.config import load_config"),
        ("classify/bad.py", "from mmdet.apis import init_detector"),
    ],
)
def test_wrong_direction_is_found(path, text):
    line = text.count("\n") + 1
    assert [message.split(": ")[0] for message in wrong_directions({path: text})] == [f"{path}:{line}"]


def test_allowed_imports_pass():
    assert wrong_directions({"detect/good.py": "import torch, mmdet, prune.cost\nfrom classify import train"}) == []


@pytest.mark.parametrize("back", ["import prune.a", "from prune import a", "from prune.a import f", "from . import a"])
def test_cycle_is_found(back):
    assert set(cycle({"prune/a.py": "import prune.b", "prune/b.py": back})) == {"prune.a", "prune.b"}


def test_package_that_gathers_its_modules_is_no_cycle():
    assert (
        cycle({"prune/__init__.py": "from prune.a import f", "prune/a.py": "from prune import b", "prune/b.py": ""})
        == []
    )
