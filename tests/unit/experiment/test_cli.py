import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, read_card, read_weights, save_model
from classify.synthetic import SHAPES
from deploy import OnnxRunner
from detect import DetectorSettings, load_detector, new_detector, save_detector
from detect.synthetic import write_scenes
from experiment.cli import app
from experiment.commands import prune_table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
PRUNE = ROOT / "configs/prune"
HALF = PRUNE / "l1_half.py"
NO_CONFIG = "no such file or config; expected a Python file or a name, espalier configs lists the names"
CONFIG = """
start = dict(type="dense", name="resnet18", base_channels=16)
data = dict(type="shapes", num_train=12, num_val=6)
image_size = 32
schedule = dict(epochs=1, batch_size=6, lr=1e-3)
"""


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def sets(*overrides):
    return [part for text in overrides for part in ("--set", text)]


def write_detector(path, classes, name="resnet18", base_channels=16):
    settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(path, *new_detector(Architecture(name, 1, base_channels), classes, settings, seed=0))
    return path


def pruned(config, model, out, *overrides):
    """Return the figures that `prune` prints, and the card of what it wrote."""
    result = invoke("prune", PRUNE / config, model, "--out", out, "--json", *sets(*overrides))
    return json.loads(result.stdout), read_card(out)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The model file that `classify train` writes."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "c.py").write_text(CONFIG)
    invoke("classify", "train", folder / "c.py", "--out", folder / "net.safetensors")
    return folder / "net.safetensors"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """The model file of an untrained detector."""
    return write_detector(tmp_path_factory.mktemp("detector") / "det.safetensors", ("cat", "dog"))


@pytest.fixture(scope="module")
def shapes_detector(tmp_path_factory):
    """The same for the classes of generated scenes."""
    return write_detector(tmp_path_factory.mktemp("detector") / "det.safetensors", SHAPES)


@pytest.fixture(scope="module")
def resnet34(tmp_path_factory):
    """The model file of an untrained ResNet-34 with ImageNet's number of classes, for images of 32 pixels."""
    path, arch = tmp_path_factory.mktemp("resnet34") / "net.safetensors", Architecture("resnet34", 1000)
    classes = tuple(map(str, range(1000)))
    save_model(path, build_classifier(arch), ModelCard("classifier", arch, classes, Preprocessing((32, 32))))
    return path


@pytest.fixture(scope="module")
def slim(classifier):
    """The slim classifier's file, and what `prune` printed."""
    result = invoke("prune", HALF, classifier)
    return classifier.with_name("net-l1-0.5.safetensors"), result


def test_prune_writes_a_slim_classifier_beside_the_dense_one(slim, classifier):
    net, card = load_classifier(slim[0])
    dense, _ = load_classifier(classifier)
    assert net.layer4[0].conv1.out_channels == dense.layer4[0].conv1.out_channels / 2
    assert card.prune_spec is not None
    assert f"wrote {slim[0]}\nnext: espalier classify train " in slim[1].stderr


def test_prune_shows_every_group_with_its_reason_and_the_costs(slim):
    text = " ".join(slim[1].stdout.replace("│", " ").split())
    assert "layer4.0.conv1 128 64 64 layer4.0.bn1" in text
    assert "fc 6 6 its channels are an output" in text
    assert "macs: " in text
    assert "params: " in text
    assert "activations: " in text
    assert "rounding to a multiple of 8 added 0 channels" in text


def test_prunes_json_is_alone_on_standard_output(classifier, tmp_path):
    result = invoke("prune", HALF, classifier, "--out", tmp_path / "s.safetensors", "--json")
    figures = json.loads(result.stdout)
    params = sum(tensor.numel() for name, tensor in load_classifier(tmp_path / "s.safetensors")[0].named_parameters())
    assert figures["params"] == params
    assert figures["mac_reduction"] == figures["dense_macs"] / figures["macs"] > 1
    assert figures["groups"][0]["layers"][0] == "conv1"


