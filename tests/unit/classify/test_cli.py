import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from classify.checkpoint import load_classifier, read_card, read_weights, save_model
from classify.cli import app
from classify.config import ClassifierTraining, ShapesData
from classify.curve import read_curve
from classify.data import fingerprint
from classify.provenance import origin
from classify.pruning import prune_classifier
from command.config import read_config
from command.files import sha256_of
from command.folders import training_folder

ROOT = Path(__file__).parents[3]
CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=8)
data = dict(type="shapes", num_train=12, num_val=6)
image_size = 32
schedule = dict(epochs=1, batch_size=6, lr=1e-3)
"""


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """A model file and what the command that wrote it printed."""
    out = tmp_path_factory.mktemp("trained") / "net.safetensors"
    return out, invoke("train", config, "--out", out)


def test_train_writes_a_model_file_and_prints_the_next_command(trained):
    out, result = trained
    net, card = load_classifier(out)
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["top1", "top5"]
    curve = f"{out.with_suffix('.curve.json')}, and {out.with_suffix('.curve.png')}"
    assert result.stderr.endswith(f"wrote {out}, {curve}\nnext: espalier prune l1_half {out}\n")
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 6)
    assert card.preprocessing.image_hw == (32, 32)


def test_train_prints_its_progress(trained):
    assert "train done in" in trained[1].stderr


def test_the_model_records_what_it_was_made_from(trained):
    provenance = read_card(trained[0]).provenance
    assert provenance["parent"] is None
    assert provenance["config"]["schedule"]["epochs"] == 1
    assert 0 <= provenance["metrics"]["top1"] <= 1


def test_train_leaves_the_model_and_the_generated_images_alone(trained):
    assert sorted(path.name for path in trained[0].parent.iterdir()) == [
        "net.curve.json",
        "net.curve.png",
        "net.safetensors",
        "shapes2-32px-12-6-seed0",
    ]


def test_train_keeps_its_curve_with_its_figures(trained):
    (epoch,) = read_curve(trained[0].with_suffix(".curve.json")).epochs
    assert epoch.losses.keys() == {"loss"}
    assert epoch.figures == read_card(trained[0]).provenance["metrics"]


def test_a_file_that_is_no_curve_is_not_replaced(config, tmp_path):
    (tmp_path / "net.curve.json").write_text("mine")
    with pytest.raises(ValueError, match=r"net\.curve\.json: exists already; give another --out, or --force"):
        invoke("train", config, "--out", tmp_path / "net.safetensors")


def test_the_default_place_is_the_configs_name_below_runs(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("train", config)
    assert (tmp_path / "runs/classify/tiny.safetensors").is_file()


def test_train_again_gives_the_same_weights(trained, config, tmp_path):
    invoke("train", config, "--out", tmp_path / "again.safetensors")
    again, first = read_weights(tmp_path / "again.safetensors"), read_weights(trained[0])
    assert all(torch.equal(again[name], first[name]) for name in first)


def start_from(config, file, kind):
    path = config.with_name(f"{kind}.py")
    path.write_text(CONFIG.replace('type="dense", name="resnet18", base_channels=8', f'type="{kind}", file="{file}"'))
    return path


def distance_after_training(config, file, kind, folder):
    """Return how far the weights of a training that hardly moves them end from the file's own."""
    out = folder / f"{kind}.safetensors"
    invoke("train", start_from(config, file, kind), "--set", "schedule.lr=1e-9", "--out", out)
    return (read_weights(out)["fc.weight"] - read_weights(file)["fc.weight"]).abs().max()


def test_finetune_starts_from_the_files_weights_and_scratch_does_not(trained, config, tmp_path):
    assert distance_after_training(config, trained[0], "finetune", tmp_path) < 1e-6
    assert distance_after_training(config, trained[0], "scratch", tmp_path) > 1e-2


