import json
import os
import shutil
from pathlib import Path

import pytest

from experiment.stages import CHECKPOINTS, Stage, StageStore, figures_in


def stage(name="train", settings=None, inputs=(), work=lambda folder, progress: {"map": 0.5}):
    return Stage(name, settings or {}, inputs, work)


def nothing(done, total):
    pass


def test_a_finished_stage_is_found_again(tmp_path):
    store = StageStore(tmp_path)
    assert not store.is_finished(stage())
    store.run(stage(), nothing)
    assert store.is_finished(stage())
    assert figures_in(store.folder(stage())) == {"map": 0.5}


@pytest.mark.parametrize(
    "other",
    [stage(name="prune"), stage(settings={"lr": 1}), stage(inputs=(stage(name="data"),))],
    ids=["name", "settings", "inputs"],
)
def test_every_input_of_a_stage_changes_its_hash(other):
    assert other.hash != stage().hash


def test_a_change_of_an_input_changes_the_hash_of_all_that_follow():
    first, second = stage(settings={"seed": 0}), stage(settings={"seed": 1})
    assert stage("last", inputs=(stage("next", inputs=(first,)),)).hash != (
        stage("last", inputs=(stage("next", inputs=(second,)),)).hash
    )


def test_the_order_of_settings_does_not_matter():
    assert stage(settings={"a": 1, "b": 2}).hash == stage(settings={"b": 2, "a": 1}).hash


def test_a_failing_stage_stays_unfinished_and_can_resume(tmp_path):
    def work(folder, progress):
        checkpoint = folder / CHECKPOINTS / "epoch_1.pth"
        if not checkpoint.exists():
            checkpoint.parent.mkdir()
            checkpoint.touch()
            raise RuntimeError("killed")
        return {"resumed": True}

    store, killed = StageStore(tmp_path), stage(work=work)
    with pytest.raises(RuntimeError, match="killed"):
        store.run(killed, nothing)
    assert not store.is_finished(killed)
    store.run(killed, nothing)
    assert store.figures(killed) == {"resumed": True}
    assert not (store.folder(killed) / CHECKPOINTS).exists()


def test_the_record_names_the_inputs(tmp_path):
    store, data = StageStore(tmp_path), stage("data")
    train = stage(inputs=(data,))
    store.run(data, nothing)
    store.run(train, nothing)
    assert json.loads((store.folder(train) / "stage.json").read_text())["inputs"].keys() == {store.folder(data).name}


def written(tmp_path):
    """A finished stage with one file, and its folder."""
    store = StageStore(tmp_path)
    one = stage(work=lambda folder, progress: (folder / "model.bin").write_bytes(b"weights") and {"map": 0.5})
    store.run(one, nothing)
    return store, one, store.folder(one)


def cut_short(folder):
    (folder / "model.bin").write_bytes(b"weigh")


def replace_by_equal_size(folder):
    (folder / "model.bin").write_bytes(b"WEIGHTS")


def delete(folder):
    (folder / "model.bin").unlink()


def edit_record(folder):
    record = json.loads((folder / "stage.json").read_text())
    record["figures"]["map"] = 0.9
    (folder / "stage.json").write_text(json.dumps(record))


def damage_record(folder):
    (folder / "stage.json").write_text("{")


def delete_record(folder):
    (folder / "stage.json").unlink()


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (cut_short, "model.bin"),
        (replace_by_equal_size, "model.bin"),
        (delete, "model.bin"),
        (edit_record, "stage.json"),
        (damage_record, "stage.json"),
        (delete_record, "stage.json"),
    ],
)
def test_a_changed_stage_is_named_with_the_folder_to_delete(tmp_path, change, file):
    store, one, folder = written(tmp_path)
    store.check([one])
    change(folder)
    with pytest.raises(ValueError, match=rf"{file}: .*; delete {folder} and give the same command again"):
        store.check([one])


