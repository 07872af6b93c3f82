import json
from pathlib import Path

import numpy as np
import pytest
import torch

from classify.backbones import Architecture, build_classifier, build_trunk
from classify.checkpoint import ModelCard, Preprocessing, load_weights, read_card, read_weights, save_model
from classify.cifar import CifarResNet
from classify.data import MEAN, STD
from prune import cost_of

SHARED = Path(__file__).parents[3].parent / "shared/data/cifar_resnet"
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
MODELS = {
    # parameters, billions of MACs: of He et al.'s networks and Liu et al.'s VGG at 10 classes
    "resnet20_cifar": (269_722, 0.0406),
    "resnet56_cifar": (853_018, 0.1255),
    "resnet110_cifar": (1_727_962, 0.2529),
    "vgg16_cifar": (14_987_722, 0.3135),
    "vgg19_cifar": (20_035_018, 0.3981),
    "preresnet110_cifar": (1_146_842, 0.1674),
    "preresnet164_cifar": (1_703_258, 0.2476),
    "densenet40_cifar": (1_059_298, 0.2829),
    "densenet_bc100_cifar": (769_162, 0.2879),
}
IN_TABLE = {
    # of Network Slimming's code: millions of parameters, with one more per channel before each selection
    "vgg19_cifar": (20.04, 0),
    "preresnet164_cifar": (1.71, 16 + 17 * 64 + 64 + 17 * 128 + 128 + 17 * 256 + 256),
    "densenet40_cifar": (1.07, sum(range(24, 456 + 1, 12)) + 168 + 312),
}


