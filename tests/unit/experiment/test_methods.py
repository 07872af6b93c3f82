"""`espalier prune` and experiments by methods that refit the layer behind the cut."""

import json
from pathlib import Path

import pytest
import torch

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, save_model
from classify.synthetic import SHAPES, write_shapes
from detect import DetectorSettings, load_detector, new_detector, save_detector
from prune import slim_model
from prune.cut.spec import PruneSpec

pytestmark = pytest.mark.slow

SCENES = ("--set", "data={'_delete_': True, 'type': 'scenes', 'num_train': 24}")
METHODS = ("thinet", "thinet_forward", "lasso")


@pytest.fixture
def classifier(tmp_path):
    """An untrained classifier and its images."""
    torch.manual_seed(0)
    card = ModelCard("classifier", Architecture("resnet18", len(SHAPES), 8), SHAPES, Preprocessing((32, 32)))
    save_model(tmp_path / "net.safetensors", build_classifier(card.backbone), card)
    write_shapes(tmp_path / "images", 48, 6, 32, seed=0)
    return tmp_path / "net.safetensors"


@pytest.fixture
def prune(invoke, tmp_path):
    """Prune a model file; return the new one's path."""

    def run(config, model, *options, out="slim.safetensors"):
        result = invoke("prune", config, model, "--out", tmp_path / out, "--json", *options)
        assert json.loads(result.stdout)["macs"] < json.loads(result.stdout)["dense_macs"]
        return tmp_path / out

    return run


def of_images(model, *more):
    root = str(model.parent / "images")
    data = {"_delete_": True, "type": "folder", "root": root}
    small = ("calibration.batch_size=8", "calibration.num_batches=6", "round_to=1", "min_channels=1", *more)
    return [part for text in (f"data={data}", *small) for part in ("--set", text)]


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_is_cut_and_its_next_layers_are_refitted(prune, classifier, method):
    config = "lasso" if method == "lasso" else "thinet"
    skip = "skip=('layer4.*',)"  # its maps have one place, too few rows for least squares
    slim, card = load_classifier(prune(config, classifier, *of_images(classifier, f"method={method}", skip)))
    dense, _ = load_classifier(classifier)
    cut = slim_model(dense, PruneSpec.from_json(json.dumps(card.spec)))
    fitted = [name for name, tensor in cut.state_dict().items() if not torch.equal(tensor, slim.state_dict()[name])]
    assert fitted
    assert all(
        name.endswith(("conv2.weight", "conv2.bias")) for name in fitted
    )  # each reads the cut conv1 of its block
    assert slim.conv1.out_channels == dense.conv1.out_channels  # read by a residual sum
    assert card.provenance["config"]["method"] == method


def test_the_same_seed_chooses_and_fits_the_same(prune, classifier):
    one, two = (
        prune("thinet", classifier, *of_images(classifier), out=name) for name in ("a.safetensors", "b.safetensors")
    )
    assert one.read_bytes() == two.read_bytes()
    other = prune("thinet", classifier, *of_images(classifier, "seed=1"), out="c.safetensors")
    assert load_classifier(other)[1].spec != load_classifier(one)[1].spec


@pytest.mark.parametrize("method", METHODS)
def test_a_detectors_backbone_is_cut_on_its_scenes(prune, tmp_path, method):
    settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(tmp_path / "d.safetensors", *new_detector(Architecture("resnet18", 1, 8), SHAPES, settings, seed=0))
    options = (
        "--set",
        f"method={method}",
        "--set",
        "round_to=1",
        "--set",
        "min_channels=1",
        "--set",
        "skip=('layer4.*',)",
        *SCENES,
    )
    slim, _ = load_detector(prune("thinet", tmp_path / "d.safetensors", *options))
    dense, _ = load_detector(tmp_path / "d.safetensors")
    assert slim.backbone.net.layer1[0].conv1.out_channels == 4
    kept = slim.backbone.net.layer1[0].conv2.weight
    rows = [dense.backbone.net.layer1[0].conv2.weight[:, i] for i in range(8)]
    assert not any(torch.equal(kept[:, 0], row) for row in rows)
    assert torch.equal(slim.neck.lateral_convs[0].conv.weight, dense.neck.lateral_convs[0].conv.weight)


def test_a_head_of_regions_is_not_fitted_without_regions(command, tmp_path):
    settings = DetectorSettings((64, 96), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(tmp_path / "d.safetensors", *new_detector(Architecture("resnet18", 1, 8), SHAPES, settings, seed=0))
    options = ("--set", "parts=('backbone', 'roi_head')", *SCENES)
    code, _, err = command("prune", "thinet", tmp_path / "d.safetensors", *options)
    assert (code, "expected parts without roi_head" in err) == (2, True), err


def test_the_file_is_named_after_the_method(invoke, classifier):
    result = invoke("prune", "thinet", classifier, *of_images(classifier))
    assert f"wrote {classifier.parent / 'net-thinet-0.5.safetensors'}" in result.stderr


def test_statistics_are_estimated_anew_on_the_data_of_the_config(prune, classifier):
    options = of_images(classifier, "recalibrate=3", "method=rank")
    plain, one, two = (
        load_classifier(prune(config, classifier, *settings, out=f"{name}.safetensors"))[0].state_dict()
        for name, config, settings in (
            ("a", "l1_half", ("--set", "round_to=1")),
            ("b", "thinet", options),
            ("c", "thinet", options),
        )
    )
    changed = {name.rpartition(".")[2] for name, tensor in plain.items() if not torch.equal(tensor, one[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            ("method='rank'", "recalibrate=3", "data=None"),
            "data: recalibrate estimates on training images, got none; expected data=dict(type=...)",
        ),
        (("method='thinnet'",), "method: unknown, got 'thinnet'; expected one of lasso, rank, thinet, thinet_forward"),
        (("data=None",), "data: thinet measures on training images, got none; expected data=dict(type=...)"),
        (("method='rank'",), "data: not used with l1, got folder; expected none"),
    ],
)
def test_a_method_without_what_it_needs_is_refused(command, classifier, change, line):
    options = [part for text in change for part in ("--set", text)]
    code, _, err = command("prune", "thinet", classifier, *of_images(classifier), *options)
    assert (code, err.splitlines()[-1].endswith(line)) == (2, True), err
    assert not [*Path(classifier.parent).glob("*thinet*")]
