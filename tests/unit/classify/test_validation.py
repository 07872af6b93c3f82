"""Accuracy during a training, the best weights, and what is written beside the curve."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from classify.augmentation import Augmentation, centre_crops
from classify.data import image_folder
from classify.evaluate import evaluate_classifier
from classify.schedule import Schedule
from classify.train import train_classifier
from classify.validation import BEST, Validation

SCHEDULE = Schedule(4, 12, 0.01, warmup_iters=4)

pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


class KilledError(Exception):
    pass


@pytest.fixture
def train(shapes, tiny_net, tmp_path):
    """Train in a folder, evaluating every so many epochs; return the weights, the curve and the best file's weights."""

    def run(name, every, schedule=SCHEDULE, kill_at=None):
        net, val, best = tiny_net(), image_folder(shapes, "val", centre_crops(24)), tmp_path / f"{name}-{BEST}"

        def progress(done, *_):
            if done == kill_at:
                raise KilledError

        validation = Validation(every, val, lambda curve: save_file(net.state_dict(), best)) if every else None
        data = image_folder(shapes, "train", Augmentation().crops(24))
        curve = train_classifier(net, data, schedule, tmp_path / name, 0, progress, validation=validation)
        return net, curve, load_file(best) if every else None

    return run


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_evaluating_in_between_changes_no_weight(train):
    plain, _, _ = train("plain", 0)
    validated, curve, _ = train("validated", 1)
    assert equal(plain.state_dict(), validated.state_dict())
    assert [set(epoch.figures) for epoch in curve.epochs] == [{"top1", "top5"}] * 4


def test_the_last_epoch_is_evaluated_in_any_case(train, shapes, tmp_path):
    net, curve, _ = train("run", 3)
    assert [bool(epoch.figures) for epoch in curve.epochs] == [False, False, True, True]
    found = evaluate_classifier(net, image_folder(shapes, "val", centre_crops(24)), tmp_path / "evaluation")
    assert curve.epochs[-1].figures == pytest.approx(found)


def test_the_best_weights_are_those_of_the_best_epoch(train, tiny_net, shapes, tmp_path):
    _, curve, best = train("run", 1)
    net = tiny_net()
    net.load_state_dict(best)
    found = evaluate_classifier(net, image_folder(shapes, "val", centre_crops(24)), tmp_path / "evaluation")["top1"]
    assert found == pytest.approx(max(epoch.figures["top1"] for epoch in curve.epochs))


@pytest.mark.parametrize("ema", [None, 0.75])
def test_killed_and_resumed_has_the_same_figures_and_best_weights(train, ema):
    schedule = replace(SCHEDULE, ema=ema)
    whole, curve, best = train("whole", 1, schedule)
    with pytest.raises(KilledError):
        train("killed", 1, schedule, kill_at=8)
    resumed, again, best_again = train("killed", 1, schedule)
    assert equal(whole.state_dict(), resumed.state_dict())
    assert (again, equal(best, best_again)) == (curve, True)
