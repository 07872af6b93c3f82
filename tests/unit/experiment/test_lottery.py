"""Lottery tickets from a config: masks and first weights element by element, the table, kills, refusals."""

import json
import shutil

import pytest
import torch
from rich.console import Console

from classify.checkpoint import load_classifier, read_weights
from classify.synthetic import write_shapes
from command.config import read_config
from experiment import lottery_plan
from experiment.lottery import _over, lottery_table, run_lottery
from experiment.lottery_config import LotteryConfig
from experiment.lottery_plan import Study, new_classifier, plan_of
from experiment.stages import StageStore
from prune import PruneSpec

TINY = """
backbone = dict(name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=16, num_val=8)
image_size = 32
schedule = dict(epochs=1, batch_size=8, lr=0.05, optimizer="SGD", momentum=0.9, milestones=(1.0,), warmup_iters=0)
"""
WEIGHTS = "one_shot = (0.5,)\niterative = dict(share=0.5, rounds=(2,))\n"
CHANNELS = "channels = (dict(prune_ratio=0.5, round_to=1),)\n"
QUIET = Console(quiet=True)


class KilledError(BaseException):
    pass


def config_of(folder, text):
    (folder / "tiny.py").write_text(TINY + text)
    return read_config(folder / "tiny.py", (), LotteryConfig)


def the_folder(folder, beginning):
    (found,) = (folder / "stages").glob(f"{beginning}-*")
    return found


def first_weights(monkeypatch):
    """Keep what each training starts from, by the name of its stage without the hash."""
    really, starts = lottery_plan.train_classifier, {}

    def train(net, data, schedule, folder, *arguments, **options):
        name = folder.parent.name.rpartition("-lr")[0]
        starts.setdefault(name, []).append({key: tensor.clone() for key, tensor in net.state_dict().items()})
        return really(net, data, schedule, folder, *arguments, **options)

    monkeypatch.setattr(lottery_plan, "train_classifier", train)
    return starts


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study's folder, its figures, and the first weights of its trainings."""
    folder = tmp_path_factory.mktemp("lottery")
    with pytest.MonkeyPatch.context() as patch:
        starts = first_weights(patch)
        figures = run_lottery(config_of(folder, WEIGHTS + CHANNELS), folder / "out", QUIET)
    return folder / "out", figures, starts


@pytest.fixture
def folder(finished):
    return finished[0]


@pytest.fixture
def starts(finished):
    return finished[2]


@pytest.fixture
def start(folder):
    """The network that tickets are rewound to."""
    return read_weights(the_folder(folder, "dense") / "start.safetensors")


pytestmark = pytest.mark.filterwarnings("ignore:.*instance named of.*has been created:UserWarning")
slow = pytest.mark.slow  # the study of the fixture has 14 trainings


@slow
def test_what_variants_share_is_trained_once(starts):
    cuts = ("masks-0.5", "masks-0.75", "channels-l1-0.5")  # at once and the first of two rounds are the same masks
    tickets = {
        f"{one}-{scale}_scale-{cut}" for one in ("ticket", "control") for scale in ("dense", "sparse") for cut in cuts
    }
    assert {name: len(found) for name, found in starts.items()} == dict.fromkeys({"dense", *tickets}, 1)


