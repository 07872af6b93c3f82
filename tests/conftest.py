import sys
from pathlib import Path

import pytest

from experiment.cli import main


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `main` as the shell would; return exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["espalier", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Keep what is remembered of files out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_mmdet(tmp_path, monkeypatch):
    """Return a function that writes a user's config of mmdet, by default `small_faster_rcnn`, with its data there."""
    from detect.synthetic import write_scenes  # takes seconds

    data = Path(__file__).parent / "data"
    monkeypatch.syspath_prepend(data)
    monkeypatch.chdir(tmp_path)
    for seed, (name, num) in enumerate({"train": 2, "more": 3, "val": 4}.items()):
        write_scenes(tmp_path / name, num, (96, 120), seed)

    def write(text="", name="mine.py"):
        (tmp_path / name).write_text(f'_base_ = "{data}/small_faster_rcnn.py"\n{text}\n')
        return tmp_path / name

    return write
