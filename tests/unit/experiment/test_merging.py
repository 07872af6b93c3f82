"""Run folders of one experiment, united."""

import shutil

import pytest

from command.errors import RequestError
from experiment import merging
from experiment.merging import merge_folders
from experiment.pipeline import make_plan
from experiment.stages import Stage, StageStore


def stage(name, text, inputs=(), **settings):
    def work(folder, progress):
        (folder / "sub").mkdir()
        (folder / "sub/weights").write_text(text)
        return {"map": 0.5}

    return Stage(name, settings, inputs, work)


DATA = stage("data", "pixels")


def done(folder, *stages):
    for one in stages:
        StageStore(folder / "stages").run(one, lambda *_: None)
    return folder


def names(folder):
    return {path.name for path in (folder / "stages").iterdir()}


@pytest.fixture
def two(tmp_path):
    """Folders with the same data, a training of another seed each, and times of both."""
    trained = [stage("train", f"weights {seed}", (DATA,), seed=seed) for seed in (0, 1)]
    folders = [
        done(tmp_path / f"machine{seed}", DATA, one, stage("latency", f"{seed} ms", (one,)))
        for seed, one in enumerate(trained)
    ]
    return folders, trained


def test_stages_are_united_and_times_are_left_out(two, tmp_path):
    folders, trained = two
    assert merge_folders(folders, tmp_path / "c") == 3
    store = StageStore(tmp_path / "c/stages")
    assert names(tmp_path / "c") == {store.folder(one).name for one in (DATA, *trained)}
    store.check([DATA, *trained])
    assert (store.folder(trained[1]) / "sub/weights").read_text() == "weights 1"


def test_a_stage_done_twice_with_other_results_is_refused(two, tmp_path):
    folders, _ = two
    done(folders[1], stage("train", "weights of another machine", (DATA,), seed=0))
    with pytest.raises(RequestError, match=r"machine1/stages/train-\w+: differs from .*machine0/stages/train-\w+, the"):
        merge_folders(folders, tmp_path / "c")
    assert not (tmp_path / "c/stages").exists()


def test_a_stage_made_from_another_stage_is_refused(two, tmp_path):
    folders, trained = two
    shutil.rmtree(StageStore(folders[1] / "stages").folder(DATA))
    other = done(tmp_path / "other", stage("data", "PIXELS"))
    with pytest.raises(RequestError, match=r"train-\w+: made from another data-\w+ than .*other/stages/data"):
        merge_folders([other, folders[1]], tmp_path / "c")
    assert trained


@pytest.mark.parametrize("damage", ["weights", "added"])
def test_a_damaged_stage_is_named_before_anything_is_copied(two, tmp_path, damage):
    folders, trained = two
    folder = StageStore(folders[1] / "stages").folder(trained[1])
    (folder / "sub" / damage).write_text("weights x")
    with pytest.raises(RequestError, match=rf"{folder}/sub/{damage}: .*delete {folder}"):
        merge_folders(folders, tmp_path / "c")
    assert not (tmp_path / "c/stages").exists()


def test_what_is_unfinished_is_not_merged(two, tmp_path):
    folders, _ = two
    (folders[0] / "stages/train-0123456789ab.partial/checkpoints").mkdir(parents=True)
    (folders[0] / "stages/claims").mkdir()
    merge_folders(folders, tmp_path / "c")
    assert not any(name.endswith("partial") or name == "claims" for name in names(tmp_path / "c"))


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5])
def test_a_killed_merge_leaves_whole_stages_and_goes_on(two, tmp_path, monkeypatch, after):
    folders, trained = two
    flushed = []

    def killed(path):
        flushed.append(path)
        if len(flushed) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(merging, "flush", killed)
    monkeypatch.setattr(merging, "flush_entry", killed)
    with pytest.raises(KeyboardInterrupt):
        merge_folders(folders, tmp_path / "c")
    monkeypatch.undo()
    store = StageStore(tmp_path / "c/stages")
    store.check([DATA, *trained])
    assert not (tmp_path / "c/results.json").exists()
    merge_folders(folders, tmp_path / "c")
    assert names(tmp_path / "c") == {store.folder(one).name for one in (DATA, *trained)}
    store.check([DATA, *trained])


@pytest.mark.parametrize("name", ["run.json", "results.json"])
def test_a_folder_with_a_run_is_not_merged_into(two, tmp_path, name):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).touch()
    with pytest.raises(RequestError, match="c: exists already, with a run in it; give another --out"):
        merge_folders(two[0], tmp_path / "c")


def test_a_folder_without_stages_is_refused(two, tmp_path):
    with pytest.raises(RequestError, match=r"none: no stages, expected the folder of a run"):
        merge_folders([*two[0], tmp_path / "none"], tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.slow  # two whole experiments are run
def test_seeds_of_two_machines_give_the_results_of_one(ran, tiny, run_tiny, tmp_path):
    other = run_tiny(tmp_path / "other", tiny(seeds=(1,)))
    merge_folders([ran, tmp_path / "other"], tmp_path / "c")
    config, store = tiny(seeds=(0, 1)), StageStore(tmp_path / "c/stages")
    left = [one.name for one in make_plan(config, store).stages if not store.is_finished(one)]
    assert left == ["latency"]
    rows = {row["name"]: row for row in run_tiny(tmp_path / "c", config)["rows"]}
    assert len(rows) == 4
    for row in other["rows"]:
        assert rows[f"{row['name']}-seed1"]["top1"] == row["top1"]