@slow
def test_masks_leave_the_largest_weights_of_the_trained_network(folder):
    trained, _ = load_classifier(the_folder(folder, "dense") / "model.safetensors")
    masks = read_weights(the_folder(folder, "masks-0.5") / "masks.safetensors")
    convolutions = [name for name, module in trained.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert sorted(masks) == sorted(f"{name}.weight" for name in convolutions)
    sizes = torch.cat([trained.get_parameter(name).detach().abs().flatten() for name in masks])
    stays = torch.cat([mask.flatten() for mask in masks.values()])
    assert int(stays.sum()) == len(sizes) - len(sizes) // 2
    assert sizes[stays].min() >= sizes[~stays].max()


@slow
def test_a_second_round_prunes_the_trained_ticket_of_the_first(folder):
    (once,) = (folder / "stages").glob("masks-0.5-*")
    first, second = (read_weights(one / "masks.safetensors") for one in (once, the_folder(folder, "masks-0.75")))
    ticket, _ = load_classifier(the_folder(folder, "ticket-dense_scale-masks-0.5") / "model.safetensors")
    sizes = torch.cat([ticket.get_parameter(name).detach().abs().flatten() for name in first])
    before, after = (torch.cat([mask.flatten() for mask in masks.values()]) for masks in (first, second))
    assert not (after & ~before).any()
    assert int(after.sum()) == int(before.sum()) - int(before.sum()) // 2
    assert sizes[after].min() >= sizes[before & ~after].max()


@slow
@pytest.mark.parametrize("removed", ["0.5", "0.75"])
def test_tickets_start_from_the_first_weights_of_the_dense_network(folder, starts, start, removed):
    masks = read_weights(the_folder(folder, f"masks-{removed}") / "masks.safetensors")
    dense, sparse = (starts[f"ticket-{scale}_scale-masks-{removed}"][-1] for scale in ("dense", "sparse"))
    for name, tensor in start.items():
        if name in masks:
            density = masks[name].double().mean().item()
            assert torch.equal(dense[name], torch.where(masks[name], tensor, 0.0)), name
            torch.testing.assert_close(sparse[name], dense[name] * density**-0.5)
        else:
            assert torch.equal(dense[name], tensor), name
            assert torch.equal(sparse[name], tensor), name


@slow
def test_controls_have_the_mask_and_other_weights_at_both_scales(folder, starts, start):
    masks = read_weights(the_folder(folder, "masks-0.75") / "masks.safetensors")
    dense, sparse = (starts[f"control-{scale}_scale-masks-0.75"][0] for scale in ("dense", "sparse"))
    for name, mask in masks.items():
        assert torch.equal(dense[name] != 0, mask), name
        torch.testing.assert_close(sparse[name], dense[name] * mask.double().mean().item() ** -0.5)
        assert not torch.equal(dense[name], torch.where(mask, start[name], 0.0))
    assert not torch.equal(dense["fc.weight"], start["fc.weight"])


@slow
def test_masked_weights_are_zero_after_the_training_too(folder):
    masks = read_weights(the_folder(folder, "masks-0.75") / "masks.safetensors")
    for kind in ("ticket-dense", "control-sparse"):
        trained = read_weights(the_folder(folder, f"{kind}_scale-masks-0.75") / "model.safetensors")
        assert all((trained[name][~mask] == 0).all() for name, mask in masks.items())


@slow
def test_a_slim_ticket_has_the_first_weights_of_its_channels(folder, starts, start):
    spec = PruneSpec.from_json((the_folder(folder, "channels-l1-0.5") / "spec.json").read_bytes())
    trained = read_weights(the_folder(folder, "dense") / "model.safetensors")
    ticket = starts["ticket-dense_scale-channels-l1-0.5"][0]
    cut = spec.layers["layer1.0.conv1"]
    norms = trained["layer1.0.conv1.weight"].abs().sum((1, 2, 3))
    assert sorted(cut.kept_out) == sorted(norms.topk(4).indices.tolist())
    for name, layer in spec.layers.items():
        expected = start[f"{name}.weight"]
        expected = expected if layer.kept_out is None else expected[[*layer.kept_out]]
        is_norm = expected.ndim == 1
        expected = expected if is_norm or layer.kept_in is None else expected[:, [*layer.kept_in]]
        assert torch.equal(ticket[f"{name}.weight"], expected), name
    _, card = load_classifier(the_folder(folder, "ticket-dense_scale-channels-l1-0.5") / "model.safetensors")
    assert card.prune_spec == spec
    assert (card.provenance["start"], card.provenance["scale"]) == ("ticket", "dense")


@slow
def test_every_cut_has_four_rows_beside_the_dense_one(finished):
    folder, figures, _ = finished
    rows = figures["rows"]
    assert [(row["pruning"], row["cut"]) for row in rows[::4]] == [
        ("dense", ""),
        ("one_shot", "0.5"),
        ("iterative", "2 x 0.5"),
        ("channels", "l1-0.5"),
    ]
    arms = [(row["start"], row["scale"]) for row in rows[1:5]]
    assert arms == [("ticket", "dense"), ("ticket", "sparse"), ("control", "dense"), ("control", "sparse")]
    assert [round(row["removed"], 3) for row in rows[:9:4]] == [0, 0.5, 0.75]
    assert all((folder / row["model"]).is_file() for row in rows)
    assert rows[12]["macs"] < rows[0]["macs"] == rows[5]["macs"]
    assert json.loads((folder / "lottery.json").read_text()) == figures


@slow
def test_a_finished_study_is_not_trained_again(finished, monkeypatch, tmp_path):
    folder, figures, _ = finished
    monkeypatch.setattr(lottery_plan, "train_classifier", None)
    assert run_lottery(config_of(tmp_path, WEIGHTS + CHANNELS), folder, QUIET) == figures


@slow
def test_a_changed_model_is_refused_by_name(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "out")
    (the_folder(copy, "dense") / "start.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"start\.safetensors: changed since it was written"):
        run_lottery(config_of(tmp_path, WEIGHTS + CHANNELS), copy, QUIET)


def test_a_second_round_cuts_channels_of_the_trained_ticket_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lottery_plan, "_STARTS", (("ticket", "dense"),))
    starts = first_weights(monkeypatch)
    text = "channel_rounds = (dict(cut=dict(prune_ratio=0.5, round_to=1), rounds=(2,)),)\n"
    figures, folder = run_lottery(config_of(tmp_path, CHANNELS + text), tmp_path / "out", QUIET), tmp_path / "out"
    first, second = (
        PruneSpec.from_json((the_folder(folder, f"channels-{name}") / "spec.json").read_bytes()).layers[
            "layer1.0.conv1"
        ]
        for name in ("l1-0.5", "2xl1-0.5")
    )
    ticket = read_weights(the_folder(folder, "ticket-dense_scale-channels-l1-0.5") / "model.safetensors")
    largest = ticket["layer1.0.conv1.weight"].abs().sum((1, 2, 3)).topk(2).indices.tolist()
    assert second.num_out == first.num_out == 8  # both count from the dense network
    assert sorted(second.kept_out) == sorted(first.kept_out[place] for place in largest)
    start = read_weights(the_folder(folder, "dense") / "start.safetensors")["layer1.0.conv1.weight"]
    (rewound,) = starts["ticket-dense_scale-channels-2xl1-0.5"]
    assert torch.equal(rewound["layer1.0.conv1.weight"], start[[*second.kept_out]][:, [*second.kept_in]])
    dense, once, twice = figures["rows"]  # the single cut is the first round
    assert [(row["pruning"], row["cut"]) for row in (once, twice)] == [
        ("channels", "l1-0.5"),
        ("channel_rounds", "2 x l1-0.5"),
    ]
    assert len(starts) == 3
    assert dense["removed"] == 0 < once["removed"] < twice["removed"]
    assert dense["macs"] > once["macs"] > twice["macs"]


def bytes_of(folder):
    """Return all that a study writes, but what says how long stages took and when their files were written."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in ("stage.json", ".lock"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@slow
def test_a_study_killed_anywhere_ends_with_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(lottery_plan, "_STARTS", (("ticket", "sparse"),))
    config = config_of(tmp_path, "one_shot = (0.5,)\nschedule.update(epochs=2)\nrewind_iterations = 1\n")
    run_lottery(config, tmp_path / "whole", QUIET)
    really, steps = lottery_plan.train_classifier, []

    def train(net, data, schedule, folder, seed, progress, **options):
        def follow(*arguments):
            steps.append(folder)
            if len(steps) in (3, 8):  # in the second epoch of the dense network, and of a ticket
                raise KilledError
            progress(*arguments)

        return really(net, data, schedule, folder, seed, follow, **options)

    monkeypatch.setattr(lottery_plan, "train_classifier", train)
    for _ in range(2):
        with pytest.raises(KilledError):
            run_lottery(config, tmp_path / "killed", QUIET)
    assert not (tmp_path / "killed/lottery.json").exists()
    run_lottery(config, tmp_path / "killed", QUIET)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    assert len(steps) == 2 * 4 + 2  # the two that were killed, again


def dense_stage(folder, text):
    config = config_of(folder, f"{CHANNELS}{text}")
    images = config.data.placed(folder / "data", 32)
    study = Study(config, images, config.data.check(), images.fingerprints("train", "val"), StageStore(folder))
    stage = plan_of(study)[1][0]
    study.store.run(stage, lambda *_: None)
    return study.store.folder(stage)


def test_a_ticket_is_rewound_to_the_end_of_an_epoch(tmp_path):
    one = dense_stage(tmp_path, "")
    two = dense_stage(tmp_path, "schedule.update(epochs=2)\nrewind_epochs = 1\n")
    early, end = read_weights(two / "start.safetensors"), read_weights(one / "model.safetensors")
    assert all(torch.equal(early[name], tensor) for name, tensor in end.items())  # at a constant rate
    steps = dense_stage(tmp_path, "schedule.update(epochs=2)\nrewind_iterations = 2\n")  # two batches of eight
    assert (steps / "start.safetensors").read_bytes() == (two / "start.safetensors").read_bytes()


def test_an_image_replaced_in_a_training_stops_the_study(tmp_path, monkeypatch):
    write_shapes(tmp_path / "images", 12, 6, 32, seed=0)
    text = f"{CHANNELS}data = dict(type='folder', root={str(tmp_path / 'images')!r})\n"
    image, other, *_ = sorted((tmp_path / "images/train").rglob("*.png"))
    really = lottery_plan.train_classifier

    def train(*arguments, **options):
        curve = really(*arguments, **options)
        shutil.copyfile(other, image)
        return curve

    monkeypatch.setattr(lottery_plan, "train_classifier", train)
    with pytest.raises(RuntimeError, match="its data was changed while it ran"):
        run_lottery(config_of(tmp_path, text), tmp_path / "out", QUIET)
    assert not list((tmp_path / "out/stages").iterdir())


def test_the_same_seed_gives_the_same_network():
    config = LotteryConfig.model_validate(
        {
            "backbone": {},
            "data": {"type": "shapes"},
            "schedule": {"epochs": 1, "batch_size": 8, "lr": 0.1},
            "one_shot": (0.5,),
        }
    )
    nets = [new_classifier(config, ("a", "b"), seed)[0].state_dict() for seed in (1, 1, 2)]
    assert torch.equal(nets[0]["conv1.weight"], nets[1]["conv1.weight"])
    assert not torch.equal(nets[0]["conv1.weight"], nets[2]["conv1.weight"])


def test_the_table_has_a_column_for_each_rate():
    shared = {"pruning": "one_shot", "cut": "0.5", "start": "ticket", "scale": "dense", "removed": 0.5, "num_seeds": 2}
    figures = {
        "config": {"backbone": {"name": "resnet18"}, "rewind_epochs": 0, "rewind_iterations": 500, "seeds": [0, 1]},
        "summary": [
            {**shared, "lr": 0.1, "top1_mean": 0.5, "top1_sd": 0.0123},
            {**shared, "lr": 0.01, "top1_mean": 0.25, "top1_sd": None},
        ],
    }
    console = Console(width=120)
    with console.capture() as capture:
        console.print(lottery_table(figures))
    text = capture.get()
    assert "resnet18, rewound to iteration 500" in text
    assert "one-shot 0.5   50.0%     ticket   dense   50.00 ± 1.23     25.00" in text
    assert "mean and standard deviation over 2 seeds" in text


def test_figures_of_seeds_become_their_mean_and_sample_deviation():
    rows = [{"top1": top1, "removed": 0.5} for top1 in (0.2, 0.4)]
    assert _over(rows) == pytest.approx({"removed": 0.5, "num_seeds": 2, "top1_mean": 0.3, "top1_sd": 0.02**0.5})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("one_shot=()", "nothing is cut, got no one_shot, iterative, channels or channel_rounds"),
        ("one_shot=(1.0,)", "would remove all channels or more, got 1.0"),
        ("one_shot=(0.5, 0.5)", "repeats a value, got (0.5, 0.5)"),
        ("one_shot=(0.5, 0.50000001)", "repeats a value, got (0.5, 0.50000001)"),  # alike in the table
        ("lrs=(0.1, 0.1)", "repeats a value"),
        ("iterative={'share': 0.0, 'rounds': (1,)}", "removes nothing, got 0"),
        ("iterative={'rounds': (0,)}", "greater than or equal to 1"),
        ("channels=({'criterion': 'taylor', 'prune_ratio': 0.5},)", "taylor measures on training images"),
        (
            "channel_rounds=({'cut': {'max_macs': 1000}, 'rounds': (2,)},)",
            "not to be cut in rounds, got l1-max_macs-1000",
        ),
        ("channel_rounds=({'cut': {'prune_ratio': 0.5}, 'rounds': ()},)", "at least 1 item"),
        ("channels=({'preset': 'resnet56-A'},)", "layer1.2.conv1: no layer of the model matches"),
        ("backbone.weights='a.pth'", "expected none, it begins with random ones"),
        ("rewind_iterations=2", "not before the end of the training, got 2; expected fewer than 2"),
        ("rewind_epochs=1", "not before the end of the training, got 1; expected fewer than 1"),
        ("schedule.batch_size=1", "batches of one"),
        ("rewind=1", "unknown key rewind; nearest valid ones: rewind_epochs"),
    ],
)
def test_a_wrong_study_is_refused_before_any_work(command, tmp_path, change, line):
    (tmp_path / "c.py").write_text(f"{TINY}one_shot = (0.5,)\n")
    arguments = ("prune", "lottery", tmp_path / "c.py", "--out", tmp_path / "out", "--set", change)
    code, _, err = command(*arguments)
    assert (code, line in err.splitlines()[-1]) == (2, True), err
    assert not (tmp_path / "out").exists()


def test_rewinding_is_by_steps_or_by_epochs(command, tmp_path):
    (tmp_path / "c.py").write_text(f"{TINY}one_shot = (0.5,)\nrewind_iterations = 1\n")
    code, _, err = command("prune", "lottery", tmp_path / "c.py", "--set", "rewind_epochs=1")
    assert code == 2
    assert "rewind_epochs: not used with rewind_iterations, got 1; expected one of the two" in err


@slow
def test_the_command_prints_the_table_and_where_the_record_is(invoke, tmp_path, monkeypatch):
    monkeypatch.setattr(lottery_plan, "_STARTS", (("ticket", "dense"), ("control", "dense")))
    (tmp_path / "tiny.py").write_text(f"{TINY}{CHANNELS}seeds = (0, 1)\n")
    result = invoke("prune", "lottery", tmp_path / "tiny.py", "--out", tmp_path / "out")
    assert "channels l1-0.5" in result.stdout
    assert result.stdout.count("±") == 3  # the dense row, and the two of the cut
    wrote, following = result.stderr.splitlines()[-2:]
    assert wrote == f"wrote {tmp_path}/out/lottery.json"
    assert following == f"next: espalier prune lottery {tmp_path}/tiny.py --out {tmp_path}/out --latex"
