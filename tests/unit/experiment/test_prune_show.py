import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from classify.pruning import prune_classifier
from detect import DetectorSettings, new_detector, save_detector
from detect.pruning import prune_detector
from detect.traced import TracedDetector
from experiment.cli import app
from prune import PruneSpec, cost_of, prune_model, slim_model
from prune.choose.presets import PRESETS


def show(*arguments):
    result = CliRunner().invoke(app, ["prune", "show", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def report_json(*arguments):
    return json.loads(show(*arguments, "--json").stdout)


def by_name(data):
    return {row["name"]: row for row in data["layers"]}


@pytest.fixture
def refused(command):
    """Run `prune show`, which must refuse; return its line."""

    def run(*arguments):
        code, out, err = command("prune", "show", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("espalier: ").strip()

    return run


@pytest.fixture(scope="module")
def preset():
    return report_json("resnet34-A")


@pytest.fixture(scope="module")
def classifier():
    """A narrow classifier, its card, and both again with half of the channels."""
    arch = Architecture("resnet18", 6, 16)
    card = ModelCard("classifier", arch, tuple("abcdef"), Preprocessing((32, 32)))
    net = build_classifier(arch)
    return (net, card), prune_classifier(net, card, 0.5)[:2]


@pytest.fixture(scope="module")
def detector():
    settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    dense, card = new_detector(Architecture("resnet18", 1, 16), ("cat", "dog"), settings, seed=0)
    return (dense, card), prune_detector(dense, card, 0.5, parts=("backbone", "neck"))[:2]


def test_a_preset_has_its_costs_and_the_published_ones(preset):
    assert (preset["name"], preset["architecture"], preset["image_hw"]) == ("resnet34-A", "resnet34", [224, 224])
    assert preset["params"] / 1e6 == pytest.approx(20.152, abs=0.0005)
    assert preset["macs"] / 1e9 == pytest.approx(3.100, abs=0.0005)
    assert (preset["dense_params"], round(preset["dense_macs"] / 1e9, 3)) == (21797672, 3.664)
    assert preset["mac_reduction"] == preset["dense_macs"] / preset["macs"]
    assert preset["activations"] == sum(row["activations"] for row in preset["layers"]) < preset["dense_activations"]
    assert preset["published"] == {"params": "1.99e7", "macs": "3.08e9", "source": PRESETS["resnet34-A"].source}


def test_a_preset_that_left_the_grid_of_8_is_misaligned(preset):
    row = by_name(preset)["layer1.1.conv1"]
    assert (row["dense_channels_out"], row["channels_out"], row["multiple_of"]) == (64, 44, 1)
    assert row["reason"] is None
    assert row["slow"].endswith("44 channels run as 48: 8 % of its work is padding")
    misaligned = {
        row["name"] for row in preset["layers"] if "misaligned" in [finding["cause"] for finding in row["findings"]]
    }
    kept = PRESETS["resnet34-A"].kept
    assert misaligned == {*kept, *(name.replace("conv1", "conv2") for name in kept)}


def test_layers_that_a_preset_leaves_whole_have_a_reason(preset):
    rows = [row for row in preset["layers"] if row["name"].startswith("layer4.")]
    assert len(rows) == 7
    for row in rows:
        assert (row["macs"], row["channels_out"]) == (row["dense_macs"], 512)
        tied = "" if row["name"].endswith("conv1") else ", tied to other layers"
        assert row["reason"] == f"resnet34-A does not cut it{tied}"
        assert row["slow"] == f"left whole: {row['reason']}"
    assert by_name(preset)["fc"]["reason"] == "its channels are an output of the model"


def test_the_text_starts_with_the_layers_that_get_no_faster(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = show("resnet56-A")
    lines = result.stdout.splitlines()
    assert lines[0] == "resnet56-A: resnet56_cifar, one image of 32 x 32"
    # 4 of 27 blocks, the stem and the head are whole; 14 of 16, 28 of 32 and 57 of 64 channels are padded up again
    assert lines[1] == "A GPU gains next to nothing on 56 of 56 layers."
    assert lines[2] == "Predicted from shapes alone (one image, half precision), not measured."
    text = " ".join(result.stdout.split())
    causes, table = text.split("layer type inputs outputs")
    assert "1 misaligned, 46 layers: half precision runs on multiples of 8 channels" in causes
    assert "57 channels run as 64, as before pruning: 11 % of its work is padding layer3.1.conv1, layer" in causes
    assert "layer1.0.conv1 3x3 16 16->14 no 2.36M->2.06M 16.4k->14.3k 1 2" in table
    assert "published: 7.7e5 params, 1.12e8 MACs. Li et al." in table
    assert max(map(len, lines)) <= 100


def test_the_summary_counts_layers_that_gain_nothing_or_less():
    lines = " ".join(show("resnet34-A").stdout.split())
    # 8 blocks of 2, the stem, the head and 3 projections are whole; 8 blocks of 2 were cut off the grid
    summary = "A GPU gains next to nothing on 21 of 37 layers, and less than the MACs suggest on 16 of the others."
    assert summary in lines


def test_the_next_command_is_on_standard_error():
    assert show("resnet56-A", "--json").stderr.endswith(
        "explained resnet56-A\nnext: espalier import resnet56_cifar --classes 10 --size-hw 32 32\n"
    )


def test_a_network_for_cifar_has_cifar_s_size_and_classes():
    assert report_json("vgg16-A")["params"] == pytest.approx(5.397e6, abs=500)
    assert report_json("vgg16-A", "--image-size", 64)["image_hw"] == [64, 64]


def test_a_spec_gives_the_costs_of_the_slim_model(tmp_path):
    dense, image = build_classifier(Architecture("resnet18", 1000)), torch.zeros(1, 3, 64, 64)
    pruned = prune_model(dense, (image,), 0.5, skip=["layer1.*"])
    (tmp_path / "spec.json").write_text(pruned.spec.to_json())
    data = report_json(tmp_path / "spec.json", "--backbone", "resnet18", "--image-size", 64)
    assert data["macs"] == cost_of(pruned.model, (image,)).macs
    assert data["params"] == cost_of(pruned.model, (image,)).params
    assert data["published"] is None
    assert by_name(data)["layer1.0.conv1"]["slow"] == "left whole: the spec does not cut it"
    assert by_name(data)["layer2.0.conv1"]["reason"] is None


def test_a_slim_classifier_is_compared_with_its_dense_architecture(classifier, tmp_path):
    (dense, _), (slim, card) = classifier
    save_model(tmp_path / "slim.safetensors", slim, card)
    result = show(tmp_path / "slim.safetensors", "--json")
    data = json.loads(result.stdout)
    image = (torch.zeros(1, 3, 32, 32),)
    assert (data["dense_macs"], data["macs"]) == (cost_of(dense, image).macs, cost_of(slim, image).macs)
    assert (data["dense_params"], data["params"]) == (cost_of(dense, image).params, cost_of(slim, image).params)
    assert by_name(data)["conv1"]["channels_out"] == 8
    assert by_name(data)["fc"]["reason"] == "its channels are an output of the model"
    assert f"next: espalier deploy export {tmp_path}/slim.safetensors\n" in result.stderr


def test_a_dense_model_has_no_slow_layers(classifier, tmp_path):
    save_model(tmp_path / "net.safetensors", *classifier[0])
    result = show(tmp_path / "net.safetensors")
    assert "\nNothing was pruned.\n" in result.stdout
    assert "not pruned yet, tied to other layers" in result.stdout
    assert f"next: espalier prune l1_half {tmp_path}/net.safetensors\n" in result.stderr
    assert {row["slow"] for row in report_json(tmp_path / "net.safetensors")["layers"]} == {None}


def test_a_slim_detector_is_compared_with_its_dense_architecture(detector, tmp_path):
    (dense, _), (slim, card) = detector
    save_detector(tmp_path / "slim.safetensors", slim, card)
    data = report_json(tmp_path / "slim.safetensors")
    image = (torch.zeros(1, 3, 64, 96),)
    costs = [cost_of(TracedDetector(model, 20), image) for model in (dense, slim)]
    assert [data["dense_macs"], data["macs"]] == [cost.macs for cost in costs]
    assert [data["dense_params"], data["params"]] == [cost.params for cost in costs]
    assert (data["architecture"], data["image_hw"]) == ("Faster R-CNN with resnet18", [64, 96])
    rows = by_name(data)
    assert (rows["backbone.net.conv1"]["channels_out"], rows["neck.fpn_convs.0.conv"]["channels_out"]) == (8, 8)
    assert rows["rpn_head.rpn_conv"]["reason"] == "not cut when it was pruned"
    assert rows["rpn_head.rpn_cls"]["slow"] == "left whole: its channels are an output of the model"
    assert report_json(tmp_path / "slim.safetensors", "--image-size", 64)["image_hw"] == [64, 64]


def test_the_text_gives_a_detector_s_backbone_the_classifier_s_names(detector, tmp_path):
    save_detector(tmp_path / "slim.safetensors", *detector[1])
    text = show(tmp_path / "slim.safetensors").stdout
    assert "\nlayer1.0.conv1 " in text
    assert "backbone.net" not in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resnet34A"], "preset: unknown, got 'resnet34A'; nearest names: resnet34-A"),
        (["none.json", "--backbone", "resnet18"], "none.json: no such file; expected a model file, a PruneSpec or"),
        (["none.safetensors"], "none.safetensors: no such file; expected a model file, a PruneSpec or"),
        ([__file__], f"{__file__}: not an espalier model file; expected a .safetensors written by espalier"),
        (["resnet34-A", "--image-size", 10**20], f"--image-size: too large, got {10**20}; expected at most 4096"),
        (["resnet34-A", "--num-classes", 10**20], f"--num-classes: too large, got {10**20}; expected at most 1000000"),
        (["resnet34-A", "--backbone", "resnet18"], "--backbone resnet18: used only with a PruneSpec, got resnet34-A"),
    ],
)
def test_unknown_names_and_files_are_refused(refused, arguments, line):
    assert refused(*arguments).startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "does not name its network, got no --backbone; give one, as --backbone resnet34"),
        (["--backbone", "resnet99"], "backbone: unknown, got 'resnet99'; expected one of ["),
        (["--backbone", "vgg16"], "not for vgg16 with 1000 classes, conv1: the spec is for another model"),
        (
            ["--backbone", "resnet18", "--num-classes", 7],
            "not for resnet18 with 7 classes, fc: the spec is for another model, got (512, 7) (in, out); expected",
        ),
    ],
)
def test_a_spec_for_another_network_is_refused(refused, tmp_path, arguments, line):
    spec = prune_model(build_classifier(Architecture("resnet18", 1000)), (torch.zeros(1, 3, 32, 32),), 0.5).spec
    path = tmp_path / "spec.json"
    path.write_text(spec.to_json())
    assert line in refused(path, *arguments)


