"""Stages that the run of a folder does not need."""

import json
from dataclasses import replace

import pytest

from command.errors import RequestError
from command.folders import locked
from experiment.claims import Claims
from experiment.pipeline import make_plan
from experiment.stages import Stage, StageStore
from experiment.unneeded import lines_of, prune_folder


def write(folder, progress):
    (folder / "weights").write_bytes(bytes(1000))
    return {}


@pytest.fixture
def begun(tmp_path, tiny):
    """A folder in which a run of `tiny` was begun, with a finished and an interrupted stage of another config."""
    store = StageStore(tmp_path / "stages")
    old = Stage("train", {}, (), write)
    store.run(old, lambda *_: None)
    partial = Stage("train", {"seed": 1}, (), write)
    with Claims(store.root).claimed(partial.key):
        (store.root / f"{store.folder(partial).name}.partial/checkpoints").mkdir(parents=True)
    (tmp_path / "run.json").write_text(json.dumps({"config": tiny().model_dump(mode="json")}))
    return tmp_path, store, old, partial


def test_stages_of_another_config_are_listed_and_deleted_on_request(begun, tiny):
    folder, store, old, partial = begun
    names = sorted([store.folder(old).name, f"{store.folder(partial).name}.partial"])
    found = prune_folder(tiny(), folder)
    assert [stage["folder"] for stage in found["stages"]] == names
    assert (found["num_bytes"], found["is_deleted"]) == (1000, False)
    assert lines_of(found)[-1] == "2 stages, 0.0 MB"
    assert store.is_finished(old)
    assert prune_folder(tiny(), folder, is_deleted=True)["stages"] == found["stages"]
    assert {path.name for path in store.root.iterdir()} == {"claims"}
    assert prune_folder(tiny(), folder)["stages"] == []


def test_what_is_no_stage_of_a_run_stays(begun, tiny):
    folder, store, old, _ = begun
    mine = [store.root / name for name in ("notes", "notes-0123456789ab", "notes-0123456789ab.partial")]
    for place in mine:
        place.mkdir()
    (store.root / "link-0123456789ab").symlink_to(store.folder(old))
    (store.folder(old) / "mine.txt").touch()
    prune_folder(tiny(), folder, is_deleted=True)
    assert all(place.is_dir() for place in (*mine, store.folder(old), store.root / "link-0123456789ab"))


def test_a_stage_in_work_and_a_folder_in_use_are_refused(begun, tiny):
    folder, store, old, _ = begun
    with Claims(store.root).claimed(old.key), pytest.raises(RequestError, match="works on it"):
        prune_folder(tiny(), folder, is_deleted=True)
    with locked(folder), pytest.raises(RequestError, match="in use by another run"):
        prune_folder(tiny(), folder, is_deleted=True)
    assert store.is_finished(old)


def test_the_config_must_be_that_of_the_last_run(begun, tiny):
    with pytest.raises(RequestError, match="begun with another config"):
        prune_folder(tiny(seeds=(1,)), begun[0], is_deleted=True)
    with pytest.raises(RequestError, match="no run was begun there; give the command without --prune-folder first"):
        prune_folder(tiny(), begun[0] / "none")


@pytest.mark.slow  # a whole experiment is run, once
def test_what_the_run_needs_stays(ran, tiny):
    assert prune_folder(tiny(), ran, is_deleted=True)["stages"] == []


def test_what_only_latency_did_on_this_machine_is_needed(tmp_path, tiny):
    config = tiny(targets={"cpu": {}, "later": {"batch": 2, "build_only": True}})
    store = StageStore(tmp_path / "stages")
    for stage in make_plan(config, store, only_latency=True).stages:
        store.run(replace(stage, work=write), lambda *_: None)
    (tmp_path / "run.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    assert prune_folder(config, tmp_path)["stages"] == []
