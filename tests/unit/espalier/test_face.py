import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import espalier

ROOT = Path(__file__).parents[3]
PACKAGES = ["espalier", "classify", "deploy", "detect", "prune"]
RUNTIMES = """
import json
from deploy.runtimes.registry import RUNTIMES

before = {name: (runtime.suffix, id(runtime.runner)) for name, runtime in RUNTIMES.items()}
import experiment

print(json.dumps([before == {name: (runtime.suffix, id(runtime.runner)) for name, runtime in RUNTIMES.items()}]))
"""


def named_for_editors(package):
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return [alias.asname or alias.name for node in block.body for alias in node.names]


def in_fresh_process(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_match_those_for_editors(package):
    assert sorted(named_for_editors(package)) == sorted(__import__(package).__all__)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_resolves(package):
    module = __import__(package)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_public_names_are_the_objects_of_the_folders():
    import deploy
    import prune

    assert espalier.Detector is deploy.Detector
    assert espalier.prune_model is prune.prune_model


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'espalier' has no attribute 'Detektor'$"):
        _ = espalier.Detektor


@pytest.mark.parametrize("package", [*PACKAGES, "command", "experiment"])
def test_importing_a_folder_loads_neither_torch_nor_mmdet(package):
    ran = in_fresh_process(f"import sys, {package}; print({{'torch', 'mmdet', 'mmengine'}} & {{*sys.modules}})")
    assert (ran.returncode, ran.stdout.strip()) == (0, "set()"), ran.stderr


def test_importing_experiment_changes_no_runtime():
    ran = in_fresh_process(RUNTIMES)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == [True]
