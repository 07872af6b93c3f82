import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import (
    ModelCard,
    Preprocessing,
    load_classifier,
    load_weights,
    read_card,
    read_weights,
    save_model,
)
from command.errors import RequestError
from prune import prune_model
from prune.selection import ChannelSelection

REAL = Path(__file__).parents[3].parent / "shared/data/cifar_resnet/resnet20-12fca82f.th"
IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ARCH = Architecture("resnet18", 3, base_channels=8)
CARD = ModelCard("classifier", ARCH, ("a", "b", "c"))


class MakesFolder:
    """Runs code when it is unpickled without restrictions."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def slim_and_card():
    pruned = prune_model(build_classifier(ARCH).eval(), (IMAGE,), 0.5)
    arch = replace(ARCH, widths=pruned.spec.widths())
    return pruned, replace(CARD, backbone=arch, spec=json.loads(pruned.spec.to_json()))


def test_dense_model_saved_and_loaded_gives_the_same_output(tmp_path):
    net = build_classifier(ARCH).eval()
    save_model(tmp_path / "m.safetensors", net, CARD)
    loaded, card = load_classifier(tmp_path / "m.safetensors")
    assert not loaded.training
    assert card == CARD
    assert torch.equal(loaded(IMAGE), net(IMAGE))


def test_slim_model_saved_and_loaded_gives_the_same_output(tmp_path):
    pruned, card = slim_and_card()
    save_model(tmp_path / "m.safetensors", pruned.model, card)
    loaded, again = load_classifier(tmp_path / "m.safetensors")
    assert torch.equal(loaded(IMAGE), pruned.model(IMAGE))
    assert again.prune_spec == pruned.spec


def test_card_survives_the_file(tmp_path):
    card = ModelCard(
        kind="detector",
        backbone=ARCH,
        classes=("b", "a"),
        preprocessing=Preprocessing((8, 9), (1.5, 2.0, 3.0), (4.0, 5.0, 6.0), keep_ratio=False),
        settings={"fpn_channels": 16},
        widths={"neck.fpn_convs.0.conv": (8, 16)},
        provenance={"seed": 3, "metrics": {"top1": 0.25}, "parents": ["ü"]},
    )
    save_model(tmp_path / "m.safetensors", nn.Linear(2, 2), card)
    assert read_card(tmp_path / "m.safetensors") == card
    assert card.backbone == ARCH
    assert card.prune_spec is None


def test_file_is_plain_safetensors(tmp_path):
    save_model(tmp_path / "m.safetensors", nn.Linear(2, 3), CARD)
    assert {n: tuple(w.shape) for n, w in read_weights(tmp_path / "m.safetensors").items()} == {
        "weight": (3, 2),
        "bias": (3,),
    }


def test_saving_replaces_the_old_file(tmp_path):
    nets = nn.Linear(1, 1), nn.Linear(1, 1)
    for net in nets:
        save_model(tmp_path / "m.safetensors", net, CARD)
    assert read_weights(tmp_path / "m.safetensors")["weight"] == nets[1].weight
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_failed_writing_leaves_no_partial_file(tmp_path):
    (tmp_path / "m.safetensors").mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(ValueError, match=r"m\.safetensors: is a folder; expected a file"):
        save_model(tmp_path / "m.safetensors", nn.Linear(2, 2), CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_weights_that_cannot_be_written_leave_the_old_file(tmp_path):
    save_model(tmp_path / "m.safetensors", nn.Linear(2, 2), CARD)
    before = (tmp_path / "m.safetensors").read_bytes()
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[1].weight = net[0].weight  # safetensors refuses memory that two names share
    with pytest.raises(RuntimeError, match="share memory"):
        save_model(tmp_path / "m.safetensors", net, CARD)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
    assert (tmp_path / "m.safetensors").read_bytes() == before


@pytest.mark.parametrize("dump", [torch.save, lambda obj, path: path.write_bytes(pickle.dumps(obj, 2))])
def test_file_that_would_run_code_is_refused_and_runs_none(tmp_path, dump):
    dump({"state_dict": {"weight": MakesFolder(tmp_path / "made")}}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth: no plain weights inside") as caught:
        read_weights(tmp_path / "evil.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda w: w,
        lambda w: OrderedDict(w),
        lambda w: {"state_dict": w},
        lambda w: {"state_dict": w, "epoch": 3, "best_prec1": 0.5},
        lambda w: {"state_dict": {f"module.{name}": tensor for name, tensor in w.items()}},
        lambda w: {f"module.{name}": tensor for name, tensor in w.items()},
    ],
)
def test_wrappers_around_foreign_weights_are_removed(tmp_path, wrapped):
    weights = nn.Linear(2, 3).state_dict()
    torch.save(wrapped(weights), tmp_path / "foreign.pth")
    read = read_weights(tmp_path / "foreign.pth")
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weights[name]) for name in read)


@pytest.mark.parametrize("obj", [torch.zeros(2), [torch.zeros(2)], {"state_dict": None}, None, 3])
def test_file_without_names_is_refused(tmp_path, obj):
    torch.save(obj, tmp_path / "m.pth")
    with pytest.raises(
        ValueError, match=r"m\.pth: no named weights inside, got a (Tensor|list|dict of state_dict|NoneType|int)"
    ):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("content", [b"", b"hello world", b"h", b"<!DOCTYPE html>", b"\0" * 64, b'{"a": 1}'])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_file_of_something_else_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no plain weights inside"):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        b"G",  # a number cut short: struct.error
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",  # a tensor of nothing: TypeError
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n(K\x01K\x00))tR.",  # one of a number: AttributeError
    ],
)
def test_pickle_that_pytorch_stumbles_over_is_refused(tmp_path, content):
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(RequestError, match="no plain weights inside"):
        read_weights(tmp_path / "m.pth")


def test_weights_whose_names_are_no_text_are_left_out(tmp_path):
    torch.save({"a": torch.ones(1), 3: torch.ones(1), ("b", 1): torch.ones(1)}, tmp_path / "m.pth")
    assert list(read_weights(tmp_path / "m.pth")) == ["a"]


@pytest.mark.parametrize(
    ("weight", "got"),
    [
        (torch.ones(2, 2).to_sparse(), "torch.float32 as torch.sparse_coo on cpu"),
        (torch.ones(2, 2, device="meta"), "torch.float32 as torch.strided on meta"),
        (torch.ones(2, 2, dtype=torch.complex64), "torch.complex64 as torch.strided on cpu"),
    ],
    ids=["sparse", "meta", "complex"],
)
def test_weight_that_no_layer_can_copy_is_refused(tmp_path, weight, got):
    torch.save({"weight": weight}, tmp_path / "m.pth")
    with pytest.raises(RequestError, match=f"'weight' is not a plain weight, got {got}; expected dense real numbers"):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"m{suffix}"
    weights = nn.Linear(64, 64).state_dict()
    {".pth": torch.save, ".safetensors": save_file}[suffix](weights, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match="no plain weights inside"):
        read_weights(path)


@pytest.mark.parametrize("read", [read_weights, read_card, load_classifier])
def test_missing_file_is_named(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors: no such file"):
        read(tmp_path / "gone.safetensors")


def test_safetensors_without_a_card_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"m\.safetensors: not an espalier model file"):
        read_card(tmp_path / "m.safetensors")


@pytest.mark.parametrize("text", ["{}", '{"version": 99}'])
def test_card_of_another_version_is_refused(tmp_path, text):
    save_file({"weight": torch.zeros(2)}, tmp_path / "m.safetensors", {"espalier": text})
    with pytest.raises(ValueError, match="written by another version of espalier"):
        read_card(tmp_path / "m.safetensors")


def test_card_without_classes_is_refused(tmp_path):
    save_model(tmp_path / "m.safetensors", nn.Linear(2, 2), replace(CARD, classes=()))
    with pytest.raises(RequestError, match="its card is damaged, classes Tuple should have at least 1 item"):
        read_card(tmp_path / "m.safetensors")


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c", "d")])
def test_a_card_with_another_number_of_classes_is_refused(tmp_path, classes):
    save_model(tmp_path / "m.safetensors", build_classifier(ARCH), replace(CARD, classes=classes))
    with pytest.raises(RequestError, match=f"its card is damaged, got {len(classes)} classes for 3 scores"):
        load_classifier(tmp_path / "m.safetensors")


def test_detector_is_not_loaded_as_a_classifier(tmp_path):
    save_model(tmp_path / "m.safetensors", nn.Linear(2, 2), replace(CARD, kind="detector"))
    with pytest.raises(ValueError, match="holds a detector; expected a classifier"):
        load_classifier(tmp_path / "m.safetensors")


def test_card_that_does_not_fit_its_weights_is_refused(tmp_path):
    pruned, _ = slim_and_card()
    save_model(tmp_path / "m.safetensors", pruned.model, CARD)
    with pytest.raises(ValueError, match=r"m\.safetensors: of another architecture, bn1.bias got \(4,\); expected \(8"):
        load_classifier(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.weight": torch.zeros(3, 9)}, r"1\.weight got \(3, 9\); expected \(3, 4\)$"),
        ({"2.weight": torch.zeros(3)}, r"2\.weight got \(3,\); expected no such layer$"),
        ({"0.bias": None}, r"0\.bias got nothing; expected \(4,\)$"),
        (
            {"0.bias": None, "1.bias": None, **{f"{i}.bias": torch.zeros(1) for i in range(2, 7)}},
            r"0\.bias got nothing; expected \(4,\), 1\.bias got nothing; .*, 4\.bias got .* \(and 2 more\)$",
        ),
    ],
)
def test_weights_of_another_architecture_name_wrong_layers(change, message):
    net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))
    weights = {name: w for name, w in {**net.state_dict(), **change}.items() if w is not None}
    with pytest.raises(ValueError, match=f"foreign: of another architecture, {message}"):
        load_weights(net, weights, "foreign")


def test_refused_weights_change_nothing():
    net = nn.Linear(2, 2)
    before = net.weight.clone()
    with pytest.raises(ValueError, match="of another architecture"):
        load_weights(net, {"weight": torch.zeros(2, 2)}, "foreign")
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    weights = {"weight": torch.tensor([[1.0, value]]), "bias": torch.zeros(1)}
    with pytest.raises(
        ValueError, match="foreign: weight weight is not finite, got NaN or infinity; expected numbers, train again"
    ):
        load_weights(nn.Linear(2, 1), weights, "foreign")


@pytest.mark.parametrize("head", [{}, {"fc.weight": torch.ones(1000, 64), "fc.bias": torch.ones(1000)}])
def test_optional_head_keeps_its_own_weights(head):
    source, net = build_classifier(ARCH), build_classifier(ARCH)
    before = net.fc.weight.clone()
    weights = {name: w for name, w in source.state_dict().items() if not name.startswith("fc.")}
    load_weights(net, {**weights, **head}, "foreign", optional=("fc.",))
    assert torch.equal(net.fc.weight, before)
    assert torch.equal(net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_weights_without_batch_counters_are_taken():
    net = nn.BatchNorm2d(2)
    load_weights(net, {n: torch.full((2,), 5.0) for n in ("weight", "bias", "running_mean", "running_var")}, "old")
    assert net.running_var.tolist() == [5.0, 5.0]


def test_published_cifar_resnet20_opens():
    if not REAL.is_file():
        pytest.skip(f"{REAL} is absent: the shared data folder does not lie beside this checkout")
    weights = read_weights(REAL)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    # the README beside the file and the file's own project both give 269,722
    assert sum(w.numel() for name, w in weights.items() if not name.endswith(buffers)) == 269_722
    assert weights["conv1.weight"].shape == (16, 3, 3, 3)
    assert not any(name.startswith("module.") for name in weights)


@pytest.mark.parametrize("name", ["conv1.stride.0", "conv1.groups.0", "layer1.0.conv1.kernel_size.1", "bn1.eps"])
def test_a_card_sets_no_attribute_of_a_layer(tmp_path, name):
    arch = replace(ARCH, widths={name: (1, 1)})
    save_model(tmp_path / "m.safetensors", build_classifier(ARCH), replace(CARD, backbone=arch))
    with pytest.raises(RequestError, match=rf"{name}: the spec is for another model; .* has no such layer"):
        load_classifier(tmp_path / "m.safetensors")


def test_an_index_between_two_channels_is_refused(tmp_path):
    net = nn.Sequential(ChannelSelection(4))
    with pytest.raises(RequestError, match=r"^file: weight 0.index has fractions, got torch.float32; expected whole"):
        load_weights(net, {"0.index": torch.tensor([0.0, 1.5, 2.0, 3.0])}, "file")
    load_weights(net, {"0.index": torch.tensor([0.0, 1.0, 2.0, 3.0])}, "file")
    assert net[0].index.tolist() == [0, 1, 2, 3]
