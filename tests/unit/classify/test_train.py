import os
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from classify.augmentation import Augmentation, centre_crops
from classify.classifier_model import ClassifierModel, collate
from classify.curve import save_curve
from classify.data import MEAN, STD, image_folder
from classify.evaluate import evaluate_classifier
from classify.schedule import Schedule
from classify.train import train_classifier
from command.errors import WorkError
from command.files import sha256_of

# a second run in one folder within one second reuses mmengine's log; a real one comes from another process
pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")


def equal_weights(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class KilledError(Exception):
    """Simulates a kill."""


@pytest.fixture
def rates_of(pairs, tmp_path):
    """Train on two images by a schedule and return the learning rate of every step."""

    def train(schedule):
        rates = []
        data = pairs(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1])
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
        hook = register_optimizer_step_pre_hook(lambda sgd, *_: rates.append(sgd.param_groups[0]["lr"]))
        train_classifier(net, data, schedule, tmp_path, 0)
        hook.remove()
        return rates

    return train


def stop_at(iteration):
    def progress(done, *_):
        if done == iteration:
            raise KilledError("killed")

    return progress


def test_tiny_net_learns_its_images(shapes, tiny_net, tmp_path):
    data, net = image_folder(shapes, "val", centre_crops(32)), tiny_net()
    before = evaluate_classifier(net, data, tmp_path / "before")["top1"]
    train_classifier(net, data, Schedule(60, 6, 0.01, warmup_iters=5), tmp_path / "run", seed=0)
    assert before < 0.5
    assert (
        evaluate_classifier(net, data, tmp_path / "after")["top1"] >= 0.6
    )  # chance is 1 in 6, and all are learned as a rule


@pytest.mark.parametrize("iteration", [2, 4, 8], ids=["in_epoch_1", "at_epoch_2", "in_epoch_3"])
def test_killed_and_resumed_equals_never_killed(shapes, tiny_net, tmp_path, iteration):
    data, schedule = image_folder(shapes, "train", Augmentation().crops(24)), Schedule(3, 12, 0.01, warmup_iters=4)
    whole, killed, resumed = tiny_net(), tiny_net(), tiny_net()
    curve = train_classifier(whole, data, schedule, tmp_path / "whole", seed=1)
    with pytest.raises(KilledError, match="killed"):
        train_classifier(killed, data, schedule, tmp_path / "killed", seed=1, progress=stop_at(iteration))
    again = train_classifier(resumed, data, schedule, tmp_path / "killed", seed=1)
    assert not equal_weights(killed, whole)
    assert equal_weights(resumed, whole)
    for name, one in (("whole", curve), ("resumed", again)):
        save_curve(one, tmp_path / name / "curve.json")
    assert (tmp_path / "resumed/curve.json").read_bytes() == (tmp_path / "whole/curve.json").read_bytes()
    assert [point.epoch for point in again.epochs] == [1, 2, 3]


def test_killed_and_resumed_equals_never_killed_with_processes_that_load(shapes, tiny_net, tmp_path):
    data, schedule = image_folder(shapes, "train", Augmentation().crops(24)), Schedule(3, 12, 0.01, num_workers=2)
    whole, resumed = tiny_net(), tiny_net()
    train_classifier(whole, data, schedule, tmp_path / "whole", seed=1)
    with pytest.raises(KilledError):
        train_classifier(tiny_net(), data, schedule, tmp_path / "killed", seed=1, progress=stop_at(4))
    train_classifier(resumed, data, schedule, tmp_path / "killed", seed=1)
    assert equal_weights(resumed, whole)


def test_finished_training_called_again_gives_its_weights_at_once(shapes, tiny_net, tmp_path):
    data, schedule = image_folder(shapes, "train", Augmentation().crops(24)), Schedule(1, 12, 0.01)
    first, again, calls = tiny_net(), tiny_net(), []
    curve = train_classifier(first, data, schedule, tmp_path, seed=1)
    same = train_classifier(again, data, schedule, tmp_path, seed=1, progress=lambda *done: calls.append(done[:2]))
    assert equal_weights(first, again)
    assert same == curve
    assert calls == []


def test_another_seed_gives_other_weights(shapes, tiny_net, tmp_path):
    data, nets = image_folder(shapes, "train", Augmentation().crops(24)), [tiny_net(), tiny_net()]
    for seed, net in enumerate(nets):
        train_classifier(net, data, Schedule(1, 12, 0.01), tmp_path / str(seed), seed)
    assert not equal_weights(*nets)


