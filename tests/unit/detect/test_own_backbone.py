"""Networks of the user's own code, from a config to a detector, and files that name code without the user's word."""

import itertools
import sys

import pytest
import torch
from mmengine.config import Config

from classify import own_backbone
from classify.backbones import Architecture, build_classifier, build_trunk, check_backbone, stage_shapes
from classify.checkpoint import ModelCard, Preprocessing, load_classifier, save_model
from classify.classifier_model import ClassifierModel
from classify.commands import train_to_file
from classify.config import ClassifierTraining
from classify.export import ClassScores
from command.config import read_config
from command.errors import RequestError
from detect.detector_file import load_detector, save_detector
from detect.model import DetectorSettings, build_detector, new_detector, transfer
from detect.pruning import prune_detector

MODULE = """
import torch
from torch import nn
from espalier import OwnBackbone

def block(inputs, outputs, stride=2):
    layers = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    return nn.Sequential(*layers)

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.one, self.two = block(3, 8), block(8, 8), block(8, 16)
        self.parts = nn.ModuleDict({"three": block(16, 16), "four": block(16, 32)})
        self.top = nn.Conv2d(32, 48, 1)
        self.scores = nn.Linear(48, num_classes)

    def forward(self, x):
        x = self.parts["four"](self.parts["three"](self.two(self.one(self.stem(x)))))
        return self.scores(torch.relu(self.top(x)).mean((2, 3)))

STAGES = ("one", "two", "parts.three", "parts.four")

def make(num_classes):
    return OwnBackbone(Net(num_classes), ("top", "scores"), STAGES, mean_rgb=(127.5,) * 3, std_rgb=(51.0, 25.5, 127.5))

def alone(num_classes):
    return OwnBackbone(Net(num_classes), "scores")

def misnamed(num_classes):
    return OwnBackbone(Net(num_classes), "scores", ("one", "twoo"))

def headless(num_classes):
    return OwnBackbone(Net(num_classes), "fc")

def coarse(num_classes):
    return OwnBackbone(Net(num_classes), "scores", ("two", "parts.three", "parts.four"))

def not_run(num_classes):
    return OwnBackbone(Net(num_classes), "scores", ("parts",))

def bare(num_classes):
    return Net(num_classes)

def broken(num_classes):
    raise KeyError("no\\nsuch thing")

def takes_nothing():
    return make(2)

def ends(num_classes):
    raise SystemExit(0)

def of_no_head(num_classes):
    return OwnBackbone(Net(num_classes), None)

def undivided(num_classes):
    return OwnBackbone(Net(num_classes), "scores", std_rgb=(1.0, 0.0, 1.0))

def of_two_colours(num_classes):
    return OwnBackbone(Net(num_classes), "scores", mean_rgb=(0.0, 0.0))

def of_no_size(num_classes):
    return OwnBackbone(Net(num_classes), "scores", image_side=0)

def of_all_classes(num_classes):
    return OwnBackbone(Net(1000), "scores")

number = 3
"""
SETTINGS = DetectorSettings((64, 64), 8, 8, 5, 4, 4)
_counter = itertools.count()


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The name of a module of the user's own in the current folder; nothing of theirs was named yet."""
    name = f"mine{next(_counter)}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(own_backbone, "_NAMED", {})
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def forgotten(monkeypatch):
    """As a process that has named no code."""
    return lambda: monkeypatch.setattr(own_backbone, "_NAMED", {})


def named(module, function="make"):
    return check_backbone(f"{module}:{function}")


def classifier_file(path, name):
    arch = Architecture(name, 2)
    net = build_classifier(arch).eval()
    save_model(path, net, ModelCard("classifier", arch, ("a", "b"), Preprocessing.of(name, (64, 64))))
    return net


def test_stages_of_own_code_are_what_its_layers_return(mine):
    trunk = build_trunk(Architecture(named(mine), 2)).eval()
    images, net = torch.rand(2, 3, 64, 64), trunk.net
    maps = [net.one(net.stem(images))]
    for layer in (net.two, net.parts["three"], net.parts["four"]):
        maps.append(layer(maps[-1]))
    torch.testing.assert_close(list(trunk(images)), maps, rtol=0, atol=0)
    assert stage_shapes(trunk) == ((8, 4), (16, 8), (16, 16), (32, 32))
    assert not [name for name in trunk.state_dict() if "top" in name or "scores" in name]


