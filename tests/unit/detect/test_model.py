import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from mmdet.apis import init_detector
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import save_file

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, save_model
from command.errors import RequestError
from detect import DetectorSettings, build_detector, detector_config, load_detector, save_detector
from detect.model import config_of, mmdet_config, transfer


@pytest.fixture
def slim_file(slim, tmp_path):
    """The slim detector's model file, with the config for mmdet beside it."""
    detector, card, _ = slim
    save_detector(tmp_path / "slim.safetensors", detector, card)
    return tmp_path / "slim.safetensors"


def classifier(name="resnet18", base_channels=8):
    torch.manual_seed(5)
    return build_classifier(Architecture(name, 7, base_channels))


@pytest.mark.parametrize(("name", "channels"), [("resnet18", [8, 16, 32, 64]), ("resnet50", [32, 64, 128, 256])])
def test_the_neck_reads_what_the_backbone_gives(name, channels):
    config = detector_config(Architecture(name, 1, 8), 3, DetectorSettings())
    assert config["neck"]["in_channels"] == channels


def test_the_neck_reads_what_a_slim_backbone_gives(slim):
    detector, card, _ = slim
    assert config_of(card)["neck"]["in_channels"] == [4, 8, 16, 32]  # half of 8, 16, 32, 64
    assert [m.shape[1] for m in detector.backbone(torch.zeros(1, 3, 64, 64))] == [4, 8, 16, 32]


def test_settings_reach_the_detector(tiny):
    detector, card = tiny()
    assert card.preprocessing.image_hw == (128, 128)
    assert detector.neck.out_channels == 16
    assert detector.rpn_head.prior_generator.base_anchors[0][1].tolist() == [-8, -8, 8, 8]  # scale 4 at stride 4
    assert detector.rpn_head.test_cfg.max_per_img == 50
    assert detector.roi_head.bbox_head.fc_cls.weight.shape == (7, 32)  # six classes and background
    assert detector.roi_head.train_cfg.sampler.num == 16


@pytest.mark.parametrize("image_size_hw", [(0, 32), (16, 32), (100, 128), (128, 100)])
def test_an_image_size_not_divisible_by_32_is_refused(image_size_hw):
    got = r"\({}, {}\)".format(*image_size_hw)
    with pytest.raises(ValueError, match=rf"image_size_hw: not divisible by 32, got {got}; expected multiples of 32"):
        DetectorSettings(image_size_hw)


def test_the_same_seed_gives_the_same_weights(tiny):
    torch.testing.assert_close(tiny(seed=3)[0].state_dict(), tiny(seed=3)[0].state_dict(), rtol=0, atol=0)


def test_another_seed_gives_other_weights(tiny):
    first, second = (tiny(seed)[0] for seed in (3, 4))
    for part in ("backbone.net.conv1", "neck.fpn_convs.0.conv", "rpn_head.rpn_cls", "roi_head.bbox_head.fc_reg"):
        assert not torch.equal(first.get_submodule(part).weight, second.get_submodule(part).weight)


def test_building_leaves_the_config_as_it_was(tiny):
    config = config_of(tiny()[1])
    before = repr(config)
    build_detector(config, seed=0)
    assert repr(config) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fpn_channels": {"type": "os.system", "command": "true"}}, "settings: .*fpn_channels Input should be"),
        ({"type": "os.system"}, "settings: .*type Unexpected keyword argument"),
    ],
)
def test_a_card_with_code_in_its_settings_is_refused(tiny, tmp_path, settings, message):
    detector, card = tiny()
    save_model(tmp_path / "d.safetensors", detector, replace(card, settings={**card.settings, **settings}))
    with pytest.raises(ValueError, match=message):
        load_detector(tmp_path / "d.safetensors")


def test_a_card_with_a_config_for_a_registry_is_refused(tiny, tmp_path):
    detector, card = tiny()
    save_model(tmp_path / "d.safetensors", detector, card)
    with safe_open(tmp_path / "d.safetensors", "pt") as file:
        fields = json.loads(file.metadata()["espalier"])
    evil = {**fields, "detector": {"type": "os.system", "command": "true"}}
    save_file(detector.state_dict(), tmp_path / "d.safetensors", {"espalier": json.dumps(evil)})
    with pytest.raises(ValueError, match="detector Unexpected keyword argument"):
        load_detector(tmp_path / "d.safetensors")


@pytest.mark.parametrize("kind", ["trained", "slim"])
def test_a_loaded_detector_gives_the_same_output(request, tmp_path, found_by, kind):
    detector, card = request.getfixturevalue(kind)[:2]
    save_detector(tmp_path / "model.safetensors", detector, card)
    loaded, loaded_card = load_detector(tmp_path / "model.safetensors")
    assert not loaded.training
    assert loaded_card.classes == card.classes
    assert loaded_card.backbone.name == "resnet18"
    torch.testing.assert_close(found_by(loaded, loaded_card), found_by(detector, card), rtol=0, atol=0)


