"""Channels and weights of a run's model files, and what a report makes of them."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from classify.pruning import prune_classifier
from experiment.architectures import architectures_of, width_table
from experiment.histograms import Histogram, LayerWeights, histogram_of, widest_of
from experiment.layer_figures import histograms_in, widths_in
from experiment.layer_plots import weight_plots, width_plot
from experiment.report import write_report
from experiment.report_lines import lines_of
from experiment.results import Results


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Model files: a ResNet-20, the same cut, and another network."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    arch = Architecture("resnet20_cifar", 2)
    net = build_classifier(arch).eval()
    card = ModelCard("classifier", arch, ("a", "b"), Preprocessing((32, 32)))
    save_model(folder / "dense", net, card)
    save_model(folder / "slim", *prune_classifier(net, card, 0.0, ratios={"layer1.*.conv1": 0.5})[:2])
    other = Architecture("resnet56_cifar", 2)
    save_model(folder / "other", build_classifier(other), ModelCard("classifier", other, ("a", "b")))
    return {path.name: path for path in sorted(folder.iterdir())}


def test_widths_are_the_output_channels_of_convolutions(files):
    dense, slim = widths_in(files["dense"]), widths_in(files["slim"])
    assert len(dense) == 19  # 20 layers with the classifier
    assert (dense["conv1"], dense["layer1.0.conv1"], dense["layer3.2.conv2"]) == (16, 16, 64)
    assert {name: num for name, num in slim.items() if num != dense[name]} == dict.fromkeys(
        (f"layer1.{block}.conv1" for block in range(3)), 8
    )


def test_the_tenth_block_of_a_network_does_not_precede_its_first(tmp_path):
    net = build_classifier(Architecture("vgg16_cifar", 2))
    save_model(tmp_path / "a", net, ModelCard("classifier", Architecture("vgg16_cifar", 2), ("a", "b")))
    named = [name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)]
    assert list(widths_in(tmp_path / "a")) == named


def test_a_histogram_counts_what_is_not_zero_and_within_reach():
    layer = LayerWeights.of("a", np.array([[0.0, 0.0], [1.55, -1.45], [0.15, 9.0]]))
    found = histogram_of(layer, 3.0)  # bins of 0.1
    assert (found.num, found.num_zeros, sum(found.counts)) == (6, 2, 3)
    assert (found.counts[15], found.counts[31], found.counts[45]) == (1, 1, 1)
    assert widest_of(LayerWeights.of("a", np.zeros(4))) == 0
    assert histogram_of(LayerWeights.of("a", np.zeros(4)), 0.0).num_zeros == 4


def test_models_of_one_network_share_their_layers_and_bins(files):
    found = histograms_in(files)
    assert list(found["dense"]) == list(found["slim"])
    assert len(found["dense"]) == 6
    assert "layer1.8.conv2" not in found["dense"]  # which a ResNet-56 alone has
    for layer, one in found["dense"].items():
        assert one["widest"] == found["slim"][layer]["widest"]
    assert found["slim"]["conv1"] == found["dense"]["conv1"]  # it was not cut


@pytest.fixture
def with_layers(results):
    """Results of a real run, to which widths of two layers and weights of one are added."""
    names = [row["name"] for row in results["rows"]]
    widths = {name: {"conv1": 64, "b": 10} if name == "dense" else {"conv1": 64, "b": 4} for name in names}
    weights = {"widest": 0.5, "counts": [1, 3, 1], "std": 0.1, "num": 6, "num_zeros": 1}
    return results | {"widths": widths, "weights": {name: {"conv1": weights} for name in names}}


def test_an_architecture_that_several_orderings_share_is_one(with_layers):
    found = architectures_of(lines_of(with_layers["rows"]), with_layers["widths"])
    assert [(one.name, one.dense, one.kept) for one in found] == [
        ("l1, 0.5", {"conv1": 64, "b": 10}, {"conv1": 64, "b": 4})
    ]
    table = width_table(found)
    assert (table.headers, table.cells) == (["layer", "dense", "l1, 0.5"], [["conv1", 64, 64], ["b", 10, 4]])


def test_a_layer_that_is_gone_keeps_nothing_and_seeds_are_averaged(with_layers):
    rows = [row | {"seed": 1, "name": f"{row['name']}-1"} for row in with_layers["rows"]] + with_layers["rows"]
    widths = {
        **with_layers["widths"],
        **{row["name"]: {"conv1": 32} for row in rows[:5]},
        "dense-1": {"conv1": 64, "b": 10},
    }
    (found,) = architectures_of(lines_of(rows), widths)
    assert found.kept == {"conv1": 48, "b": 2}


def test_the_report_has_channels_and_weights(with_layers, tmp_path):
    Results.model_validate_json(json.dumps(with_layers))
    page = write_report(with_layers, tmp_path).read_text("utf-8")
    assert "<h2>Channels by layer</h2>" in page
    assert "l1, 0.5: 92% of all channels stay" in page  # 68 of 74
    assert page.count('aria-label="Histograms of the weights of ') == 5
    assert "17% zeros" in page
    with (tmp_path / "widths.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[2] == ["b", "10", "4"]


def test_results_of_earlier_versions_have_no_channels(results, tmp_path):
    page = write_report(results, tmp_path).read_text("utf-8")
    assert "Channels by layer" not in page
    assert "<h2>Weights</h2>" not in page
    assert not (tmp_path / "widths.csv").exists()


def test_nothing_is_drawn_of_nothing():
    assert width_plot([]) == ""
    assert weight_plots({}) == {}
    none = Histogram(1.0, (0, 0), 0.0, 4, 4)
    assert "100% zeros" in ElementTree.tostring(ElementTree.fromstring(weight_plots({"a": {"b": none}})["a"])).decode()
