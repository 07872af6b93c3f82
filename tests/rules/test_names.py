"""File names are unique and describe the content."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

import pytest

ROOMS = {
    *("cli", "deploy_cli", "commands", "config", "data", "synthetic", "train", "evaluate", "losses", "pruning"),
    *("sensitivity", "explain", "export", "__init__", "__main__"),
}
"""File names that several folders may have."""
ODDS_AND_ENDS = {"util", "utils", "helper", "helpers", "common"}


def odds_and_ends(paths: Iterable[str]) -> list[str]:
    return [
        f"{path}:1: a name for odds and ends; name it after what it does"
        for path in paths
        if ODDS_AND_ENDS & {*PurePosixPath(path).parts, PurePosixPath(path).stem}
    ]


def namesakes(paths: Iterable[str]) -> list[str]:
    by_name = defaultdict(list)
    for path in sorted(paths):
        if (stem := PurePosixPath(path).stem) not in ROOMS:
            by_name[stem.removesuffix("s")].append(path)
    return [f"{', '.join(paths)}: one name; rename all but one" for paths in by_name.values() if len(paths) > 1]


def test_no_file_has_a_catch_all_name(sources):
    found = odds_and_ends(sources)
    assert not found, "\n".join(found)


def test_no_two_modules_share_a_name(package_sources):
    found = namesakes(package_sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", ["detect/utils.py", "tests/unit/common/test_x.py", "prune/helpers/trace.py"])
def test_catch_all_name_is_found(path):
    assert odds_and_ends([path, "prune/trace.py"]) == [
        f"{path}:1: a name for odds and ends; name it after what it does"
    ]


@pytest.mark.parametrize("other", ["deploy/trace.py", "deploy/explain/traces.py"])
def test_shared_name_is_found(other):
    assert namesakes(["prune/follow/trace.py", other]) == [
        f"{other}, prune/follow/trace.py: one name; rename all but one"
    ]


def test_parallel_folders_may_share_a_name():
    assert namesakes(["classify/train.py", "detect/train.py", "prune/__init__.py", "prune/cut/__init__.py"]) == []
