"""Every config in the repository loads, and those of experiments and of deployment are valid ones."""

from pathlib import Path

import pytest
from mmengine.config import Config

from classify.config import read_config
from experiment.config import load_config
from experiment.deployed.export import ExportConfig
from experiment.deployed.sweep import SweepConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.py"))
EXPERIMENTS = [path for path in CONFIGS if path.startswith("configs/experiment/")]
DEPLOYMENTS = [path for path in CONFIGS if path.startswith("configs/deploy/")]


@pytest.mark.parametrize("path", CONFIGS)
def test_config_loads(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    Config.fromfile(path)


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_experiment_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    load_config(ROOT / path)


@pytest.mark.parametrize("path", DEPLOYMENTS)
def test_deployment_config_is_valid(path):
    read_config(ROOT / path, (), SweepConfig if "/sweep_" in path else ExportConfig)


def test_broken_config_is_found(tmp_path):
    config = tmp_path / "broken.py"
    config.write_text("model = dict(")
    with pytest.raises(SyntaxError, match="never closed"):
        Config.fromfile(config)


def test_experiment_config_with_an_unknown_key_is_found(tmp_path):
    config = tmp_path / "unknown.py"
    config.write_text("no_such_key = 1")
    with pytest.raises(ValueError, match="no_such_key"):
        load_config(config)