def test_mmdet_opens_a_slim_detector_and_predicts_the_same(slim_file, found_by):
    theirs = init_detector(str(slim_file.with_suffix(".py")), str(slim_file), device="cpu")
    ours, card = load_detector(slim_file)
    torch.testing.assert_close(found_by(theirs, card), found_by(ours, card), rtol=0, atol=0)
    assert theirs.dataset_meta["classes"] == card.classes


def test_the_config_alone_is_enough_for_mmdet_in_a_fresh_process(slim_file):
    program = """
import sys
from mmengine.config import Config
config = Config.fromfile(sys.argv[1])
from mmdet.apis import init_detector
print(type(init_detector(config, sys.argv[2], device="cpu").backbone).__name__)
"""
    command = [sys.executable, "-c", program, str(slim_file.with_suffix(".py")), str(slim_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "TrunkBackbone"


def test_a_classifier_given_as_detector_is_refused(tmp_path):
    architecture = Architecture("resnet18", 2, 8)
    card = ModelCard("classifier", architecture, ("a", "b"))
    save_model(tmp_path / "c.safetensors", build_classifier(architecture), card)
    with pytest.raises(ValueError, match=r"c\.safetensors: not a detector, got a classifier"):
        load_detector(tmp_path / "c.safetensors")


def test_a_detector_file_with_other_weights_is_refused(tiny, tmp_path):
    save_detector(tmp_path / "model.safetensors", tiny(fpn_channels=32)[0], tiny()[1])
    with pytest.raises(ValueError, match=r"of another architecture, neck\.fpn_convs\.0\.conv\.bias got \(32,\); expe"):
        load_detector(tmp_path / "model.safetensors")


def test_a_card_of_a_huge_detector_is_refused_without_its_memory(tiny, tmp_path):
    detector, card = tiny()
    huge = {**card.settings, "fpn_channels": 65_536}  # its first convolution would take 144 GiB
    save_model(tmp_path / "model.safetensors", detector, replace(card, settings=huge))
    with pytest.raises(RequestError, match=r"of another architecture, neck\.fpn_convs\.0\.conv\.bias got \(16,\); exp"):
        load_detector(tmp_path / "model.safetensors")


def test_transfer_copies_every_backbone_weight_and_nothing_else(tiny):
    detector, untouched = tiny()[0], tiny()[0]
    weights = classifier().state_dict()
    transfer(detector, weights, "classifier")
    expected = {name: weights[name] for name in detector.backbone.net.state_dict()}
    torch.testing.assert_close(dict(detector.backbone.net.state_dict()), expected, rtol=0, atol=0)
    assert set(weights) - set(expected) == {"fc.weight", "fc.bias"}
    for part in ("neck", "rpn_head", "roi_head"):
        mine, theirs = (model.get_submodule(part).state_dict() for model in (detector, untouched))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (("resnet18", 16), r"bn1\.bias got \(16,\); expected \(8,\)"),
        (("resnet34", 8), r"layer1\.2\.bn1\.bias got \(8,\); expected no such layer, .* \(and \d+ more\)"),
    ],
)
def test_transfer_from_another_architecture_names_the_layer(tiny, source, message):
    with pytest.raises(ValueError, match=rf"a\.pth: of another architecture, {message}"):
        transfer(tiny()[0], classifier(*source).state_dict(), "a.pth")


def test_transfer_with_a_missing_layer_is_refused(tiny):
    weights = classifier().state_dict()
    del weights["layer3.0.conv2.weight"]
    with pytest.raises(ValueError, match=r"layer3\.0\.conv2\.weight got nothing; expected \(32, 32, 3, 3\)"):
        transfer(tiny()[0], weights, "a.pth")


@pytest.mark.parametrize("name", ["{{", "{{{ x }}}", '{{$ZZ:z|\\\'+str(__import__("os").system("touch RAN")),#}}'])
def test_class_names_run_nothing_in_copies_of_the_config(tiny, tmp_path, name):
    _, card = tiny()
    name = name.replace("RAN", str(tmp_path / "ran"))
    text = mmdet_config(replace(card, classes=(name, *card.classes[1:]))).pretty_text
    for _ in range(3):  # as mmengine writes it into work folders and checkpoints, and reads it when a tool resumes
        assert "{{" not in text
        text = Config.fromstring(text, ".py").pretty_text
    assert not (tmp_path / "ran").exists()
