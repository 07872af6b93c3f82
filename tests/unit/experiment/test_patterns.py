"""Guided configs, and pictures of what pruned networks keep and of their weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from classify.pruning import prune_classifier
from command.config import read_config
from command.errors import RequestError
from experiment.cuts import PruneConfig
from experiment.pattern_plot import pattern_plot, weights_plot
from experiment.patterns import drawn_layers, pattern_of, weights_of


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model files of a ResNet-20: dense, slim, and with weights of three places of each kernel gone."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    arch = Architecture("resnet20_cifar", 2)
    net = build_classifier(arch).eval()
    card = ModelCard("classifier", arch, ("a", "b"), Preprocessing((32, 32)))
    save_model(folder / "dense.safetensors", net, card)
    recipe = {"layer1.*.conv1": 0.5, "layer3.*.conv1": 0.75}
    save_model(folder / "slim.safetensors", *prune_classifier(net, card, 0.0, ratios=recipe)[:2])
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight[:, :, 0] = 0
        net.conv1.weight[:] = 0
    save_model(folder / "zeros.safetensors", net, card)
    return folder


def test_a_slim_file_keeps_channels(models):
    pattern = pattern_of(str(models / "slim.safetensors"))
    assert pattern.what == "channels"
    kept = {layer.name: layer.kept for layer in pattern.layers}
    assert (kept["conv1"], kept["layer1.0.conv1"], kept["layer2.1.conv1"], kept["layer3.2.conv1"]) == (1, 0.5, 1, 0.25)
    assert [layer.size for layer in pattern.layers] == [32**2] * 7 + [16**2] * 6 + [8**2] * 6


def test_a_file_with_zeros_keeps_weights_at_places_of_its_kernels(models):
    pattern = pattern_of(str(models / "zeros.safetensors"))
    assert pattern.what == "weights"
    kept = {layer.name: layer.kept for layer in pattern.layers}
    assert kept["conv1"] == 0
    assert kept["layer3.0.conv2"] == pytest.approx(6 / 9)
    np.testing.assert_array_equal(pattern.kernels[64], [[0, 0, 0], [1, 1, 1], [1, 1, 1]])
    # in the first stage the stem, one of seven, has lost all
    np.testing.assert_allclose(pattern.kernels[1024][1:], 6 / 7)


def test_a_dense_file_has_no_pattern(models):
    with pytest.raises(RequestError, match=r"dense.safetensors: nothing was cut, got neither slim layers nor zeros"):
        pattern_of(str(models / "dense.safetensors"))


def test_the_picture_has_a_bar_for_each_layer_and_the_kernels_beside(models):
    patterns = [pattern_of(str(models / f"{name}.safetensors")) for name in ("slim", "zeros")]
    figure = pattern_plot(patterns)
    axes = figure.get_axes()
    bars = [one for one in axes if len(one.patches) >= 19]
    assert [round(bar.get_height(), 2) for bar in bars[0].patches[:3]] == [1, 0.5, 1]
    kernels = [one for one in axes if one.images]
    assert len(kernels) == 3
    assert [text.get_text() for text in kernels[-1].texts] == ["0", "0", "0", *["100"] * 6]


def test_weights_are_drawn_without_zeros_on_one_scale(models):
    found = {name: weights_of(models / f"{name}.safetensors") for name in ("dense", "zeros")}
    assert found["zeros"]["layer1.0.conv1"].num_zeros == 16 * 16 * 3
    assert len(found["zeros"]["layer1.0.conv1"].values) == 16 * 16 * 6
    layers = drawn_layers(found)
    assert "conv1" not in layers  # nothing of it is left in one of the two
    assert len(layers) == 6
    figure = weights_plot(found, layers)
    grid = np.array(figure.get_axes()).reshape(6, 2)
    assert all(row[0].get_xlim() == row[1].get_xlim() for row in grid)
    assert ["33% zeros" in axes.texts[0].get_text() for axes in grid[0]] == [False, True]
    assert drawn_layers(found, ["layer1.0.conv1"]) == ["layer1.0.conv1"]
    with pytest.raises(RequestError, match=r"--layer layer9: not a convolution of every model; nearest names: "):
        drawn_layers(found, ["layer9"])


def test_pictures_are_written(models, tmp_path, command):
    files = [models / f"{name}.safetensors" for name in ("slim", "zeros")]
    code, out, _ = command("prune", "pattern", *files, "--out", tmp_path / "a.png", "--json")
    assert code == 0
    assert json.loads(out)[str(files[0])]["kept"]["layer3.0.conv1"] == 0.25
    assert command("prune", "weights", *files, "--out", tmp_path / "b.png")[0] == 0
    assert all(min(Image.open(tmp_path / name).size) > 300 for name in ("a.png", "b.png"))
    code, _, err = command("prune", "weights", *files, "--out", tmp_path / "b.png")
    assert (code, "exists already" in err) == (2, True)
    code, _, err = command("prune", "pattern", files[0], "--out", tmp_path / "a.pdf")
    assert (code, "not a picture's name, got the ending '.pdf'" in err) == (2, True)


def test_guided_configs_cut_another_network(models, tmp_path, command):
    out = tmp_path / "guided"
    words = ("prune", "guide", models / "slim.safetensors", "--for", "resnet56_cifar", "--num-classes", 2, "--out", out)
    code, text, err = command(*words, "--json")
    assert code == 0, err
    figures = json.loads(text)
    assert figures["recipes"]["guided.py"]["ratios"] == {"layer1.*.conv1": 0.5, "layer3.*.conv1": 0.75}
    assert all(0.95 < macs / figures["macs"]["guided.py"] <= 1 for macs in figures["macs"].values())
    arch = Architecture("resnet56_cifar", 2)
    given = tmp_path / "given.safetensors"
    save_model(given, build_classifier(arch), ModelCard("classifier", arch, ("a", "b"), Preprocessing((32, 32))))
    for name, macs in figures["macs"].items():
        config = read_config(out / name, (), PruneConfig)
        assert config.round_to == 1
        code, text, err = command("prune", out / name, given, "--json", "--force")
        assert (code, json.loads(text)["macs"]) == (0, macs)
    assert command(*words)[0] == 2  # it exists


def test_a_guide_s_name_is_data_in_the_configs(models, tmp_path, command):
    odd = tmp_path / 'a"""; raise SystemExit(3) #.safetensors'
    odd.write_bytes((models / "slim.safetensors").read_bytes())
    assert command("prune", "guide", odd, "--for", "resnet20_cifar", "--out", tmp_path / "guided")[0] == 0
    assert read_config(tmp_path / "guided/guided.py", (), PruneConfig).ratios["layer1.*.conv1"] == 0.5
