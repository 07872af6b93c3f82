from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from command.errors import WorkError
from detect.data import CocoSet
from detect.train import train_detector

pytestmark = pytest.mark.slow


class KilledError(Exception):
    pass


@pytest.fixture(scope="session")
def three_epochs(schedule):
    return replace(schedule, epochs=3)


@pytest.fixture(scope="session")
def uninterrupted(tiny, scenes, three_epochs, tmp_path_factory):
    """The weights after three epochs of two iterations each, the calls of `progress`, and the curve."""
    (detector, card), calls = tiny(), []
    folder = tmp_path_factory.mktemp("uninterrupted")
    curve = train_detector(detector, card, scenes, three_epochs, folder, 0, lambda *done: calls.append(done[:2]))
    return detector, calls, curve


@pytest.fixture
def one_of_two_has_boxes(write_coco):
    coco = write_coco(
        images=[{"id": i, "file_name": f"{i}.png", "width": 100, "height": 50} for i in (7, 8)],
        categories=[{"id": i, "name": name} for i, name in enumerate("abcdef", 3)],
    )
    for i in (7, 8):
        Image.fromarray(np.zeros((50, 100, 3), np.uint8)).save(coco.images / f"{i}.png")
    return coco


def test_training_lowers_the_loss(tiny, trained, train_loss):
    with torch.no_grad():
        fresh, learned = (train_loss(detector.train(), card).item() for detector, card in (tiny(), trained))
    assert learned < 0.6 * fresh, (fresh, learned)


def test_progress_is_called_for_every_iteration(uninterrupted):
    assert uninterrupted[1] == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_a_trained_detector_is_in_eval_mode(uninterrupted):
    assert not any(module.training for module in uninterrupted[0].modules())


def test_killed_and_resumed_equals_never_killed(tiny, scenes, three_epochs, uninterrupted, tmp_path):
    def kill(done, *_):
        if done == 3:  # the first iteration of the second epoch
            raise KilledError("at step 3")

    with pytest.raises(KilledError, match="at step 3"):
        train_detector(*tiny(), scenes, three_epochs, tmp_path, 0, kill)
    (detector, card), calls = tiny(seed=9), []  # other weights: the checkpoint's must replace them
    curve = train_detector(detector, card, scenes, three_epochs, tmp_path, 0, lambda done, *_: calls.append(done))
    assert calls == [3, 4, 5, 6]
    torch.testing.assert_close(detector.state_dict(), uninterrupted[0].state_dict(), rtol=0, atol=0)
    assert curve == uninterrupted[2]


def test_the_curve_has_each_loss_of_a_detector_and_their_sum(uninterrupted):
    for epoch in uninterrupted[2].epochs:
        parts = {name: loss for name, loss in epoch.losses.items() if name != "loss"}
        assert parts.keys() == {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"}
        assert epoch.losses["loss"] == pytest.approx(sum(parts.values()), rel=1e-5)


def test_training_again_in_a_finished_folder_returns_its_weights(tiny, scenes, schedule, tmp_path):
    first, second, calls = tiny()[0], tiny(seed=9)[0], []
    for detector in (first, second):
        train_detector(detector, tiny()[1], scenes, schedule, tmp_path, 0, lambda *done: calls.append(done[:2]))
    assert len(calls) == 2
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_another_training_seed_gives_other_weights(tiny, scenes, three_epochs, uninterrupted, tmp_path):
    detector, card = tiny()
    train_detector(detector, card, scenes, replace(three_epochs, epochs=1), tmp_path, seed=1)
    assert not torch.equal(detector.neck.fpn_convs[0].conv.weight, uninterrupted[0].neck.fpn_convs[0].conv.weight)


def test_images_without_boxes_are_not_trained_on(tiny, one_of_two_has_boxes, schedule, tmp_path):
    (detector, card), calls = tiny(), []
    card = replace(card, classes=tuple("abcdef"))
    schedule = replace(schedule, batch_size=1)
    train_detector(detector, card, one_of_two_has_boxes, schedule, tmp_path, 0, lambda *done: calls.append(done[:2]))
    assert calls == [(1, 1)]


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(tiny, scenes, schedule, tmp_path):
    detector, card = tiny()
    torch.nn.init.constant_(detector.roi_head.bbox_head.fc_cls.weight, float("nan"))
    with pytest.raises(RuntimeError, match="the loss is nan at epoch 1, iteration 1, learning rate 1e-05; lower it"):
        train_detector(detector, card, scenes, schedule, tmp_path, seed=0)


def test_training_prints_nothing(tiny, scenes, schedule, tmp_path, capsys):
    train_detector(*tiny(), scenes, schedule, tmp_path, seed=0)
    assert capsys.readouterr().out == ""


def test_relative_paths_of_a_set_are_followed(tiny, scenes, schedule, tmp_path, monkeypatch):
    monkeypatch.chdir(scenes.annotations.parent)
    calls = []
    here = CocoSet(
        scenes.annotations.relative_to(scenes.annotations.parent), scenes.images.relative_to(scenes.annotations.parent)
    )
    train_detector(*tiny(), here, schedule, tmp_path, 0, lambda done, *_: calls.append(done))
    assert calls == [1, 2]


@pytest.mark.parametrize("damage", [b"", b"x"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_damaged_since_it_was_checked_is_failed_work(
    tiny, one_of_two_has_boxes, schedule, tmp_path, damage, num_workers
):
    (detector, card), schedule = tiny(), replace(schedule, num_workers=num_workers)
    (one_of_two_has_boxes.images / "7.png").write_bytes(damage)
    with pytest.raises(WorkError, match=r"^\S*7\.png: does not decode any more; replace or delete it$"):
        train_detector(detector, replace(card, classes=tuple("abcdef")), one_of_two_has_boxes, schedule, tmp_path, 0)