def test_images_are_normalised_as_own_code_says(mine):
    net = build_classifier(Architecture(named(mine), 2)).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    by_hand = (pixels.float() - 127.5) / torch.tensor([51.0, 25.5, 127.5]).view(3, 1, 1)
    model = ClassifierModel(net)
    normalised = model.data_preprocessor({"inputs": pixels, "data_samples": torch.zeros(2)})["inputs"]
    torch.testing.assert_close(normalised, by_hand)
    torch.testing.assert_close(ClassScores(net, torch.float32)(pixels), net(by_hand))
    assert new_detector(Architecture(f"{mine}:make", 1), ("a",), SETTINGS, 0)[1].preprocessing.std_rgb[1] == 25.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.at_all:make", r"^backbone: nowhere.at_all cannot be imported, got ModuleNotFoundError: No module"),
        ("{}:maek", r"^backbone: \w+ has no maek, got '\w+:maek'; nearest names: make"),
        ("{}:number", r"^backbone: \w+:number cannot be called, got int; expected a function or class"),
        ("{}:bare", r"^backbone: \w+:bare makes no network, got Net; expected an OwnBackbone around a module"),
        ("{}:broken", r"^backbone: \w+:broken fails with num_classes=2, got KeyError: 'no\\nsuch thing'; expected"),
        ("{}:takes_nothing", r"^backbone: \w+:takes_nothing fails with num_classes=2, got TypeError: "),
        ("{}:misnamed", r"no such stages, got \['twoo'\]; expected layers below stem, one, two, parts, top, scores"),
        ("{}:headless", r"no such head, got \['fc'\]; expected layers below stem, "),
        ("{}:coarse", r"stages of \w+:coarse are wrong, got maps of strides \[8, 16, 32\]; expected 4, 8, 16, 32"),
        ("{}:not_run", r"stages of \w+:not_run return no maps of an image of 64 pixels, got KeyError: 'parts'; expect"),
        ("{}:ends", r"^backbone: \w+:ends fails with num_classes=2, got SystemExit: 0; expected"),
        ("{}:of_no_head", r"^backbone: \w+:of_no_head makes a wrong OwnBackbone, got head[.\w]*=None; expected"),
        ("{}:undivided", r"wrong OwnBackbone, got std_rgb.1=0.0; expected"),
        ("{}:of_two_colours", r"wrong OwnBackbone, got mean_rgb.2=\(0.0, 0.0\); expected"),
        ("{}:of_no_size", r"wrong OwnBackbone, got image_side=0; expected"),
        (
            "{}:of_all_classes",
            r"^backbone: \w+:of_all_classes scores other classes, got \(1, 1000\) with num_classes=2;",
        ),
        ("a b:make", r"^backbone: not the name of code, got 'a b:make'; expected package.module:name"),
        (":make", r"^backbone: not the name of code"),
    ],
)
def test_code_that_makes_no_backbone_is_refused_in_a_line(mine, text, message):
    with pytest.raises(RequestError, match=message) as raised:
        check_backbone(text.format(mine))
    assert "\n" not in str(raised.value)


def test_a_module_that_fails_is_refused_in_a_line(mine, tmp_path):
    (tmp_path / f"failing_{mine}.py").write_text("raise SystemExit('enough')")
    with pytest.raises(RequestError, match=r"cannot be imported, got SystemExit: enough; expected a module"):
        check_backbone(f"failing_{mine}:make")