def test_progress_counts_every_iteration_and_nothing_is_printed(shapes, tiny_net, tmp_path, capfd):
    calls = []
    data = image_folder(shapes, "train", Augmentation().crops(24))
    train_classifier(tiny_net(), data, Schedule(2, 12, 0.01), tmp_path, 0, lambda *done: calls.append(done[:2]))
    assert calls == [(i, 6) for i in range(1, 7)]  # 36 images: 3 batches an epoch
    assert capfd.readouterr().out == ""


def test_trained_net_is_in_eval_mode_on_the_cpu(shapes, tiny_net, tmp_path):
    net = tiny_net()
    train_classifier(net, image_folder(shapes, "train", Augmentation().crops(24)), Schedule(1, 12, 0.01), tmp_path, 0)
    assert not any(layer.training for layer in net.modules())
    assert {parameter.device.type for parameter in net.parameters()} == {"cpu"}


def test_loss_that_is_not_finite_stops_and_names_its_place(shapes, tiny_net, tmp_path):
    schedule = Schedule(2, 12, 1e30, "SGD", warmup_iters=0, max_grad_norm=None)
    with pytest.raises(
        RuntimeError, match=r"the loss is (nan|inf) at epoch 1, iteration [23], learning rate 9.+; lower it"
    ):
        train_classifier(tiny_net(), image_folder(shapes, "train", Augmentation().crops(24)), schedule, tmp_path, 0)


class LateNan(nn.Module):
    """A network whose third step, after a finite loss, makes weights that are not."""

    def __init__(self):
        super().__init__()
        self.fc, self.steps = nn.Linear(192, 2), 0

    def forward(self, images):
        self.steps += 1
        scores = self.fc(images.flatten(1))
        if self.steps == 3 and scores.requires_grad:
            scores.register_hook(lambda gradient: gradient * float("nan"))
        return scores


def test_no_checkpoint_holds_weights_that_are_not_finite(pairs, tmp_path):
    data = pairs(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1])
    net = LateNan()
    net.steps = 1  # the second and last step of the first epoch is the third
    with pytest.raises(WorkError, match=r"weights are not finite after epoch 1, learning rate .*; lower it"):
        train_classifier(net, data, Schedule(2, 2, 0.1, "SGD", warmup_iters=0), tmp_path, 0)
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_training_that_diverges_in_its_last_step_is_named(pairs, tmp_path, is_resumed):
    """Weights of 1e6 and more are finite, and so is the loss before the step; their product is not."""
    data = pairs(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), [0, 1, 0, 1])
    schedule = Schedule(1, 4, 1e10, "SGD", warmup_iters=0, max_grad_norm=None)
    for _ in range(1 + is_resumed):
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), *(nn.Linear(8, 8) for _ in range(8)))
        with pytest.raises(
            WorkError, match=r"loss is (nan|inf), after epoch 1, iteration 1 in all, .*1e\+10; lower it"
        ):
            train_classifier(net, data, schedule, tmp_path, 0)


def test_parts_left_over_at_the_end_of_an_epoch_make_a_step(pairs, tmp_path):
    # 6 images in parts of two, four to a batch: a whole batch and a half one
    data = pairs(torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8), [0, 1] * 3)
    steps = []
    hook = register_optimizer_step_pre_hook(lambda *_: steps.append(1))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    train_classifier(net, data, Schedule(2, 4, 0.1, "SGD", warmup_iters=0, accumulate=2), tmp_path, 0)
    hook.remove()
    assert len(steps) == 4


def test_how_it_goes_is_told_in_words(shapes, tiny_net, tmp_path):
    notes = []
    data = image_folder(shapes, "train", Augmentation().crops(24))
    train_classifier(tiny_net(), data, Schedule(2, 12, 0.01), tmp_path, 0, lambda *report: notes.append(report[2]()))
    words = r"epoch 2 of 2, loss \d[.\d]*, learning rate [.\de-]+, [\d,.]+ images a second"
    assert re.fullmatch(words, notes[-1])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            "training: out of memory, got 6 images",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "training: out of memory, got 6 images",
        ),
        (
            MemoryError(),
            "lower schedule.batch_size, or compute a batch in parts with schedule.accumulate, or set sched",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "a process that loads images was killed",
        ),
    ],
)
def test_too_little_memory_is_told_in_a_line_with_what_helps(shapes, tiny_net, tmp_path, error, line):
    def fails(*report):
        raise error

    with pytest.raises(WorkError, match=line):
        train_classifier(
            tiny_net(),
            image_folder(shapes, "train", Augmentation().crops(24)),
            Schedule(1, 12, 0.01, accumulate=2),
            tmp_path,
            0,
            fails,
        )