@pytest.fixture(scope="module")
def halved(trained):
    """The trained network with half of every layer's channels.

    By hand, for 32 pixels: 301056 + 147456 + 3 x 131072 + 384 = 842112 MACs in the stem, the first stage, the other
    stages and the head; slim 150528 + 36864 + 3 x 32768 + 192 = 285888. The ratio is 2.9456.
    """
    path = trained[0].with_name("half.safetensors")
    slim, card, _ = prune_classifier(*load_classifier(trained[0]), 0.5)
    save_model(path, slim, card)
    return path


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, 2),
        ({"budget": "scratch_e", "finetune_epochs": 1}, 3),
        ({"budget": "scratch_b"}, 4),
        ({"budget": "scratch_b", "scratch_b_cap": None}, 5),  # 5.89
    ],
)
def test_scratch_trains_for_the_epochs_of_its_budget(config, halved, tmp_path, settings, epochs):
    budget, out = settings.get("budget", "scratch_e"), tmp_path / "net.safetensors"
    sets = [f"start.{key}={value}" for key, value in settings.items()]
    sets += ["schedule.epochs=2", "schedule.milestones=(0.5,)", "schedule.warmup_iters=0"]
    arguments = [part for text in sets for part in ("--set", text)]
    done = invoke("train", start_from(config, halved, "scratch"), *arguments, "--out", out)
    told = f"{budget}: {epochs} epochs; the dense network has 2, and 2.9456 times the MACs (842,112 / 285,888)\n"
    assert done.stderr.startswith(told)
    schedule = read_card(out).provenance["schedule"]
    assert (schedule["epochs"], schedule["lr"], schedule["decay_epochs"]) == (epochs, 1e-3, [epochs // 2])
    rates = [epoch.lr for epoch in read_curve(out.with_suffix(".curve.json")).epochs]
    assert rates == pytest.approx([1e-3] * (epochs // 2) + [1e-4] * (epochs - epochs // 2))


def test_a_dense_file_has_its_own_epochs_in_every_budget(config, trained, tmp_path):
    path = start_from(config, trained[0], "scratch")
    done = invoke("train", path, "--set", "start.budget=scratch_b", "--out", tmp_path / "net.safetensors")
    assert done.stderr.startswith("scratch_b: 1 epochs; the dense network has 1, and 1.0000 times the MACs")


def test_the_best_weights_and_a_picture_of_the_curve_lie_beside_the_model(config, tmp_path):
    out = tmp_path / "net.safetensors"
    done = invoke("train", config, "--set", "validate_every=1", "--set", "schedule.epochs=2", "--out", out)
    best, picture = out.with_name("net-best.safetensors"), out.with_suffix(".curve.png")
    assert f"wrote {out}, {best}, {out.with_suffix('.curve.json')}, and {picture}\n" in done.stderr
    curve, made = read_curve(out.with_suffix(".curve.json")), read_card(best).provenance
    assert made["metrics"] == curve.epochs[made["epoch"] - 1].figures
    assert made["metrics"]["top1"] == max(epoch.figures["top1"] for epoch in curve.epochs)
    with Image.open(picture) as image:
        assert (image.format, image.width) == ("PNG", 1080)  # 9 inches of 120 dots
    out.unlink()
    with pytest.raises(ValueError, match=r"net-best.safetensors: exists already"):
        invoke("train", config, "--set", "validate_every=1", "--out", out)


def test_an_existing_model_is_refused_and_replaced_with_force(trained, config):
    with pytest.raises(ValueError, match=r"net.safetensors: exists already; give another --out, or --force"):
        invoke("train", config, "--out", trained[0])
    assert invoke("train", config, "--out", trained[0], "--force").exit_code == 0


def test_another_ending_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match=r"got the ending '.pth'; expected .safetensors"):
        invoke("train", config, "--out", tmp_path / "net.pth")


def test_data_is_checked_before_training(config, tmp_path):
    path = config.with_name("folder.py")
    path.write_text(CONFIG.replace('type="shapes", num_train=12, num_val=6', f'type="folder", root="{tmp_path}"'))
    with pytest.raises(FileNotFoundError, match="train: no such folder"):
        invoke("train", path, "--out", tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_other_classes_are_refused(trained, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "cat/x.png")
    with pytest.raises(ValueError, match=r"knows other classes than the data has, got 1 \(cat ...\); expected 6"):
        invoke("eval", trained[0], tmp_path)


def test_eval_prints_figures(trained):
    result = invoke("eval", trained[0], trained[0].parent / "shapes2-32px-12-6-seed0")
    names = [line.split()[0] for line in result.stdout.splitlines()[:6]]
    assert names == ["top1", "top5", "macs", "params", "num_images", "calibration_error"]
    for title in ("top-1 by class", "most frequent mistakes", "calibration: expected error"):
        assert title in result.stdout


def test_json_prints_only_figures_on_standard_output(trained):
    result = invoke("eval", trained[0], trained[0].parent / "shapes2-32px-12-6-seed0", "--json")
    figures = json.loads(result.stdout)
    assert figures["top1"] == pytest.approx(100 * read_card(trained[0]).provenance["metrics"]["top1"])
    assert "next: espalier" in result.stderr


def test_a_finished_training_leaves_no_folder(tmp_path):
    with training_folder(tmp_path / "net.safetensors", origin(ShapesData(), None), force=False) as folder:
        assert (folder / "config.json").is_file()
    assert list(tmp_path.iterdir()) == []


def interrupt(out, made_from):
    with contextlib.suppress(KeyboardInterrupt), training_folder(out, made_from, force=False) as folder:
        (folder / "last_checkpoint").touch()
        raise KeyboardInterrupt


def test_a_killed_training_finds_its_folder_again(tmp_path):
    interrupt(tmp_path / "net.safetensors", origin(ShapesData(), None))
    with training_folder(tmp_path / "net.safetensors", origin(ShapesData(), None), force=False) as folder:
        assert (folder / "last_checkpoint").exists()


@pytest.mark.parametrize("changed", ["config", "parent", "data", "teacher"])
def test_another_training_does_not_resume_in_a_killed_ones_folder(tmp_path, changed):
    out, parent, teacher = (tmp_path / f"{name}.safetensors" for name in ("net", "parent", "teacher"))
    for name in ("parent", "teacher"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"old")
    interrupt(out, origin(ShapesData(), parent, ["old"], teacher))
    if changed in ("parent", "teacher"):
        (tmp_path / f"{changed}.safetensors").write_bytes(b"new")
    data = ["new" if changed == "data" else "old"]
    other = origin(ShapesData(seed=int(changed == "config")), parent, data, teacher)
    with (
        pytest.raises(ValueError, match=r"net\.training: left by a training with another config, start file or data"),
        training_folder(out, other, force=False),
    ):
        pass
    with training_folder(out, other, force=True) as folder:
        assert not (folder / "last_checkpoint").exists()


def test_a_retrained_parent_is_noticed(trained, config, tmp_path):
    parent, out = tmp_path / "parent.safetensors", tmp_path / "net.safetensors"
    shutil.copy(trained[0], parent)
    path = start_from(config, parent, "finetune")
    interrupt(out, origin(read_config(path, (), ClassifierTraining), parent))
    net, card = load_classifier(trained[0])
    save_model(parent, net, replace(card, provenance={}))
    with pytest.raises(ValueError, match="left by a training with another config, start file or data"):
        invoke("train", path, "--out", out)


def test_a_replaced_teacher_is_noticed(trained, config, tmp_path):
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "net.safetensors"
    arguments = ("train", config, "--set", f"objective.teacher={str(teacher)!r}", "--out", out)
    shutil.copy(trained[0], teacher)
    invoke(*arguments)
    assert read_card(out).provenance["teacher"] == sha256_of(teacher)
    interrupt(out, {name: read_card(out).provenance[name] for name in ("parent", "config", "data", "teacher")})
    net, card = load_classifier(trained[0])
    save_model(teacher, net, replace(card, provenance={}))
    with pytest.raises(ValueError, match="left by a training with another config, start file or data"):
        invoke(*arguments)


def prints(root):
    return [fingerprint(root, split) for split in ("train", "val")]


def test_changed_images_are_noticed(trained, config, tmp_path):
    root, out = tmp_path / "images", tmp_path / "net.safetensors"
    shutil.copytree(trained[0].parent / "shapes2-32px-12-6-seed0", root)
    path = config.with_name("images.py")
    path.write_text(CONFIG.replace('type="shapes", num_train=12, num_val=6', f'type="folder", root="{root}"'))
    interrupt(out, origin(read_config(path, (), ClassifierTraining), None, prints(root)))
    next(root.glob("train/*/*.png")).unlink()
    with pytest.raises(ValueError, match="left by a training with another config, start file or data"):
        invoke("train", path, "--out", out)
    invoke("train", path, "--out", out, "--force")
    assert read_card(out).provenance["data"] == prints(root)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_a_second_training_of_the_same_file_is_refused(config, tmp_path, force):
    out = tmp_path / "net.safetensors"
    with training_folder(out, origin(ShapesData(), None), force=False) as folder:
        with pytest.raises(ValueError, match=r"net\.training: in use by another run; wait for it, or give"):
            invoke("train", config, "--out", out, *force)
        assert (folder / "config.json").is_file()


def test_the_lock_of_a_killed_training_blocks_no_other(config, tmp_path):
    (tmp_path / "net.training").mkdir()
    (tmp_path / "net.training/.lock").touch()
    assert invoke("train", config, "--out", tmp_path / "net.safetensors").exit_code == 0
    assert not (tmp_path / "net.training").exists()


def test_importing_the_commands_loads_no_torch():
    code = "import sys, classify.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