def test_a_network_without_stages_is_no_detector_backbone(mine):
    arch = Architecture(named(mine, "alone"), 2)
    assert build_classifier(arch)(torch.rand(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(RequestError, match="has no feature maps of strides 4 to 32"):
        build_trunk(arch)


def test_a_file_opens_where_its_code_is_named_again(mine, tmp_path, forgotten):
    path, images = tmp_path / "a.safetensors", torch.rand(1, 3, 64, 64)
    net = classifier_file(path, named(mine))
    forgotten()
    with pytest.raises(
        RequestError, match=rf"a.safetensors: made by code outside Espalier, got '{mine}:make'.*--backb"
    ):
        load_classifier(path)
    with pytest.raises(RequestError, match=rf"made by another network, got '{mine}:make'; not {mine}:alone"):
        load_classifier(path, backbone=f"{mine}:alone")
    loaded, _ = load_classifier(path, backbone=f"{mine}:make")
    torch.testing.assert_close(loaded(images), net(images), rtol=0, atol=0)
    assert load_classifier(path)


def hostile_files(tmp_path, mine, forgotten, evil):
    """Write files whose cards name other code: they hold the weights of a network that is named."""
    classifier, detector = tmp_path / "classifier.safetensors", tmp_path / "detector.safetensors"
    arch = Architecture(named(mine), 2)
    net, found = build_classifier(arch), new_detector(arch, ("a", "b"), SETTINGS, 0)
    bad = Architecture(evil, 2)
    save_model(classifier, net, ModelCard("classifier", bad, ("a", "b"), Preprocessing((64, 64))))
    save_model(detector, found[0], ModelCard("detector", bad, ("a", "b"), Preprocessing((64, 64)), found[1].settings))
    forgotten()
    return classifier, detector


@pytest.mark.parametrize("evil", ["os:system", "planted:make", "planted:", ":", "os.path:join"])
def test_no_command_imports_what_a_model_file_names(mine, tmp_path, forgotten, command, monkeypatch, evil):
    classifier, detector = hostile_files(tmp_path, mine, forgotten, evil)
    (tmp_path / "planted.py").write_text("open('ran', 'w').close()")
    monkeypatch.setattr("os.system", lambda *_: (tmp_path / "ran").touch())
    coco = tmp_path / "none.json"
    for words in (
        ("classify", "eval", classifier, tmp_path),
        ("prune", "l1_half", classifier),
        ("prune", "l1_half", detector),
        ("prune", "show", classifier),
        ("prune", "show", detector),
        ("prune", "sensitivity", "sensitivity_shapes", classifier),
        ("deploy", "export", classifier),
        ("deploy", "export", detector),
        ("detect", "eval", detector, coco, tmp_path),
        ("classify", "eval", classifier, tmp_path, "--backbone", f"{mine}:make"),
        ("prune", "l1_half", detector, "--backbone", f"{mine}:make"),
    ):
        code, _, err = command(*words)
        assert code == 2, (words, err)
        assert "made by code outside Espalier" in err, words
        assert "--backbone package.module:function" in err
        assert err.strip().count("\n") == 0
    assert not (tmp_path / "ran").exists()
    assert "planted" not in sys.modules


def test_own_code_is_trained_cut_and_trained_again(mine, tmp_path, forgotten, command):
    settings = {
        "data": {"type": "shapes", "num_train": 24, "num_val": 12},
        "image_size": 32,
        "schedule": {"epochs": 1, "batch_size": 8, "lr": 1e-3},
    }
    lines = [f"{name} = {value!r}" for name, value in settings.items()]
    (tmp_path / "dense.py").write_text("\n".join([f"start = dict(type='dense', name='{mine}:make')", *lines]))
    assert command("classify", "train", "dense.py", "--out", "a.safetensors")[0] == 0
    forgotten()
    again = ("--backbone", f"{mine}:make")
    data = next(tmp_path.glob("shapes*"))
    assert command("classify", "eval", "a.safetensors", data, *again)[0] == 0
    forgotten()
    code, _, err = command("prune", "l1_half", "a.safetensors", "--out", "b.safetensors", *again)
    assert code == 0
    assert f"--set start.backbone={mine}:make" in err
    assert load_classifier(tmp_path / "b.safetensors")[1].backbone.widths["parts.four.0"] == (8, 16)
    forgotten()
    (tmp_path / "tune.py").write_text("\n".join(["start = dict(type='finetune', file='b.safetensors')", *lines]))
    code, _, err = command("classify", "train", "tune.py", "--out", "c.safetensors")
    assert code == 2
    assert "backbone=... where a config has file=" in err
    override = ("--set", f"start.backbone={mine}:make")
    assert command("classify", "train", "tune.py", "--out", "c.safetensors", *override)[0] == 0


def test_changed_code_is_not_gone_on_with(mine, tmp_path):
    (tmp_path / "dense.py").write_text(
        f"start = dict(type='dense', name='{mine}:make')\n"
        "data = dict(type='shapes', num_train=24, num_val=12)\nimage_size = 32\n"
        "schedule = dict(epochs=1, batch_size=8, lr=1e-3)"
    )
    settings = read_config(tmp_path / "dense.py", (), ClassifierTraining)
    from rich.console import Console

    def prints(out):
        train_to_file(settings, tmp_path / out, False, Console(quiet=True))
        return load_classifier(tmp_path / out)[1].provenance["data"]

    before = prints("a.safetensors")
    assert prints("b.safetensors") == before
    (tmp_path / f"{mine}.py").write_text(MODULE + "# changed")
    assert prints("c.safetensors") != before


def test_a_slim_detector_of_own_code_opens_here_and_in_mmdet(mine, tmp_path, forgotten):
    path, name = tmp_path / "detector.safetensors", named(mine)
    detector, card = new_detector(Architecture(name, 2), ("a", "b"), SETTINGS, 0)
    transfer(detector, build_classifier(Architecture(name, 7)).state_dict(), "a classifier of other classes")
    slim, card, _ = prune_detector(detector, card, 0.5)
    save_detector(path, slim, card)
    forgotten()
    with pytest.raises(RequestError, match="made by code outside Espalier"):
        load_detector(path)
    opened = build_detector(Config.fromfile(path.with_suffix(".py")).model)  # a config is Python, and names the code
    assert opened.backbone.net.two[0].weight.shape == slim.backbone.net.two[0].weight.shape == (8, 4, 3, 3)
    forgotten()
    loaded, _ = load_detector(path, backbone=name)
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded.backbone(images), slim.eval().backbone(images), rtol=0, atol=0)