def test_a_batch_of_more_than_all_images_is_told(pairs, tmp_path, capsys):
    data = pairs(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), [0, 1, 0])
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    train_classifier(net, data, Schedule(1, 64, 0.1), tmp_path, 0)
    told = "note: batch_size: more than there are images, got 64; a batch has all 3 of them\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    ("warmup_iters", "first_rates"),
    [
        (0, [0.5, 0.5, 0.5, 0.5]),
        (1, [0.5, 0.5, 0.5, 0.5]),  # the one warm-up iteration is at the peak already
        (3, [0.005, 0.2525, 0.5, 0.5]),  # 1 %, halfway between 1 % and all: 50.5 %, all
    ],
)
def test_rate_rises_linearly_to_its_peak(rates_of, warmup_iters, first_rates):
    schedule = Schedule(10, 1, 0.5, "SGD", warmup_iters=warmup_iters, milestones=(0.9,))
    assert rates_of(schedule)[:4] == pytest.approx(first_rates)


def test_rate_falls_tenfold_at_each_milestone(rates_of):
    schedule = Schedule(4, 2, 0.5, "SGD", warmup_iters=0, milestones=(0.5, 0.75))
    # one step an epoch; a half and three quarters of 4 epochs are 2 and 3
    assert rates_of(schedule) == pytest.approx([0.5, 0.5, 0.05, 0.005])


def test_rate_without_milestones_is_a_half_cosine(rates_of):
    schedule = Schedule(2, 1, 0.5, "SGD", warmup_iters=0)
    # (1 + cos(pi t / 4)) / 2 at t = 0..3
    expected = [0.5 * share for share in (1.0, 0.853553, 0.5, 0.146447)]
    assert rates_of(schedule) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: out of range, got 0; expected at least 1 and at most 100,000"),
        ({"epochs": 10**18}, "epochs: out of range, got 1000000000000000000; expected"),
        ({"batch_size": 0}, "batch_size: out of range, got 0"),
        ({"batch_size": 10**9}, "batch_size: out of range, got 1000000000"),
        ({"warmup_iters": -1}, "warmup_iters: out of range, got -1"),
        ({"num_workers": -1}, "num_workers: out of range, got -1"),
        ({"lr": 0.0}, "lr: out of range, got 0.0; expected at least 1e-12 and at most 1e"),
        ({"lr": 1e-300}, "lr: out of range, got 1e-300"),
        ({"lr": 1e308}, "lr: out of range, got 1e"),
        ({"lr": -0.1}, "lr: out of range, got -0.1"),
        ({"lr": float("nan")}, "lr: out of range, got nan"),
        ({"lr": float("inf")}, "lr: out of range, got inf"),
        ({"weight_decay": float("nan")}, "weight_decay: out of range, got nan"),
        ({"momentum": -1.0}, "momentum: out of range, got -1.0; expected at least 0 and at most 1"),
        ({"max_grad_norm": -1.0}, "max_grad_norm: out of range, got -1.0; expected a number above 0"),
        ({"milestones": (0.5, float("nan"))}, "milestones: out of range, got nan"),
        ({"milestones": (1.0, 0.5)}, "milestones: out of order"),
        ({"optimizer": "Adamw"}, "optimizer: unknown, got 'Adamw'"),
    ],
)
def test_schedule_that_cannot_train_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**{"epochs": 1, "batch_size": 1, "lr": 0.1, **change})