@pytest.fixture(scope="module")
def photographs():
    """2000 test images of CIFAR-10, normalised as the shared weights expect, and their labels."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: the shared data folder does not lie beside this checkout")
    data = np.load(SHARED / "cifar10_test_2000.npz")
    images = torch.from_numpy(data["images"]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std, torch.from_numpy(data["labels"])


@pytest.mark.parametrize(("name", "params", "gmacs"), [(name, *figures) for name, figures in MODELS.items()])
def test_networks_have_the_published_cost(name, params, gmacs):
    with torch.device("meta"):
        cost = cost_of(build_classifier(Architecture(name, 10)), (torch.zeros(1, 3, 32, 32),))
    assert cost.params == params
    assert round(cost.macs / 1e9, 4) == gmacs


@pytest.mark.parametrize(("name", "millions", "num_selected"), [(name, *figures) for name, figures in IN_TABLE.items()])
def test_networks_of_network_slimming_have_its_parameters(name, millions, num_selected):
    assert round((MODELS[name][0] + num_selected) / 1e6, 2) == millions


def of_convs(*convs):
    """Return parameters and MACs of convolutions without bias: kernel side, inputs, outputs, side of what they give."""
    params = [kernel**2 * num_in * num_out for kernel, num_in, num_out, _ in convs]
    return sum(params), sum(own * conv[3] ** 2 for own, conv in zip(params, convs, strict=True))


@pytest.mark.parametrize("num_blocks", [12, 18])
def test_preactivation_resnet_has_the_cost_counted_by_hand(num_blocks):
    convs, num_normed, num_in = [(3, 3, 16, 32)], 256, 16
    for width, side, last_side in ((16, 32, 32), (32, 16, 32), (64, 8, 16)):
        convs.append((1, num_in, 4 * width, side))  # the shortcut
        for block in range(num_blocks):
            own_side = last_side if block == 0 else side  # the second convolution has the stride
            convs += [(1, num_in, width, own_side), (3, width, width, side), (1, width, 4 * width, side)]
            num_normed += num_in + 2 * width
            num_in = 4 * width
    params, macs = of_convs(*convs)
    published = MODELS[f"preresnet{9 * num_blocks + 2}_cifar"]
    assert (params + 2 * num_normed + 257 * 10, round((macs + 2560) / 1e9, 4)) == published


def test_densenet_has_the_cost_counted_by_hand():
    convs, num_normed, num_in = [(3, 3, 24, 32)], 456, 24
    for side in (32, 16, 8):
        for _ in range(12):
            convs.append((3, num_in, 12, side))
            num_normed += num_in
            num_in += 12
        if side > 8:
            convs.append((1, num_in, num_in, side))  # before the pool
            num_normed += num_in
    params, macs = of_convs(*convs)
    assert (params + 2 * num_normed + 457 * 10, round((macs + 4560) / 1e9, 4)) == MODELS["densenet40_cifar"]


def test_densenet_with_bottlenecks_has_the_cost_counted_by_hand():
    convs, num_normed, num_in = [(3, 3, 24, 32)], 342, 24
    for side in (32, 16, 8):
        for _ in range(16):
            convs += [(1, num_in, 48, side), (3, 48, 12, side)]
            num_normed += num_in + 48
            num_in += 12
        if side > 8:
            convs.append((1, num_in, num_in // 2, side))
            num_normed += num_in
            num_in //= 2
    params, macs = of_convs(*convs)
    assert (params + 2 * num_normed + 343 * 10, round((macs + 3420) / 1e9, 4)) == MODELS["densenet_bc100_cifar"]


@pytest.mark.parametrize("name", ["preresnet110_cifar", "densenet40_cifar", "densenet_bc100_cifar"])
def test_weights_without_selections_load_into_a_dense_network(name):
    torch.manual_seed(0)
    net, other = (build_classifier(Architecture(name, 10)).eval() for _ in range(2))
    weights = {key: tensor for key, tensor in other.state_dict().items() if not key.endswith("select.index")}
    load_weights(net, weights, "file")
    assert torch.equal(net(IMAGE), other(IMAGE))


def test_a_slim_network_needs_its_selections():
    net = build_classifier(Architecture("densenet40_cifar", 10, widths={"select": (456, 100), "bn": (100, 100)}))
    weights = {key: tensor for key, tensor in net.state_dict().items() if key != "select.index"}
    with pytest.raises(ValueError, match=r"of another architecture, select\.index got nothing"):
        load_weights(net, weights, "file")


@pytest.mark.parametrize(
    ("name", "file", "percent"),
    [("resnet20_cifar", "resnet20-12fca82f.th", 81.35), ("resnet56_cifar", "resnet56-4bfd9763.th", 83.15)],
)
def test_published_weights_load_and_classify_real_photographs(photographs, name, file, percent):
    images, labels = photographs
    net = build_classifier(Architecture(name, 10)).eval()
    load_weights(net, read_weights(SHARED / file), file)
    with torch.inference_mode():
        predicted = torch.cat([net(batch).argmax(1) for batch in images.split(200)])
    correct = (predicted == labels).double().mean().item()
    assert 100 * correct == pytest.approx(percent, abs=0.11)  # two photographs, for other devices' rounding


def test_resnets_have_the_parameter_names_of_the_published_weights():
    names = [name for name, _ in CifarResNet(20, 10).named_parameters()]
    block = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias")
    blocks = [f"layer{stage}.{i}.{name}" for stage in (1, 2, 3) for i in range(3) for name in block]
    assert names == ["conv1.weight", "bn1.weight", "bn1.bias", *blocks, "linear.weight", "linear.bias"]


def test_shortcut_keeps_every_other_position_between_channels_of_zeros():
    block = CifarResNet(20, 10).layer2[0].eval()
    torch.nn.init.zeros_(block.bn2.weight)  # silences the convolutions
    features = torch.rand(1, 16, 4, 6)
    out = block(features)
    assert torch.equal(out[:, 8:24], features[:, :, [0, 2]][..., [0, 2, 4]])
    assert out[:, :8].tolist() == out[:, 24:].tolist() == torch.zeros(1, 8, 2, 3).tolist()


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_learns(name):
    net = build_classifier(Architecture(name, 7)).train()
    out = net(IMAGE)
    out.square().sum().backward()
    assert out.shape == (2, 7)
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_slim_vgg_is_rebuilt_with_a_narrow_hidden_layer():
    widths = {"classifier.0": (512, 100), "classifier.1": (100, 100), "classifier.3": (100, 10)}
    net = build_classifier(Architecture("vgg16_cifar", 10, widths=widths)).eval()
    assert net.classifier[1].running_mean.shape == (100,)
    assert net(IMAGE).shape == (2, 10)


@pytest.mark.parametrize("name", MODELS)
def test_networks_for_cifar_are_refused_as_detector_backbone(name):
    message = f"backbone: has no feature maps of strides 4 to 32, got '{name}'; expected one of "
    with pytest.raises(ValueError, match=message) as error:
        build_trunk(Architecture(name, 7))
    assert "'resnet18'" in str(error.value)
    assert "_cifar'," not in str(error.value).partition("expected")[2]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "percent"),
    [("resnet20_cifar", "resnet20-12fca82f.th", 81.35), ("resnet56_cifar", "resnet56-4bfd9763.th", 83.15)],
)
def test_published_weights_are_evaluated_and_imported(photographs, invoke, name, file, percent, tmp_path):
    test, out = SHARED / "cifar10_test_2000.npz", tmp_path / "net.safetensors"
    figures = json.loads(invoke("classify", "eval", name, test, "--weights", SHARED / file, "--json").stdout)
    assert figures["num_images"] == 2000
    assert figures["top1"] == pytest.approx(percent, abs=0.11)
    invoke("import", name, SHARED / file, "--out", out)
    assert read_card(out).preprocessing.image_hw == (32, 32)
    assert json.loads(invoke("classify", "eval", out, test, "--json").stdout) == figures


def test_a_config_names_the_network_of_weights(invoke, tmp_path):
    torch.manual_seed(0)
    net = build_classifier(Architecture("resnet56_cifar", 10)).eval()
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}}, tmp_path / "w.th"
    )
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(8))
    given = ("--weights", tmp_path / "w.th", "--data", tmp_path / "data.npz", "--json")
    by_config, by_name = (
        json.loads(invoke("classify", "eval", name, *given).stdout) for name in ("cifar_resnet56", "resnet56_cifar")
    )
    assert by_config == by_name
    assert by_config["top1"] in [100 * right / 8 for right in range(9)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("cifar_finetune", "d.npz", "--weights", "w.th"), "cifar_finetune: starts from a model file, got start.type"),
        (("cifar_resnet56", "--weights", "w.th"), "data: not given once, got 0 of them; expected a folder or file, or"),
        (("net.safetensors", "d.npz", "--data", "d.npz"), "data: not given once, got 2 of them; expected a folder or"),
    ],
)
def test_an_evaluation_without_a_network_or_data_is_refused(command, arguments, line):
    code, _, err = command("classify", "eval", *arguments)
    assert (code, line in err) == (2, True), err


def test_a_model_file_that_selects_no_channels_is_refused_in_a_line(command, tmp_path):
    net = build_classifier(Architecture("densenet40_cifar", 2))
    net.select.index[-1] = 456
    card = ModelCard("classifier", Architecture("densenet40_cifar", 2), ("a", "b"), Preprocessing((32, 32)))
    save_model(tmp_path / "net.safetensors", net, card)
    code, _, err = command("prune", "l1_half", tmp_path / "net.safetensors")
    assert code == 2
    assert "select.index: selects no channels, got " in err
    assert "Traceback" not in err