def test_a_spec_that_removes_blocks_names_them_and_counts_what_is_left(tmp_path):
    dense, path = build_classifier(Architecture("resnet18", 1000)), tmp_path / "spec.json"
    spec = PruneSpec({}, dict.fromkeys(("layer1.0", "layer2.0"), ("conv1", "bn1", "conv2", "bn2")))
    path.write_text(spec.to_json())
    data = report_json(path, "--backbone", "resnet18")
    assert data["removed_blocks"] == ["layer1.0", "layer2.0"]
    assert data["macs"] == cost_of(slim_model(dense, spec), (torch.zeros(1, 3, 224, 224),)).macs < data["dense_macs"]
    assert "layer1.0.conv1" not in by_name(data)
    assert "layer2.0.downsample.0" in by_name(data)
    text = show(path, "--backbone", "resnet18").stdout
    assert "\nWithout the residual blocks layer1.0, layer2.0.\n" in text
    assert "Nothing was pruned" not in text


@pytest.mark.parametrize("prefix", ["", "backbone.net."])
def test_a_model_file_without_blocks_names_them(tmp_path, prefix):
    spec = PruneSpec({}, {"layer2.0": ("conv1", "bn1", "conv2", "bn2")})
    arch, path = Architecture("resnet18", 1, 8).cut_by(spec), tmp_path / "net.safetensors"
    fields = {"spec": json.loads(spec.to_json())}
    if prefix:
        settings = DetectorSettings((64, 64), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
        net, card = new_detector(arch, ("a",), settings, seed=0)
        save_detector(path, net, replace(card, **fields))
    else:
        save_model(
            path, build_classifier(arch), ModelCard("classifier", arch, ("a",), Preprocessing((32, 32)), **fields)
        )
    data = report_json(path)
    assert data["removed_blocks"] == [f"{prefix}layer2.0"]
    assert data["macs"] < data["dense_macs"]
    assert f"{prefix}layer2.0.conv1" not in by_name(data)
    assert f"{prefix}layer2.0.downsample.0" in by_name(data)


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b"\xff\xfe", b"[" * 100_000])
def test_a_file_that_is_no_spec_is_refused(refused, tmp_path, content):
    (tmp_path / "spec.json").write_bytes(content)
    line = refused(tmp_path / "spec.json", "--backbone", "resnet18")
    assert line.startswith(f"{tmp_path}/spec.json: cannot be read, PruneSpec: ")


def test_a_spec_that_does_not_fit_together_is_refused(refused, tmp_path):
    cut = {"kept_out": [0, 1], "kept_in": None, "num_out": 64, "num_in": 3}
    (tmp_path / "spec.json").write_text(json.dumps({"version": 1, "layers": {"conv1": cut}}))
    line = refused(tmp_path / "spec.json", "--backbone", "resnet18")
    assert line.startswith(f"{tmp_path}/spec.json: not for resnet18 with 1000 classes, ")


def test_options_that_a_model_file_sets_itself_are_refused(refused, classifier, detector, tmp_path):
    save_model(tmp_path / "net.safetensors", *classifier[0])
    line = refused(tmp_path / "net.safetensors", "--num-classes", 3)
    got = f"got {tmp_path}/net.safetensors"
    assert line == f"--num-classes: not used with a model file, {got}; expected none, as the file has its own"
    save_detector(tmp_path / "det.safetensors", *detector[0])
    assert "got (100, 100); expected multiples of 32" in refused(tmp_path / "det.safetensors", "--image-size", 100)
