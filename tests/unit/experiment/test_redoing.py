"""Stages that are done again or deleted, because they were changed or are not needed any more."""

import io
import json

import pytest
from rich.console import Console

from command.errors import RequestError
from experiment.claims import Claims
from experiment.redoing import check_or_redo
from experiment.stages import Stage, StageStore


def write(folder, progress):
    (folder / "weights").write_bytes(b"weights")
    return {}


@pytest.fixture
def store(tmp_path):
    return StageStore(tmp_path / "stages")


@pytest.fixture
def stages(store):
    """Data, a training on it, an evaluation of that, and another training on other data, all finished."""
    data = Stage("data", {}, (), write)
    train = Stage("train", {}, (data,), write)
    done = (data, train, Stage("evaluate", {}, (train,), write), Stage("other", {}, (), write))
    for stage in done:
        store.run(stage, lambda *_: None)
    return done


def redo(stages, store, **options):
    console = Console(file=io.StringIO(), width=400)
    check_or_redo(stages, store, console, **options)
    return console.file.getvalue().splitlines()


def test_a_changed_stage_is_refused_unless_it_may_be_done_again(stages, store):
    (store.folder(stages[1]) / "weights").write_bytes(b"WEIGHTS")
    with pytest.raises(RequestError, match=r"weights: changed .*; delete .* give the same command again, or with --re"):
        redo(stages, store)
    assert all(map(store.is_finished, stages))


def test_a_changed_stage_is_deleted_with_what_was_made_from_it(stages, store):
    _, train, evaluate, _ = stages
    place = store.folder(train) / "weights"
    place.write_bytes(b"WEIGHTS")
    assert redo(stages, store, is_redone=True) == [
        f"redo {store.folder(evaluate).name}: made from {store.folder(train).name}",
        f"redo {store.folder(train).name}: {place}: changed since it was written, got another sha256",
    ]
    assert [store.is_finished(stage) for stage in stages] == [True, False, False, True]
    assert redo(stages, store, is_redone=True) == []


def test_a_training_that_was_interrupted_on_changed_data_begins_again(stages, store):
    partial = store.folder(stages[1]).rename(f"{store.folder(stages[1])}.partial")
    (store.folder(stages[0]) / "weights").unlink()
    redo(stages[:2], store, is_redone=True)
    assert not partial.exists()


def test_a_stage_that_another_process_works_on_is_not_deleted(stages, store):
    (store.folder(stages[3]) / "weights").unlink()
    name = store.folder(stages[3]).name
    with Claims(store.root).claimed(name), pytest.raises(RequestError, match="another process works on it"):
        redo(stages, store, is_redone=True)
    assert store.folder(stages[3]).exists()


def test_what_is_no_folder_of_a_stage_is_not_deleted(stages, store, tmp_path):
    folder = store.folder(stages[3])
    folder.rename(tmp_path / "mine")
    folder.symlink_to(tmp_path / "mine")
    with pytest.raises(RequestError, match=r"other-\w+: not a folder that a run made"):
        redo(stages, store, is_redone=True)
    assert (tmp_path / "mine/weights").exists()


def test_a_killed_deletion_leaves_nothing_that_passes_for_finished(stages, store, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        store.delete(store.folder(stages[3]).name)
    monkeypatch.undo()
    assert store.is_begun(stages[3])
    assert not store.is_finished(stages[3])
    store.run(stages[3], lambda *_: None)
    store.check(stages)


@pytest.mark.slow  # a whole experiment is run, once
def test_a_run_does_again_what_was_changed(ran, tiny, run_tiny):
    (model,) = (ran / "stages").glob("prune_classifier-*/model.safetensors")
    before, weights = json.loads((ran / "results.json").read_text())["rows"], model.read_bytes()
    model.write_bytes(weights[:-1] + b"?")
    with pytest.raises(RequestError, match="or with --redo"):
        run_tiny(ran, tiny())
    again = run_tiny(ran, tiny(), is_redone=True)["rows"]
    assert model.read_bytes() == weights
    assert [row["top1"] for row in again] == [row["top1"] for row in before]
    assert (ran / "earlier/results.json").is_file()
