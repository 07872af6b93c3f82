import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from espalier import places
from espalier.places import FOLDERS, OursFirst, check_folders

ROOT = Path(__file__).parents[3]
TRAP = "raise SystemExit('a file of the user was taken for ours')\n"
USERS = {
    "files": ["detect.py", "deploy.py", "command.py", "classify.py", "prune.py", "experiment.py"],
    "package": ["experiment/__init__.py", "experiment/cli.py", "command/__init__.py", "command/errors.py"],
    "folder": ["experiment/cli.py", "command/errors.py", "deploy/cli.py"],
    "configs": ["configs/experiment/quickstart.py", "configs/__init__.py", "espalier/configs/experiment/quickstart.py"],
}
"""Names that users give to files of their own."""
STARTS = {
    "script": [str(Path(sys.executable).with_name("espalier"))],
    "module": [sys.executable, "-m", "espalier"],
}
SCRIPT = "from espalier import Detector\n"


@pytest.fixture
def users(tmp_path):
    """Write files of a user, all of which end the process when they run, into a folder of their own."""

    def write(names):
        folder = tmp_path / "user"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(TRAP)
        return folder

    return write


def run(command, folder, **environment):
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", USERS)
@pytest.mark.parametrize("start", STARTS)
def test_command_imports_no_user_file_instead_of_ours(start, kind, users):
    folder = users(USERS[kind])
    ran = run([*STARTS[start], "deploy", "build", "none.onnx"], folder)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("espalier: none.onnx: no such file; ")


@pytest.mark.parametrize("kind", USERS)
def test_command_imports_nothing_on_pythonpath_instead_of_ours(kind, users, tmp_path):
    folder = users([name for name in USERS[kind] if not name.startswith("espalier/")])
    ran = run([*STARTS["script"], "deploy", "build", "none.onnx"], tmp_path, PYTHONPATH=str(folder))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("espalier: none.onnx: no such file; ")


def test_config_of_the_user_is_not_taken_by_its_name(users):
    folder = users(USERS["configs"])
    ran = run([*STARTS["script"], "configs", "copy", "quickstart", "mine"], folder)
    assert ran.returncode == 0, ran.stderr
    assert (folder / "mine/quickstart.py").read_text() == (ROOT / "configs/experiment/quickstart.py").read_text()


@pytest.mark.parametrize(
    ("name", "hiding", "hidden"),
    [
        ("deploy.py", "deploy.py", "deploy"),
        ("detect.py", "detect.py", "detect"),
        ("experiment/__init__.py", "experiment", "experiment"),
        ("command/errors.py", "command", "command"),
    ],
)
def test_script_beside_a_hiding_file_ends_with_the_remedy(name, hiding, hidden, users):
    folder = users([name])
    (folder / "script.py").write_text(SCRIPT)
    ran = run([sys.executable, "script.py"], folder)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        f"ImportError: espalier: {folder / hiding} hides espalier's own folder {hidden}; rename it, or run from "
        f"another folder and leave it out of PYTHONPATH"
    )


def test_script_that_hides_a_folder_itself_is_named(tmp_path):
    (tmp_path / "deploy.py").write_text(SCRIPT)
    ran = run([sys.executable, "deploy.py"], tmp_path)
    assert ran.returncode == 1
    assert f"espalier: {tmp_path / 'deploy.py'} hides espalier's own folder deploy; " in ran.stderr.splitlines()[-1]


def test_script_with_configs_beside_it_runs(users):
    folder = users(["configs/__init__.py"])
    (folder / "script.py").write_text(SCRIPT)
    assert run([sys.executable, "script.py"], folder).returncode == 0


def test_folders_are_those_beside_the_face():
    check_folders()
    assert all((ROOT / name / "__init__.py").is_file() for name in FOLDERS)


@pytest.mark.parametrize("is_package", [True, False])
def test_folder_that_is_imported_already_is_reported(is_package, users, monkeypatch):
    folder = users([])
    (folder / "prune").mkdir(parents=True)
    if is_package:
        (folder / "prune/__init__.py").write_text("")
    module = types.ModuleType("prune")
    spec = importlib.machinery.PathFinder.find_spec("prune", [str(folder)])
    module.__spec__ = spec
    monkeypatch.setitem(sys.modules, "prune", module)
    with pytest.raises(ImportError, match=rf"^espalier: {folder}/prune hides espalier's own folder prune; [^\n]*$"):
        check_folders()


def test_module_made_by_hand_is_no_hiding_file(monkeypatch):
    monkeypatch.setitem(sys.modules, "experiment", types.ModuleType("experiment"))
    assert sys.modules["experiment"].__spec__ is None
    check_folders()


def test_finder_knows_our_folders_only():
    finder = OursFirst()
    assert finder.find_spec("prune").origin == str(places._ROOT / "prune/__init__.py")
    assert finder.find_spec("json") is None
    assert finder.find_spec("mmdet.detect", ["somewhere"]) is None
