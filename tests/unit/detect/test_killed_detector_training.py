"""`espalier detect train` that is killed while it writes its files, and is given again."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from detect.cli import app

CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=16)
data = dict(type="scenes", num_train=4, num_val=2)
model = dict(image_size_hw=(64, 96), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16)
schedule = dict(epochs=1, batch_size=4, lr=1e-3)
"""
FILES = ("d.curve.json", "d.curve.png", "d.safetensors")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning"),
]


class KilledError(BaseException):
    pass


def test_a_killed_command_finishes_its_files(tmp_path, monkeypatch):
    (tmp_path / "c.py").write_text(CONFIG)

    def train(name):
        arguments = ["train", str(tmp_path / "c.py"), "--out", str(tmp_path / name / "d.safetensors")]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    really = Path.replace

    def replace(path, target):
        if Path(target).name == "d.safetensors":
            raise KilledError
        return really(path, target)

    train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KilledError):
            train("killed")
    assert [(tmp_path / "killed" / name).is_file() for name in FILES] == [True, True, False]
    assert train("killed").exit_code == 0
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
