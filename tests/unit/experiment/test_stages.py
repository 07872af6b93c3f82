import json

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
    assert json.loads((store.folder(train) / "stage.json").read_text())["inputs"] == [store.folder(data).name]