def test_what_rounding_added_is_reported_by_group_and_in_all(classifier, tmp_path):
    figures, _ = pruned("l1_half.py", classifier, tmp_path / "s.safetensors", "prune_ratio=0.3")
    by_group = {group["group"]: group for group in figures["groups"] if group["before_rounding"] is not None}
    # floor(0.7 * 16) and floor(0.7 * 128), then the nearest multiples of 8
    assert (by_group["conv1"]["before_rounding"], by_group["conv1"]["num_kept"]) == (11, 8)
    assert (by_group["layer4.0.conv1"]["before_rounding"], by_group["layer4.0.conv1"]["num_kept"]) == (89, 88)
    assert figures["num_rounded"] == sum(g["num_kept"] - g["before_rounding"] for g in by_group.values()) > 0
    caption = prune_table(figures).caption
    assert f"rounding to a multiple of 8 added {figures['num_rounded']} channels" in caption
    assert "took 3 channels" in prune_table({**figures, "num_rounded": -3}).caption
    assert f"activations: {figures['dense_activations']:,} before, {figures['activations']:,} after" in caption
    # conv1 halves 32 pixels: 16 x 16 x 16 elements at first, 8 x 16 x 16 then
    assert figures["dense_activations"] - figures["activations"] > 8 * 16 * 16


def test_taylor_measures_a_classifier_on_its_training_images(classifier, tmp_path):
    images = f"data.root='{next(classifier.parent.glob('shapes2-*'))}'"
    folder = ("data.type=folder", images, "calibration.num_batches=2")
    by_taylor, card = pruned("taylor.py", classifier, tmp_path / "a.safetensors", *folder)
    _, again = pruned("taylor.py", classifier, tmp_path / "b.safetensors", *folder)
    _, other = pruned("taylor.py", classifier, tmp_path / "c.safetensors", *folder, "seed=1")
    _, by_l1 = pruned("l1_half.py", classifier, tmp_path / "d.safetensors")
    assert card.spec == again.spec
    assert card.spec not in (other.spec, by_l1.spec)
    assert len(card.provenance["data"][0]) == 64
    assert by_l1.provenance["data"] == []
    assert by_taylor["params"] < by_taylor["dense_params"]


def test_generated_images_are_gone_afterwards(classifier, tmp_path):
    small = ("data.num_train=12", "data.num_val=6", "calibration.num_batches=2")
    _, card = pruned("taylor.py", classifier, tmp_path / "out/s.safetensors", *small)
    images = f"data.root='{next(classifier.parent.glob('shapes2-*'))}'"  # training generated the same ones
    _, same = pruned("taylor.py", classifier, tmp_path / "t.safetensors", "data.type=folder", images, small[2])
    assert card.spec == same.spec
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s.safetensors"]


@pytest.mark.parametrize("kind", ["scenes", "coco"])
def test_mean_activation_measures_a_detector_on_its_training_set(shapes_detector, tmp_path, kind):
    data = {"type": "scenes", "num_train": 4}
    if kind == "coco":
        write_scenes(tmp_path / "coco", 4, (64, 96), seed=0)
        names = {"train_annotations": "instances.json", "train_images": "images"}
        data = {"type": "coco", "root": str(tmp_path / "coco"), **names}
    overrides = ("criterion=mean_activation", f"data={data}", "calibration={'batch_size': 2}")
    (tmp_path / "out").mkdir()
    figures, card = pruned("detector_half.py", shapes_detector, tmp_path / "out/a.safetensors", *overrides)
    _, again = pruned("detector_half.py", shapes_detector, tmp_path / "out/b.safetensors", *overrides)
    _, by_l1 = pruned("detector_half.py", shapes_detector, tmp_path / "out/c.safetensors")
    assert card.spec == again.spec != by_l1.spec
    assert figures["macs"] < figures["dense_macs"]
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".py", ".safetensors"}


