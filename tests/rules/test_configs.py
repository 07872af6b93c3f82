"""Every config in the repository is a valid one of its kind, and has a name of its own."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pytest

from classify.config import ClassifierTraining
from command.config import read_config
from detect.config import DetectorTraining
from detect.export_config import ExportConfig
from experiment.config import ExperimentConfig
from experiment.cuts import PruneConfig
from experiment.lottery_config import LotteryConfig
from experiment.sensitivity import SensitivityConfig
from experiment.sweep import SweepConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.py"))
KINDS = {
    "classify/": ClassifierTraining,
    "detect/": DetectorTraining,
    "prune/sensitivity_": SensitivityConfig,
    "prune/lottery_": LotteryConfig,
    "prune/": PruneConfig,
    "deploy/sweep_": SweepConfig,
    "deploy/": ExportConfig,
    "experiment/": ExperimentConfig,
}
"""Beginning of a config's path -> what it describes; the first that fits counts."""


def kind_of(path):
    return next(kind for beginning, kind in KINDS.items() if path.startswith(beginning))


def repeated_names(paths: Iterable[str]) -> list[str]:
    names = Counter(PurePosixPath(path).stem for path in paths)
    return [f"{name}: the name of {count} configs; rename all but one" for name, count in names.items() if count > 1]


@pytest.mark.parametrize("path", CONFIGS)
def test_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read_config(ROOT / "configs" / path, (), kind_of(path))


def test_configs_have_names_of_their_own():
    found = repeated_names(CONFIGS)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("beginning", KINDS)
def test_config_of_every_kind_with_an_unknown_key_is_found(beginning, tmp_path):
    path = next(path for path in CONFIGS if kind_of(path) is KINDS[beginning])
    config = tmp_path / "c.py"
    config.write_text((ROOT / "configs" / path).read_text() + "\nno_such_key = 1\n")
    with pytest.raises(ValueError, match="unknown key no_such_key"):
        read_config(config, (), kind_of(path))


def test_config_that_is_no_python_is_found(tmp_path):
    (tmp_path / "broken.py").write_text("model = dict(")
    with pytest.raises(ValueError, match="cannot be read"):
        read_config(tmp_path / "broken.py", (), ExportConfig)


def test_repeated_name_is_found():
    assert repeated_names(["deploy/a.py", "prune/a.py", "prune/b.py"]) == [
        "a: the name of 2 configs; rename all but one"
    ]
