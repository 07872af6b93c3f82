import json

import pytest
import torch
from torch import nn

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import load_classifier, load_weights, read_weights
from classify.importing import class_list, import_classifier
from classify.naming import IN_TIMM
from command.errors import RequestError
from detect.detector_file import load_detector


@pytest.fixture
def net():
    torch.manual_seed(1)
    return build_classifier(Architecture("resnet18", 5)).eval()


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def prefixed(prefix, weights):
    return {prefix + name: tensor for name, tensor in weights.items()}


def in_detector(weights):
    trunk = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    return {**prefixed("backbone.", trunk), "neck.lateral_convs.0.conv.weight": torch.rand(4, 4, 1, 1)}


def of_mmpretrain(weights):
    return {**in_detector(weights), **{f"head.{name}": weights[name] for name in ("fc.weight", "fc.bias")}}


def averaged(weights):
    return {"n_averaged": torch.tensor(3), **prefixed("module.", weights)}


WRAPPED = {
    "torchvision": lambda weights: weights,
    "state_dict": lambda weights: {"epoch": 3, "state_dict": weights},
    "model": lambda weights: {"model": weights, "optimizer": {"state": {}, "param_groups": []}},
    "model_state_dict": lambda weights: {"model_state_dict": weights},
    "module": lambda weights: {"module": weights},
    "DataParallel": lambda weights: {"state_dict": prefixed("module.", weights)},
    "compiled": lambda weights: prefixed("_orig_mod.", weights),
    "compiled in DataParallel": lambda weights: prefixed("module._orig_mod.", weights),
    "lightning": lambda weights: {"state_dict": prefixed("model.", weights), "pytorch-lightning_version": "2.4"},
    "mmpretrain": lambda weights: {"meta": {}, "state_dict": of_mmpretrain(weights)},
    "averaged": lambda weights: {"model": {name: 0 * w for name, w in weights.items()}, "model_ema": averaged(weights)},
    "averaged by timm": lambda weights: {"state_dict": {}, "state_dict_ema": weights},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_read_whatever_they_are_wrapped_in(kind, net, images, tmp_path):
    torch.save(WRAPPED[kind](net.state_dict()), tmp_path / "w.pth")
    found, card = import_classifier("resnet18", tmp_path / "w.pth")
    assert len(card.classes) == 5
    assert torch.equal(found(images), net(images))


def test_the_backbone_of_a_detector_keeps_a_random_head(net, images, tmp_path):
    torch.save({"state_dict": in_detector(net.state_dict())}, tmp_path / "w.pth")
    found, card = import_classifier("resnet18", tmp_path / "w.pth", classes="3")
    found.fc = net.fc = nn.Identity()
    assert torch.equal(found(images), net(images))
    assert card.classes == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize("name", IN_TIMM)
def test_weights_of_timm_compute_the_same_here(name, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(IN_TIMM[name], num_classes=7).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.uniform_(layer.bias)
    for key, tensor in theirs.named_parameters():
        if key.endswith("gamma"):
            nn.init.uniform_(tensor)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours, card = import_classifier(name, tmp_path / "w.pth")
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 0
        torch.testing.assert_close(ours(x), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert len(card.classes) == 7


def test_a_regnet_of_timm_has_its_shortcuts_last(tmp_path):
    ours = build_classifier(Architecture("regnet_y_400mf", 5))
    parts = {"f.a.0": "conv1.conv", "f.a.1": "conv1.bn", "f.b.0": "conv2.conv", "f.b.1": "conv2.bn"}
    parts |= {"f.se.fc1": "se.fc1", "f.se.fc2": "se.fc2", "f.c.0": "conv3.conv", "f.c.1": "conv3.bn"}
    parts |= {"proj.0": "downsample.conv", "proj.1": "downsample.bn"}
    weights = {name: torch.rand(t.shape) for name, t in ours.state_dict().items() if "num_batches" not in name}
    inside = [name for name in weights if name.startswith("trunk_output.")]
    theirs = {name: tensor for name, tensor in weights.items() if name.startswith("stem.")}
    for block in dict.fromkeys(name.split(".")[2] for name in inside):
        stage, place = block.removeprefix("block").split("-")
        for part, there in parts.items():
            prefix = f"trunk_output.block{stage}.{block}.{part}."
            found = {name: weights[name] for name in inside if name.startswith(prefix)}
            theirs |= {f"s{stage}.b{int(place) + 1}.{there}.{n.removeprefix(prefix)}": t for n, t in found.items()}
    theirs |= {f"head.{name}": tensor for name, tensor in weights.items() if name.startswith("fc.")}
    torch.save(theirs, tmp_path / "w.pth")
    found, _ = import_classifier("regnet_y_400mf", tmp_path / "w.pth")
    for name, tensor in weights.items():
        assert torch.equal(found.state_dict()[name], tensor), name


def test_weights_of_another_network_are_refused_with_what_was_found(net, tmp_path):
    torch.save({"model": prefixed("student.", net.state_dict())}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"w\.pth: of another architecture, classifier\.1\.bias got nothing; expected .*begin"
    ):
        import_classifier("mobilenet_v2", tmp_path / "w.pth", classes="5")
    found, _ = import_classifier("resnet18", tmp_path / "w.pth")
    assert torch.equal(found.conv1.weight, net.conv1.weight)


def test_layers_of_other_sizes_are_named(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"of another architecture, fc\.bias got \(5,\); expected \(9,\), fc\.weight"):
        import_classifier("resnet18", tmp_path / "w.pth", classes="9")


def test_training_starts_from_prefixed_weights_too(net, tmp_path):
    torch.save({"model_state_dict": prefixed("backbone.", net.state_dict())}, tmp_path / "w.pth")
    other = build_classifier(Architecture("resnet18", 5))
    load_weights(other, read_weights(tmp_path / "w.pth"), "w.pth")
    assert torch.equal(other.fc.weight, net.fc.weight)


def test_class_names_come_from_a_number_a_list_or_a_folder(tmp_path):
    (tmp_path / "names.txt").write_text("owl\n\nwren\n")
    (tmp_path / "set/train/b").mkdir(parents=True)
    (tmp_path / "set/train/a").mkdir()
    assert class_list(str(tmp_path / "names.txt"), 9) == ("owl", "wren")
    assert class_list(str(tmp_path / "set"), 9) == ("a", "b")
    assert class_list("2", 9) == ("class 0", "class 1")
    assert class_list(None, 1000)[:2] == ("tench", "goldfish")
    (tmp_path / "none.txt").touch()
    with pytest.raises(ValueError, match="has no names, got an empty file; expected one in each line"):
        class_list(str(tmp_path / "none.txt"), 9)
    with pytest.raises(FileNotFoundError, match="no such file; expected a number, a list of names or an image folder"):
        class_list(str(tmp_path / "other"), 9)


def test_import_writes_a_classifier_that_prune_takes(invoke, net, images, tmp_path):
    torch.save({"model": net.state_dict()}, tmp_path / "w.pth")
    out, slim = tmp_path / "r.safetensors", tmp_path / "s.safetensors"
    assert "next: espalier prune l1_half" in invoke("import", "resnet18", tmp_path / "w.pth", "--out", out).stderr
    loaded, card = load_classifier(out)
    assert torch.equal(loaded(images), net(images))
    assert card.preprocessing.image_hw == (224, 224)
    invoke("prune", "l1_half", out, "--out", slim)
    assert load_classifier(slim)[1].is_slim


def test_import_puts_a_detector_around_the_weights(invoke, net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    out = tmp_path / "d.safetensors"
    invoke("import", "resnet18", tmp_path / "w.pth", "--detector", "--classes", 3, "--size-hw", 64, 96, "--out", out)
    detector, card = load_detector(out)
    assert torch.equal(detector.backbone.net.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert (len(card.classes), card.preprocessing.image_hw) == (3, (64, 96))


def test_import_without_weights_depends_on_the_seed_alone(invoke, tmp_path):
    outs = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for out, seed in zip(outs, (0, 0, 1), strict=True):
        invoke("import", "resnet18", "--classes", 4, "--seed", seed, "--out", out)
    first, again, other = (load_classifier(out)[0].conv1.weight for out in outs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["resnet5"], "backbone: unknown, got 'resnet5'; expected one of"),
        (["resnet18", "--size-hw", "64", "96"], "--size-hw: not square, got 64 96; expected two equal sides"),
        (["resnet18", "--detector", "--size-hw", "60", "96"], "image_size_hw: not divisible by 32"),
        (["resnet18", "--out", "r.pth"], "not a model file's name, got the ending '.pth'; expected .safetensors"),
    ],
)
def test_import_refuses_wrong_use_in_one_line(invoke, args, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message.replace("[", r"\[")) as caught:
        invoke("import", *args)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_imported_file_says_where_it_is_from(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "w.pth")
    _, card = import_classifier("resnet18", tmp_path / "w.pth")
    assert json.loads(json.dumps(card.provenance))["config"] == {"import": "resnet18", "seed": 0}
    assert len(card.provenance["parent"]) == 64


def test_a_missing_layer_is_not_taken_from_a_part_of_another_name(net, tmp_path):
    weights = net.state_dict()
    weights["aux.conv1.weight"] = weights.pop("conv1.weight")
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="of another architecture, "):
        import_classifier("resnet18", tmp_path / "w.pth")
