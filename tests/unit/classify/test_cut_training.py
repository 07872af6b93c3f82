"""A training that an early-bird ticket ends in its middle, and that goes on with the slim network."""

import json

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, read_card
from classify.cut_training import train_and_cut
from classify.learning import EarlyTicket
from classify.schedule import Schedule
from classify.train import train_classifier
from command.notes import note
from prune.learn.slimming import NetworkSlimming

SCHEDULE = Schedule(epochs=5, batch_size=4, lr=0.01, optimizer="SGD", warmup_iters=3, max_grad_norm=None)
ANY = EarlyTicket(type="early_bird", window=2, tolerance=1.0, ratios=(0.25,))
"""Any two masks agree: the ticket is found after the second epoch."""
NEVER = EarlyTicket(type="early_bird", window=6)
CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=12, num_val=6)
image_size = 32
schedule = dict(epochs=3, batch_size=6, lr=1e-3)
method = dict(type="early_bird", window=2, tolerance=1.0, ratios=(0.3, 0.7))
validate_every = 1
"""


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def all_notes():
    """Print every note, whatever was printed before."""
    note.cache_clear()


@pytest.fixture
def trained(pairs, tmp_path):
    """Train on eight images; return the network, its card, the curve, and what each training began with."""
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)

    def train(settings, name="run", schedule=SCHEDULE, kill_at=None):
        torch.manual_seed(0)
        arch = Architecture("resnet18", 2, 8)
        net, card, parts = (
            build_classifier(arch),
            ModelCard("classifier", arch, ("a", "b"), Preprocessing((32, 32))),
            [],
        )

        def follow(done, *_):
            if done == kill_at:
                raise KilledError

        def part(net, card, method, first_epoch):
            parts.append((net, method, first_epoch))
            data, folder = pairs(images, [0, 1] * 4), tmp_path / name / str(first_epoch)
            return train_classifier(net, data, schedule, folder, 0, follow, method=method, first_epoch=first_epoch)

        method = settings.on(net, (torch.zeros(1, 3, 32, 32),))
        return *train_and_cut(net, card, settings, method, schedule.epochs, part), parts

    return train


@pytest.mark.parametrize("milestones", [(), (0.6,)], ids=["cosine", "steps"])
def test_the_slim_network_has_the_rest_of_the_schedule(trained, milestones, capsys):
    schedule = Schedule(**{**vars(SCHEDULE), "milestones": milestones})
    net, card, curve, parts = trained(ANY, schedule=schedule)
    _, _, plain, _ = trained(NEVER, "plain", schedule)
    assert [first_epoch for _, _, first_epoch in parts] == [0, 2]
    assert [epoch.epoch for epoch in curve.epochs] == [1, 2, 3, 4, 5]
    assert [point.iteration for point in curve.iterations] == list(range(1, 11))
    rates, expected = ([point.lr for point in one.iterations] for one in (curve, plain))
    assert rates == pytest.approx(expected, rel=1e-9)
    assert parts[1][0] is net
    assert card.prune_spec is not None
    assert net.layer1[0].conv1.out_channels < 8 or net.layer4[0].conv1.out_channels < 64
    assert "early_bird: the ticket of 0.5 was found after epoch 2, cut there" in capsys.readouterr().err


def test_the_penalty_stays_on_after_the_cut(trained):
    _, _, _, ((_, before, _), (_, after, _)) = trained(ANY)
    assert isinstance(after, NetworkSlimming)
    assert after.penalty == before.penalty == ANY.penalty
    assert after.norms == before.norms


@pytest.mark.parametrize("kill_at", [4, 5, 7])
def test_a_training_killed_before_or_after_the_cut_has_the_same_bytes(trained, kill_at):
    whole, card, curve, _ = trained(ANY, "whole")
    with pytest.raises(KilledError):
        trained(ANY, "killed", kill_at=kill_at)
    resumed, again, same, _ = trained(ANY, "killed")
    assert (again, same) == (card, curve)
    for (key, tensor), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(tensor, found), key


def test_without_a_ticket_the_network_is_cut_at_the_end(trained, capsys):
    _, card, curve, parts = trained(NEVER)
    assert len(parts) == 1
    assert len(curve.epochs) == 5
    assert card.prune_spec is not None
    assert NEVER.figures(parts[0][1]) == {"ticket_0.5": None}
    assert "early_bird: the ticket of 0.5 was not found, cut at the end" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_file_says_when_each_ticket_was_found(invoke, tmp_path):
    (tmp_path / "c.py").write_text(CONFIG)
    arguments = ("classify", "train", tmp_path / "c.py", "--out", tmp_path / "net.safetensors")
    figures = json.loads(invoke(*arguments, "--json").stdout)
    tickets = {name: epoch for name, epoch in figures.items() if name.startswith("ticket_")}
    assert tickets == {"ticket_0.3": 2, "ticket_0.5": 2, "ticket_0.7": 2}
    _, card = load_classifier(tmp_path / "net.safetensors")
    assert card.provenance["metrics"] == figures
    epochs = json.loads((tmp_path / "net.curve.json").read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert epochs[-1]["figures"]["ticket_0.7"] == 2
    best = read_card(tmp_path / "net-best.safetensors")
    assert (best.prune_spec, best.provenance["epoch"]) == (card.prune_spec, 3)  # of the slim network's only epoch
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "c.py",
        "net-best.safetensors",
        "net.curve.json",
        "net.curve.png",
        "net.safetensors",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("method.tolerance=1.5", "less than or equal to 1"),
        ("method.window=1", "greater than or equal to 2"),
        ("method.ratios=(1.0,)", "would remove all channels or more, got 1.0"),
        ("method.prune_ratio=-0.1", "-0.1"),
    ],
)
def test_wrong_settings_of_a_ticket_are_refused_before_any_work(command, tmp_path, change, line):
    (tmp_path / "c.py").write_text(CONFIG)
    out = tmp_path / "out/net.safetensors"
    code, _, err = command("classify", "train", tmp_path / "c.py", "--out", out, "--set", change)
    assert (code, line in err.splitlines()[-1]) == (2, True), err
    assert not out.parent.exists()