def test_only_the_chosen_parts_of_a_detector_are_cut(detector, tmp_path):
    out = tmp_path / "s.safetensors"
    figures, _ = pruned("detector_half.py", detector, out, "parts=('neck','roi_head')")
    parts = {group["layers"][0].split(".")[0] for group in figures["groups"] if not group["reason"]}
    assert parts == {"neck", "roi_head"}
    slim, _ = load_detector(out)
    assert slim.neck.fpn_convs[0].conv.out_channels == 8
    assert slim.roi_head.bbox_head.shared_fcs[0].out_features == 16
    assert slim.backbone.net.layer4[0].conv1.out_channels == 128
    assert slim.rpn_head.rpn_conv.out_channels == 16


def test_a_preset_makes_the_published_network(resnet34, tmp_path):
    figures, card = pruned("resnet34_a.py", resnet34, tmp_path / "s.safetensors")
    assert round(figures["params"] / 1e6, 3) == 20.152
    assert card.backbone.widths["layer1.1.conv1"] == (64, 44)
    assert figures["num_rounded"] == 0
    assert {g["reason"] for g in figures["groups"] if g["group"] == "layer4.0.conv1"} == {
        "resnet34-A keeps all 512 channels"
    }
    assert "rounding" not in prune_table(figures).caption


def test_a_preset_cuts_the_backbone_of_a_detector_alike(resnet34, tmp_path):
    model = write_detector(tmp_path / "det.safetensors", SHAPES, "resnet34", 64)
    pruned("resnet34_a.py", resnet34, tmp_path / "net-slim.safetensors")
    result = invoke("prune", PRUNE / "resnet34_a.py", model)
    slim = model.with_name("det-resnet34-A.safetensors")
    assert f"wrote {slim}\n" in result.stderr
    assert read_card(slim).backbone.widths == read_card(tmp_path / "net-slim.safetensors").backbone.widths


def test_a_limit_on_macs_is_kept_and_used_up(classifier, tmp_path):
    dense, _ = pruned("l1_half.py", classifier, tmp_path / "half.safetensors")
    limit = dense["dense_macs"] // 2
    figures, card = pruned("max_macs.py", classifier, tmp_path / "s.safetensors", f"max_macs={limit}")
    assert 0.9 * limit < figures["macs"] <= limit
    outputs = [num_out for _, num_out in card.backbone.widths.values()]
    assert all(num % 8 == 0 for num in outputs if num != 6)


@pytest.mark.parametrize(
    ("model", "config", "overrides", "message"),
    [
        (
            "classifier",
            "resnet34_a.py",
            [],
            "preset: resnet34-A is for resnet34, got resnet18 with base_channels 16; expected resnet34 with",
        ),
        ("classifier", "max_macs.py", ["max_macs=1000"], "max_macs: below what can be reached, got 1000; expected"),
        (
            "classifier",
            "taylor.py",
            ["data.type=scenes"],
            "which holds a classifier, got 'scenes'; expected shapes, folder, npz or",
        ),
        ("detector", "taylor.py", [], "which holds a detector, got 'shapes'; expected scenes, coco or voc"),
        ("detector", "taylor.py", ["data.type=scenes"], "knows other classes than the data has, got 6 (circle, cross"),
        ("detector", "taylor.py", ["data={'type': 'coco', 'root': 'none'}"], "instances_train2017.json: no such file"),
        ("classifier", "taylor.py", ["data={'type': 'folder', 'root': 'none'}"], "none/train: no such folder"),
        ("classifier", "l1_half.py", ["criterion=taylor"], "data: taylor measures on training images, got none;"),
        ("detector", "detector_half.py", ["parts=('head',)"], "parts: unknown, got 'head'; expected one of backbone,"),
    ],
)
def test_a_wrong_prune_request_is_one_line(command, request, tmp_path, model, config, overrides, message):
    path = request.getfixturevalue(model)
    code, out, err = command("prune", PRUNE / config, path, "--out", tmp_path / "s.safetensors", *sets(*overrides))
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_slim_model_knows_its_parent(slim, classifier):
    provenance = read_card(slim[0]).provenance
    assert len(provenance["parent"]) == 64
    assert provenance["config"]["prune_ratio"] == 0.5


