"""Imports run one way, wherever they are written: between the folders, and between the parts of a folder."""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

import pytest

FOLDERS = {
    "command": set(),
    "prune": {"command"},
    "deploy": {"command", "prune"},
    "classify": {"command", "prune", "deploy"},
    "detect": {"command", "prune", "deploy", "classify"},
    "experiment": {"command", "prune", "deploy", "classify", "detect"},
    "espalier": {"command", "prune", "deploy", "classify", "detect", "experiment"},
}
"""Folder -> those it may import."""
PARTS = {
    "prune.follow": set(),
    "prune.cut": {"prune.follow"},
    "prune.choose": {"prune.follow", "prune.cut"},
    "prune.refit": {"prune.follow", "prune.cut", "prune.choose"},
    "prune.learn": {"prune.follow", "prune.cut", "prune.choose"},
    "deploy.runtimes": set(),
    "deploy.explain": {"deploy.runtimes"},
    "deploy.triton": {"deploy.runtimes"},
}
"""Part of a folder -> the other parts of that folder that it may import."""
TORCH_FREE = "prune.layer_rows"
"""What deploy may import from prune: it runs without torch."""
ONLY_IN = {
    "mmcv": ("detect/openmmlab.py", "detect/ops.py"),
    "mmdet": ("detect/openmmlab.py", "detect/ops.py"),
    "tensorrt": ("deploy/",),
    "tensorrt_rtx": ("deploy/",),
    "torch_pruning": ("tests/",),
}
"""Package -> beginnings of the paths that may import it; imports for type checkers only are allowed anywhere."""


def imports(path: str, text: str, *, typing: bool = True) -> Iterator[tuple[int, str]]:
    """Yield (line, full name) of all imports, those inside functions too; without `typing` not those of types alone."""
    package, tree = path.split("/")[:-1], ast.parse(text, path)
    skipped = set() if typing else {node for block in type_checking(tree) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def type_checking(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements that only type checkers read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from node.body


def is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def wrong_folders(sources: Mapping[str, str]) -> list[str]:
    found = []
    for path, text in sources.items():
        importer = path.split("/")[0]
        for line, name in imports(path, text):
            imported = name.split(".")[0]
            if imported in FOLDERS and imported not in FOLDERS[importer] | {importer}:
                allowed = ", ".join(sorted(FOLDERS[importer])) or "none of the others"
                found.append(f"{path}:{line}: {importer} imports {imported}; it may import {allowed}")
            elif (importer, imported) == ("deploy", "prune") and not is_in(name, TORCH_FREE):
                found.append(f"{path}:{line}: deploy imports {name}; of prune it may import {TORCH_FREE}")
    return found


def wrong_parts(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{line}: {importer} imports {imported}; it may import {', '.join(PARTS[importer]) or 'no other part'}"
        for path, text in sources.items()
        if (importer := ".".join(PurePosixPath(path).parts[:2])) in PARTS
        for line, name in imports(path, text)
        for imported in PARTS
        if is_in(name, imported) and imported not in PARTS[importer] | {importer}
    ]


def misplaced_packages(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{line}: imports {name}; only {' and '.join(places)} may"
        for path, text in sources.items()
        for line, name in imports(path, text, typing=not path.startswith("detect/"))
        if (places := ONLY_IN.get(name.split(".")[0])) and not path.startswith(places)
    ]


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


def test_folders_are_imported_one_way(package_sources):
    found = wrong_folders(package_sources)
    assert not found, "\n".join(["move what both need to the lower folder:", *found])


def test_parts_of_a_folder_are_imported_one_way(package_sources):
    found = wrong_parts(package_sources)
    assert not found, "\n".join(["move what both need to the lower part, or above both:", *found])


def test_every_part_has_its_place_in_the_order(package_sources):
    parts = {".".join(path.parts[:2]) for path in map(PurePosixPath, package_sources) if len(path.parts) > 2}
    assert parts == set(PARTS)


def test_packages_are_imported_where_they_belong(package_sources):
    found = misplaced_packages(package_sources)
    assert not found, "\n".join(found)


def test_no_modules_import_each_other(package_sources):
    found = cycle(package_sources)
    assert not found, f"{' imports '.join(found)}; move what both need to a module of its own"


def lines(messages):
    return [message.split(": ")[0] for message in messages]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("command/bad.py", "import prune"),
        ("prune/bad.py", "import classify.train"),
        ("prune/bad.py", "from deploy import measure"),
        ("deploy/bad.py", "def late():\n    from prune import cost"),
        ("deploy/bad.py", "import prune.layer_rowset"),
        ("deploy/bad.py", "from classify.checkpoint import ModelCard"),
        ("classify/bad.py", "import detect"),
        ("detect/bad.py", "from experiment.config import ExperimentConfig"),
        ("experiment/bad.py", "import espalier"),
    ],
)
def test_import_of_a_higher_folder_is_found(path, text):
    assert lines(wrong_folders({path: text})) == [f"{path}:{text.count(chr(10)) + 1}"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("prune/cut/bad.py", "from prune.choose.recipe import Recipe"),
        ("prune/follow/bad.py", "from ..cut import spec"),
        ("deploy/runtimes/bad.py", "import deploy.explain.roofline"),
        ("deploy/explain/bad.py", "from deploy.triton import package"),
        ("deploy/triton/bad.py", "from deploy.explain.advice import advice"),
    ],
)
def test_import_of_a_higher_part_is_found(path, text):
    assert lines(wrong_parts({path: text})) == [f"{path}:1"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("classify/bad.py", "from mmdet.apis import init_detector"),
        ("detect/model.py", "import mmcv"),
        ("detect/model.py", "if True:\n    from mmdet.models import FasterRCNN"),
        ("experiment/bad.py", "if TYPE_CHECKING:\n    import mmdet"),
        ("detect/bad.py", "import tensorrt"),
        ("prune/bad.py", "import torch_pruning"),
    ],
)
def test_misplaced_package_is_found(path, text):
    assert lines(misplaced_packages({path: text})) == [f"{path}:{text.count(chr(10)) + 1}"]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "detect/openmmlab.py",
            "import torch, mmdet, prune.cost\nfrom classify import train\nfrom mmcv.ops import nms",
        ),
        ("detect/good.py", "if TYPE_CHECKING:\n    from mmdet.models import FasterRCNN"),
        ("deploy/good.py", "from prune.layer_rows import LayerRow\nimport tensorrt_rtx"),
        ("deploy/explain/good.py", "from deploy.runtimes import registry\nfrom deploy import latency"),
        ("prune/choose/good.py", "from prune.cut import spec\nfrom prune.follow.groups import Group"),
        ("espalier/good.py", "import classify, command, deploy, detect, experiment, prune"),
    ],
)
def test_allowed_imports_pass(path, text):
    sources = {path: text}
    assert [*wrong_folders(sources), *wrong_parts(sources), *misplaced_packages(sources)] == []


@pytest.mark.parametrize("back", ["import prune.a", "from prune import a", "from prune.a import f", "from . import a"])
def test_cycle_is_found(back):
    assert set(cycle({"prune/a.py": "import prune.b", "prune/b.py": back})) == {"prune.a", "prune.b"}


def test_package_that_gathers_its_modules_is_no_cycle():
    modules = {"prune/__init__.py": "from prune.a import f", "prune/a.py": "from prune import b", "prune/b.py": ""}
    assert cycle(modules) == []