def test_a_quick_check_trusts_size_and_time(tmp_path):
    store, one, folder = written(tmp_path)
    before = (folder / "model.bin").stat()
    replace_by_equal_size(folder)
    os.utime(folder / "model.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    store.check([one], is_quick=True)
    os.utime(folder / "model.bin")
    with pytest.raises(ValueError, match="another sha256"):
        store.check([one], is_quick=True)


def test_a_stage_copied_to_another_s_name_is_refused(tmp_path):
    store, _, folder = written(tmp_path)
    other = stage(settings={"lr": 1})
    folder.rename(store.folder(other))
    with pytest.raises(ValueError, match="of another stage"):
        store.check([other])


def test_a_copied_run_is_still_what_it_was(tmp_path):
    _, one, _ = written(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    StageStore(tmp_path / "b").check([one], is_quick=True)


@pytest.fixture
def classes(tmp_path):
    """A finished stage of an image folder with an empty class."""

    def work(folder, progress):
        for name in ("cat", "dog"):
            (folder / name).mkdir()
        (folder / "cat/a.png").write_bytes(b"pixels")
        return {}

    store = StageStore(tmp_path / "stages")
    one = stage("images", work=work)
    store.run(one, nothing)
    store.check([one])
    return store, one, store.folder(one)


@pytest.mark.parametrize(
    ("name", "add"),
    [
        ("added", Path.touch),
        (".ipynb_checkpoints", Path.mkdir),
        ("cat/thumbnails", Path.mkdir),
        ("link", lambda path: path.symlink_to("/usr")),
        ("dangling", lambda path: path.symlink_to("/nowhere")),
        ("dog", Path.rmdir),
    ],
)
def test_what_was_added_to_a_stage_or_removed_is_named(classes, name, add):
    store, one, folder = classes
    add(folder / name)
    with pytest.raises(ValueError, match=rf"{name}: not as the stage wrote it, added or missing; delete {folder}"):
        store.check([one], is_quick=True)


@pytest.mark.parametrize("ending", ["", ".partial"])
@pytest.mark.parametrize("put", [Path.touch, lambda path: path.symlink_to("/nowhere"), lambda p: p.symlink_to("/usr")])
def test_what_is_no_folder_of_a_run_is_refused_before_work(tmp_path, ending, put):
    store, one = StageStore(tmp_path), stage()
    place = Path(f"{store.folder(one)}{ending}")
    put(place)
    with pytest.raises(ValueError, match=rf"{place}: not a folder that a run made; delete {place} and give"):
        store.check([one])


def test_what_a_killed_process_left_does_not_enter_the_stage(classes):
    store, one, folder = classes
    partial = folder.rename(f"{folder}.partial")
    (partial / "stage.json").rename(partial / ".stage.json.host-4999999.tmp")
    (partial / "cat/b.png").touch()
    (partial / "link").symlink_to("/usr")
    store.run(one, nothing)
    store.check([one])
    assert {path.name for path in folder.rglob("*")} == {"cat", "dog", "a.png", "stage.json"}


def test_a_stage_killed_before_its_renaming_is_checked(tmp_path):
    store, one, folder = written(tmp_path)
    partial = folder.rename(f"{folder}.partial")
    (partial / "model.bin").write_bytes(b"WEIGHTS")
    with pytest.raises(ValueError, match=r"partial/model\.bin: changed since it was written"):
        store.run(one, nothing)


def test_a_stage_made_from_another_result_is_refused(tmp_path):
    def net(text):
        return stage("net", work=lambda folder, progress: (folder / "net").write_text(text) and {})

    store, last = StageStore(tmp_path), stage("last", inputs=(net("one"),))
    store.run(net("one"), nothing)
    store.run(last, nothing)
    shutil.rmtree(store.folder(net("one")))
    store.run(net("one"), nothing)
    store.check([last])  # the same bytes again
    shutil.rmtree(store.folder(net("one")))
    store.run(net("two"), nothing)  # as another version of torch might
    with pytest.raises(ValueError, match=r"last-.*: made from another net-"):
        store.check([last])