def test_prune_takes_the_classifiers_layer_names_for_a_detector_too(detector, tmp_path):
    overrides = ("--set", "skip=('layer1.*',)", "--set", "ratios={'layer4.*': 0.75}")
    result = invoke("prune", HALF, detector, "--out", tmp_path / "s.safetensors", "--json", *overrides)
    reasons = {group["group"]: group["reason"] for group in json.loads(result.stdout)["groups"]}
    kept = {group["group"]: group["num_kept"] for group in json.loads(result.stdout)["groups"]}
    assert reasons["backbone.net.layer1.0.conv1"] == "skipped by the recipe (backbone.net.layer1.*)"
    assert kept["backbone.net.layer4.0.conv1"] == 32
    assert load_detector(tmp_path / "s.safetensors")[1].spec is not None
    assert (tmp_path / "s.py").is_file()


def test_a_slim_classifier_trains_on_and_is_exported(slim, tmp_path):
    config = tmp_path / "finetune.py"
    config.write_text(CONFIG.replace('"dense", name="resnet18", base_channels=16', f'"finetune", file="{slim[0]}"'))
    tuned = tmp_path / "tuned.safetensors"
    invoke("classify", "train", config, "--out", tuned)
    result = invoke("deploy", "export", tuned, "--set", "batch=2")
    onnx = tmp_path / "tuned.deploy/model.onnx"
    assert read_weights(tuned)["conv1.weight"].shape == read_weights(slim[0])["conv1.weight"].shape
    assert f"wrote {onnx}, fp32; scores differ from PyTorch's by " in result.stderr
    assert f"on 2 random images\nnext: espalier deploy bench {onnx}\n" in result.stderr
    assert json.loads((onnx.parent / "deploy.json").read_text())["inputs"] == {
        "image": {"shape": [2, 3, 32, 32], "dtype": "float32"}
    }


def test_an_exported_classifier_normalises_inside(classifier, tmp_path):
    invoke("deploy", "export", classifier, "--out", tmp_path / "d")
    net, card = load_classifier(classifier)
    mean, std = (torch.tensor(getattr(card.preprocessing, name)).view(3, 1, 1) for name in ("mean_rgb", "std_rgb"))
    image = torch.randint(0, 256, (1, 3, 32, 32)).float()
    scores = OnnxRunner(tmp_path / "d/model.onnx").run({"image": image.numpy()})["scores"]
    np.testing.assert_allclose(scores, net((image - mean) / std).detach(), atol=1e-5)


def test_a_detector_is_exported_with_its_description(detector, tmp_path):
    invoke("deploy", "export", detector, "--out", tmp_path / "d", "--set", "batch=2")
    description = json.loads((tmp_path / "d/deploy.json").read_text())
    assert {name: spec["shape"] for name, spec in description["inputs"].items()} == {
        "image": [2, 3, 64, 96],
        "image_hw": [2, 2],
    }
    assert description["classes"] == ["cat", "dog"]
    assert description["model"] == "det.safetensors"