def test_images_are_normalized_with_imagenet_s_figures():
    model = ClassifierModel(nn.Identity())
    image = torch.full((3, 1, 1), 124, dtype=torch.uint8)
    batch = model.data_preprocessor({"inputs": image[None], "data_samples": torch.tensor([0])})
    expected = [(124 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    assert batch["inputs"].flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_loss_is_cross_entropy_and_predictions_come_with_labels():
    model, scores, labels = ClassifierModel(nn.Identity()), torch.tensor([[0.0, 0.0]]), torch.tensor([1])
    assert model(scores, labels, "loss")["loss"].item() == pytest.approx(0.693147)  # ln 2
    assert [(s.tolist(), label.item()) for s, label in model(scores, labels, "predict")] == [([0.0, 0.0], 1)]
    assert model(scores, labels) is scores


def test_batch_holds_images_and_labels():
    images = [torch.zeros(3, 2, 2), torch.ones(3, 2, 2)]
    batch = collate([(images[0], 4), (images[1], 2)])
    assert torch.equal(batch["inputs"], torch.stack(images))
    assert batch["data_samples"].tolist() == [4, 2]


@pytest.fixture
def curve_of(pairs, tmp_path):
    """Train weights of zero, which learn nothing at this rate, on so many images by a schedule; return the curve."""

    def train(num_images, schedule):
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
        for parameter in net.parameters():
            nn.init.zeros_(parameter)
        data = pairs(torch.zeros(num_images, 3, 8, 8, dtype=torch.uint8), [i % 4 for i in range(num_images)])
        return train_classifier(net, data, schedule, tmp_path, 0)

    return train


def test_the_curve_has_the_loss_and_the_rate_of_every_epoch(curve_of):
    curve = curve_of(4, Schedule(2, 2, 1e-12, "SGD", warmup_iters=3, milestones=(0.5,)))
    assert [epoch.epoch for epoch in curve.epochs] == [1, 2]
    # four classes alike: ln 4
    assert [epoch.losses for epoch in curve.epochs] == [{"loss": pytest.approx(1.386294)}] * 2
    # warm-up over iterations 1 to 3: 1 %, 50.5 %, all; a tenth after half of the epochs, of two iterations each
    rates = [1e-14, 5.05e-13]
    assert [point.lr for point in curve.iterations[:2]] == pytest.approx(rates, abs=0)
    assert curve.epochs[0].lr == curve.iterations[1].lr
    assert curve.epochs[1].lr == pytest.approx(1e-13, abs=0)
    assert [point.iteration for point in curve.iterations] == [1, 2, 3, 4]
    assert curve.epochs[0].figures == {}


def test_the_curve_has_at_most_twenty_iterations_of_an_epoch(curve_of):
    curve = curve_of(41, Schedule(2, 1, 1e-12, "SGD", warmup_iters=0))
    # 41 iterations: every third of them is 14
    assert [point.iteration for point in curve.iterations] == [*range(1, 42, 3), *range(42, 83, 3)]


def test_settings_without_effect_do_not_count():
    schedule = Schedule(1, 1, 0.1, "AdamW", warmup_iters=0)
    assert schedule.effective() == replace(schedule, momentum=0.5, warmup_iters=1).effective()
    sgd = replace(schedule, optimizer="SGD")
    assert sgd.effective() != replace(sgd, momentum=0.5).effective()


def test_a_checkpoint_holds_only_tensors_numbers_and_text(shapes, tiny_net, tmp_path):
    train_classifier(
        tiny_net(), image_folder(shapes, "train", Augmentation().crops(24)), Schedule(1, 12, 0.01), tmp_path, 0
    )
    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert checkpoint["meta"] == {"epoch": 1, "iter": 3}
    assert checkpoint["message_hub"]["log_scalars"] == {}


def put(checkpoint, path):
    """Replace a checkpoint and its hash, as one could who can write into the folder."""
    torch.save(checkpoint, path)
    path.with_name(f"{path.name}.sha256").write_text(sha256_of(path))


def evil(folder):
    """Return an object that makes a file when it is unpickled, and the Python that makes the same file."""
    text = f"import pathlib; pathlib.Path({str(folder / 'ran')!r}).touch()"

    class Payload:
        def __reduce__(self):
            return exec, (text,)

    return Payload(), text


def in_pickle(checkpoint, payload, text):
    return {**checkpoint, "extra": payload}


def in_config(checkpoint, payload, text):
    return {**checkpoint, "meta": {**checkpoint["meta"], "config": text, "cfg": text}}


def in_optimizer(checkpoint, payload, text):
    return {**checkpoint, "optimizer": {"state": text, "param_groups": [{"params": [text]}]}}


def in_scheduler(checkpoint, payload, text):
    return {**checkpoint, "param_schedulers": [{"step": text, "optimizer": text}]}


def in_curve(checkpoint, payload, text):
    return {**checkpoint, "curve": {"epochs": [{"epoch": text, "lr": text, "losses": text}]}}


def in_weights(checkpoint, payload, text):
    return {**checkpoint, "state_dict": {text: torch.zeros(1)}}


@pytest.mark.parametrize(
    ("plant", "is_refused"),
    [
        (in_pickle, True),
        (in_config, False),
        (in_optimizer, True),
        (in_scheduler, True),
        (in_curve, True),
        (in_weights, True),
    ],
)
def test_a_foreign_checkpoint_runs_nothing_when_a_training_resumes(shapes, tiny_net, tmp_path, plant, is_refused):
    data, schedule, net = image_folder(shapes, "train", Augmentation().crops(24)), Schedule(2, 12, 0.01), tiny_net()
    with pytest.raises(KilledError):
        train_classifier(net, data, schedule, tmp_path, 0, progress=stop_at(5))
    path = tmp_path / "epoch_1.pth"
    put(plant(torch.load(path, weights_only=True), *evil(tmp_path)), path)
    line = r"epoch_1\.pth: not a checkpoint of this training, got .*; delete it and give the same command again"
    with pytest.raises(WorkError, match=line) if is_refused else nullcontext():
        train_classifier(tiny_net(), data, schedule, tmp_path, 0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("part", "change", "what"),
    [
        ("param_schedulers", lambda state: state[-1].update(param_name=""), "other learning rates"),
        ("param_schedulers", lambda state: state[-1].update(last_step=10**400), "other learning rates"),
        ("optimizer", lambda state: state["param_groups"][0].update(betas=(2.0, "b")), "another optimizer"),
        ("optimizer", lambda state: state["param_groups"][0].update(lr=float("nan")), "another optimizer"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(shapes, tiny_net, tmp_path, part, change, what):
    data, schedule = image_folder(shapes, "train", Augmentation().crops(24)), Schedule(2, 12, 0.01)
    with pytest.raises(KilledError):
        train_classifier(tiny_net(), data, schedule, tmp_path, 0, progress=stop_at(5))
    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    change(checkpoint[part])
    put(checkpoint, tmp_path / "epoch_1.pth")
    with pytest.raises(WorkError, match=rf"epoch_1\.pth: not a checkpoint of this training, got {what}; delete it"):
        train_classifier(tiny_net(), data, schedule, tmp_path, 0)


@pytest.fixture
def on_one_pixel():
    """A network whose BatchNorm sees one value per channel and image."""
    return nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_a_last_batch_of_one_image_is_left_out_for_batch_norm(pairs, on_one_pixel, tmp_path):
    data, calls = pairs(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1, 0]), []
    train_classifier(on_one_pixel, data, Schedule(1, 2, 0.1), tmp_path, 0, lambda *done: calls.append(done[:2]))
    assert calls == [(1, 2), (2, 2)]


def test_batches_of_one_image_are_refused_for_batch_norm(pairs, on_one_pixel, tmp_path):
    data = pairs(torch.zeros(5, 3, 8, 8, dtype=torch.uint8), [0, 1, 0, 1, 0])
    with pytest.raises(ValueError, match="batch_size: BatchNorm has one value per channel, got batches of one"):
        train_classifier(on_one_pixel, data, Schedule(1, 1, 0.1), tmp_path, 0)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_damaged_checkpoint_is_named_and_not_resumed_from(shapes, tiny_net, tmp_path, place, capsys):
    data, schedule = image_folder(shapes, "train", Augmentation().crops(24)), Schedule(4, 12, 0.01)
    whole, resumed = tiny_net(), tiny_net()
    train_classifier(whole, data, schedule, tmp_path / "whole", 0)
    with pytest.raises(KilledError):
        train_classifier(tiny_net(), data, schedule, tmp_path, 0, progress=stop_at(8))
    content = bytearray((tmp_path / "epoch_2.pth").read_bytes())
    content[int(place * len(content))] ^= 1
    (tmp_path / "epoch_2.pth").write_bytes(content)
    os.mkfifo(tmp_path / "epoch_9.pth")
    train_classifier(resumed, data, schedule, tmp_path, 0)  # from epoch 1
    assert equal_weights(resumed, whole)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(
        "epoch_2.pth: not as it was written, cut off or damaged; the training goes on from an earlier epoch"
    )
