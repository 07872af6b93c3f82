"""A training command that is killed while it writes its files, and is given again."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from classify.cli import app
from command.folders import is_begun

CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=12, num_val=6)
image_size = 32
schedule = dict(epochs=1, batch_size=6, lr=1e-3)
validate_every = 1
"""
FILES = ("net-best.safetensors", "net.curve.json", "net.curve.png", "net.safetensors")

pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


class KilledError(BaseException):
    pass


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "c.py"
    path.write_text(CONFIG)
    return path


def train(config, folder):
    arguments = ["train", str(config), "--out", str(folder / "net.safetensors")]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(config, folder)
    return contents(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_command_killed_after_a_file_got_its_name_finishes(config, whole, tmp_path, monkeypatch, name):
    really = Path.replace

    def replace(path, target):
        moved = really(path, target)
        if Path(target) == tmp_path / name:
            raise KilledError
        return moved

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KilledError):
        train(config, tmp_path)
    monkeypatch.undo()
    assert (*contents(tmp_path),) == FILES[: FILES.index(name) + 1]  # the model is the last
    assert train(config, tmp_path).exit_code == 0
    assert contents(tmp_path) == whole
    assert not (tmp_path / "net.training").exists()


def test_a_command_killed_while_its_folder_is_deleted_is_finished(config, whole, tmp_path, monkeypatch):
    really = shutil.rmtree

    def rmtree(path, *arguments, **settings):
        if Path(path).suffix == ".training":
            raise KilledError
        really(path, *arguments, **settings)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(KilledError):
        train(config, tmp_path)
    assert contents(tmp_path) == whole
    assert not is_begun(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="exists already"):
        train(config, tmp_path)


def test_files_beside_another_training_s_folder_are_not_replaced(config, tmp_path):
    (tmp_path / "net.training").mkdir()
    (tmp_path / "net.training/config.json").write_text("{}")
    (tmp_path / "net.safetensors").write_text("mine")
    with pytest.raises(ValueError, match="left by a training with another config"):
        train(config, tmp_path)
    assert (tmp_path / "net.safetensors").read_text() == "mine"