def test_a_slim_model_is_pruned_again_and_compared_with_the_dense_one(slim, tmp_path):
    out = tmp_path / "s.safetensors"
    figures, card = pruned(HALF, slim[0], out)
    once, _ = pruned(HALF, slim[0].with_name("net.safetensors"), tmp_path / "once.safetensors")
    assert figures["dense_macs"] == once["dense_macs"]
    assert figures["macs"] < once["macs"]
    assert load_classifier(out)[0].layer4[0].conv1.weight.shape[1::-1] == card.backbone.widths["layer4.0.conv1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "none.py"],
            f"none.py: {NO_CONFIG}",
        ),
        (["report", "none"], "none/results.json: no such file; expected a finished run"),
        (["prune", HALF, "none.safetensors"], "none.safetensors: no such file; expected a model file"),
        (["prune", HALF, __file__], "not an espalier model file; expected a .safetensors written by espalier"),
        (["prune", HALF, "x.safetensors", "--set", "prune_ratio=1"], "would remove all channels or more, got 1"),
        (
            ["prune", HALF, "x.safetensors", "--set", "criterio=l1"],
            "unknown key criterio; nearest valid ones: criterion",
        ),
        (["prune", HALF, "x.safetensors", "--out", "x.pth"], "got the ending '.pth'; expected .safetensors"),
        (["deploy", "export", "none.safetensors"], "none.safetensors: no such file; expected a model file"),
        (["deploy", "build", "none.onnx"], "none.onnx: no such file"),
        (["classify", "train", "none.py"], f"none.py: {NO_CONFIG}"),
        (["classify", "eval", "none.safetensors", "."], "none.safetensors: no such file; expected a model file"),
        (["detect", "train", "none.py"], f"none.py: {NO_CONFIG}"),
        (["detect", "eval", "none.safetensors", "a.json", "."], "none.safetensors: no such file"),
        (["detect", "predict", "none.safetensors", "none.jpg"], "none.jpg: no such file; expected an image"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_code_2(command, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("espalier: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "apply"],
        ["nope"],
        ["classify", "nope"],
        ["detect", "nope"],
        ["run", "c.py", "--nope"],
        ["deploy", "export"],
    ],
)
def test_a_wrong_use_of_the_command_is_exit_code_2(command, arguments):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "--help" in err


@pytest.mark.parametrize("arguments", [("prune", HALF), ("deploy", "build"), ("deploy", "export")])
def test_existing_output_is_refused(command, detector, tmp_path, arguments):
    out = tmp_path / ("s.engine" if arguments[-1] == "build" else "s.safetensors")
    out.mkdir() if arguments[-1] == "export" else out.touch()
    code, _, err = command(*arguments, detector, "--out", out)
    assert (code, err) == (2, f"espalier: {out}: exists already; give another --out, or --force to replace it\n")


def test_the_shell_gets_exit_code_and_line():
    espalier = Path(sys.executable).with_name("espalier")
    done = subprocess.run([espalier, "classify", "train", "none.py"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"espalier: none.py: {NO_CONFIG}\n"


def test_help_names_every_command_without_loading_torch():
    code = "import sys, experiment.cli as c\ntry: c.app(['--help'])\nfinally: assert 'torch' not in sys.modules"
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0
    named = {line.split()[1] for line in done.stdout.decode().splitlines() if line.startswith("│ ")}
    assert {"run", "report", "doctor", "prune", "classify", "detect", "deploy"} <= named


@pytest.mark.parametrize(
    ("room", "commands"),
    [
        ("classify", {"train", "eval"}),
        ("detect", {"train", "eval", "predict"}),
        ("deploy", {"export", "build", "bench"}),
    ],
)
def test_every_group_of_commands_lists_them(room, commands):
    named = {line.split()[1] for line in invoke(room, "--help").stdout.splitlines() if line.startswith("│ ")}
    assert commands <= named


@pytest.mark.parametrize("limit", [{"OMP_DYNAMIC": "true"}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_MAX_ACTIVE_LEVELS": "0"}])
def test_limits_of_threads_in_the_environment_do_not_stop_a_training(tmp_path, limit):
    (tmp_path / "c.py").write_text(f"{CONFIG}num_threads = 2\n")
    espalier = [sys.executable, "-m", "espalier", "classify", "train", "c.py", "--out", "net.safetensors"]
    environment = {**os.environ, **limit, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(espalier, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
