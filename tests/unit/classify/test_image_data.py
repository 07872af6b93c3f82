"""All kinds of image data train and evaluate through one interface."""

import json
import shutil

import numpy as np
import pytest
import torch
from cifar_archives import write_cifar
from typer.testing import CliRunner

from classify.augmentation import Augmentation
from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, check_classes, load_classifier, read_card, save_model
from classify.class_order import IMAGENET, numbered
from classify.cli import app
from classify.image_data import CifarData, FolderData, NpzData, ShapesData, images_at

NAMES = ("owl", "wren", "jay")
CONFIG = """
start = dict(type="dense", name="resnet20_cifar")
data = {data}
image_size = 32
schedule = dict(epochs=1, batch_size=6, lr=1e-3)
"""


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def write_npz(path, num, seed=0, **names):
    rng = np.random.default_rng(seed)
    np.savez(path, images=rng.integers(0, 256, (num, 32, 32, 3), np.uint8), labels=np.arange(num) % 3, **names)
    return path


@pytest.fixture
def npz(tmp_path):
    """Nine images to train on, with names, and six to validate on."""
    train = write_npz(tmp_path / "train.npz", 9, classes=np.array(NAMES))
    return NpzData(type="npz", train=train, val=write_npz(tmp_path / "val.npz", 6, seed=1))


@pytest.fixture
def cifar(tmp_path):
    """CIFAR-10 with two images in each file."""
    write_cifar(tmp_path / "cifar-10-python.tar.gz", 10, num=2)
    return CifarData(type="cifar", root=tmp_path)


@pytest.fixture
def kinds(npz, cifar, shapes):
    return {"npz": npz, "cifar": cifar, "folder": FolderData(type="folder", root=shapes)}


@pytest.mark.parametrize("kind", ["npz", "cifar", "folder"])
def test_every_kind_gives_labelled_images_of_one_size(kind, kinds, tmp_path):
    data = kinds[kind]
    assert data.placed(tmp_path / "unused", 32) is data
    classes = data.check()
    for split in ("train", "val"):
        pairs = [*data.images(split, 24), *data.images(split, 24, Augmentation())]
        assert {(image.dtype, tuple(image.shape)) for image, _ in pairs} == {(torch.uint8, (3, 24, 24))}
        assert {label for _, label in pairs} <= {*range(len(classes))}
    assert len({*data.fingerprints("train", "val")}) == 2
    assert all(path.exists() for path in data.paths)


def test_validation_images_of_arrays_are_the_pixels_themselves(npz):
    held = npz.arrays("val")
    for (image, label), pixels, own in zip(npz.images("val", 32), held.images, held.labels, strict=True):
        assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1))
        assert label == own


def test_small_training_images_of_arrays_are_padded_cropped_and_flipped(npz):
    whole = torch.nn.functional.pad(npz.images("train", 32)[0][0], (4, 4, 4, 4))
    torch.manual_seed(0)
    found = {tuple(npz.images("train", 32, Augmentation())[0][0].flatten().tolist()) for _ in range(30)}
    crops = (whole[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9))
    allowed = {tuple(image.flatten().tolist()) for crop in crops for image in (crop, crop.flip(2))}
    assert len(found) > 10
    assert found <= allowed


def test_large_training_images_of_arrays_are_scaled_crops(npz):
    torch.manual_seed(0)
    assert (npz.images("train", 72, Augmentation())[0][0] == 0).float().mean() < 0.05  # no black frame


def test_shapes_are_generated_once_and_have_no_fingerprint(tmp_path):
    data = ShapesData(num_train=12, num_val=6)
    first = data.placed(tmp_path, 32)
    assert data.fingerprints("train", "val") == ()
    assert data.placed(tmp_path, 32) == first
    assert len(first.images("train", 32)) == 12


@pytest.mark.parametrize(
    ("name", "kind"), [("val.npz", NpzData), ("cifar-10-python.tar.gz", CifarData), ("", CifarData)]
)
def test_a_path_tells_the_kind(name, kind, kinds, tmp_path):
    assert type(images_at(tmp_path / name)) is kind


def test_other_files_and_labels_that_are_not_needed_are_refused(npz, tmp_path):
    (tmp_path / "labels.txt").write_text("0")
    with pytest.raises(ValueError, match=r"labels\.txt: not images with labels; expected an image folder"):
        images_at(tmp_path / "labels.txt")
    with pytest.raises(ValueError, match=r"--val-labels: not used with .*val\.npz, got .*labels\.txt; expected none"):
        images_at(npz.val, tmp_path / "labels.txt")


@pytest.mark.parametrize("kind", ["npz", "cifar"])
def test_a_training_keeps_the_class_order_and_the_fingerprints(kind, kinds, tmp_path):
    data, out = kinds[kind], tmp_path / "out/net.safetensors"
    described = json.loads(data.model_dump_json())
    (tmp_path / "c.py").write_text(CONFIG.format(data=described))
    trained = json.loads(invoke("train", tmp_path / "c.py", "--out", out, "--json").stdout)
    card = read_card(out)
    assert card.classes == data.check()
    assert card.provenance["data"] == [*data.fingerprints("train", "val")]
    path = data.val if kind == "npz" else data.root
    again = json.loads(invoke("eval", out, path, "--json").stdout)
    assert again["top1"] == pytest.approx(100 * trained["top1"])
    assert again["per_class"].keys() == {*card.classes}


def test_data_is_checked_before_a_training(npz, tmp_path):
    np.savez(npz.val, images=np.zeros((2, 32, 32, 3), np.uint8), labels=np.array([0, 3]))
    (tmp_path / "c.py").write_text(CONFIG.format(data=json.loads(npz.model_dump_json())))
    with pytest.raises(ValueError, match=r"val\.npz: train and val differ in their classes"):
        invoke("train", tmp_path / "c.py", "--out", tmp_path / "out/net.safetensors")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def weights(tmp_path):
    """Weights of a ResNet-20 as the widely used program for CIFAR saves them, and the network."""
    torch.manual_seed(0)
    net = build_classifier(Architecture("resnet20_cifar", 3)).eval()
    named = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": named, "best_prec1": 91.7}, tmp_path / "r.th")
    return tmp_path / "r.th"


def test_weights_are_evaluated_without_being_imported(weights, npz, tmp_path):
    result = invoke("eval", "resnet20_cifar", npz.val, "--weights", weights, "--json", "--out", tmp_path / "out")
    figures = json.loads(result.stdout)
    assert figures["num_images"] == 6
    assert figures["per_class"].keys() == {*numbered(3)}
    assert json.loads((tmp_path / "out/accuracy.json").read_text()) == figures
    assert (tmp_path / "out/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert result.stderr.endswith(f"next: espalier import resnet20_cifar {weights}\n")
    with pytest.raises(ValueError, match=r"accuracy\.json: exists already; give another --out, or --force"):
        invoke("eval", "resnet20_cifar", npz.val, "--weights", weights, "--out", tmp_path / "out")


def test_figures_of_weights_and_of_the_imported_file_are_the_same(weights, npz, tmp_path):
    torch.manual_seed(0)
    net = build_classifier(Architecture("resnet20_cifar", 3)).eval()
    save_model(
        tmp_path / "n.safetensors",
        net,
        ModelCard("classifier", Architecture("resnet20_cifar", 3), NAMES, Preprocessing((32, 32))),
    )
    by_weights = json.loads(invoke("eval", "resnet20_cifar", npz.train, "--weights", weights, "--json").stdout)
    assert json.loads(invoke("eval", tmp_path / "n.safetensors", npz.train, "--json").stdout) == by_weights
    assert by_weights["per_class"].keys() == {*NAMES}  # the data's names, where the weights have none


def test_a_name_alone_and_weights_of_another_network_are_refused(weights, npz):
    with pytest.raises(ValueError, match="resnet20_cifar: a network without weights; give a model file, or"):
        invoke("eval", "resnet20_cifar", npz.val)
    with pytest.raises(ValueError, match=r"r\.th: of another architecture"):
        invoke("eval", "resnet56_cifar", npz.val, "--weights", weights)


def test_weights_for_other_classes_are_refused(weights, cifar, tmp_path):
    with pytest.raises(ValueError, match=r"r\.th: knows other classes than the data has, got 10 .*expected 3"):
        invoke("eval", "resnet20_cifar", tmp_path, "--weights", weights)


SYNSETS = tuple(f"n{i:08}" for i in range(1000))


@pytest.mark.parametrize(
    ("known", "given", "fits"),
    [
        (NAMES, NAMES, True),
        (NAMES, NAMES[::-1], False),
        (numbered(3), NAMES, True),
        (numbered(4), NAMES, False),
        (NAMES, numbered(3), True),
        (NAMES, numbered(2), True),
        (NAMES, numbered(4), False),
        (IMAGENET, SYNSETS, True),
        (IMAGENET, SYNSETS[:999], False),
        (IMAGENET, tuple(map(str, range(1000))), False),
    ],
)
def test_labels_without_names_fit_by_their_order(known, given, fits):
    card = ModelCard("classifier", Architecture("resnet18", len(known)), known)
    if fits:
        check_classes("net", card, given)
    else:
        with pytest.raises(ValueError, match="net: knows other classes than the data has"):
            check_classes("net", card, given)


def test_a_flat_validation_folder_is_evaluated_with_its_labels(shapes, classifier_of_shapes, tmp_path):
    shutil.copytree(shapes, tmp_path / "flat")
    listed = sorted((path.parent.name, path) for path in (tmp_path / "flat/val").glob("*/*.png"))
    for i, (_, path) in enumerate(listed):
        path.rename(tmp_path / f"flat/val/{i:03}.png")
    for name, _ in listed:
        if (tmp_path / "flat/val" / name).is_dir():
            (tmp_path / "flat/val" / name).rmdir()
    (tmp_path / "labels.txt").write_text("\n".join(name for name, _ in listed))
    flat = invoke("eval", classifier_of_shapes, tmp_path / "flat", "--val-labels", tmp_path / "labels.txt", "--json")
    assert json.loads(flat.stdout) == json.loads(invoke("eval", classifier_of_shapes, shapes, "--json").stdout)


@pytest.fixture
def classifier_of_shapes(tmp_path):
    torch.manual_seed(0)
    arch, classes = Architecture("resnet20_cifar", 6), ShapesData().check()
    save_model(
        tmp_path / "s.safetensors",
        build_classifier(arch),
        ModelCard("classifier", arch, classes, Preprocessing((32, 32))),
    )
    return tmp_path / "s.safetensors"


def test_finetuning_gives_a_numbered_model_the_names_of_the_data(npz, tmp_path):
    arch = Architecture("resnet20_cifar", 3)
    save_model(tmp_path / "n.safetensors", build_classifier(arch), ModelCard("classifier", arch, numbered(3)))
    text = CONFIG.format(data=json.loads(npz.model_dump_json()))
    start = f'type="finetune", file="{tmp_path / "n.safetensors"}"'
    (tmp_path / "c.py").write_text(text.replace('type="dense", name="resnet20_cifar"', start))
    invoke("train", tmp_path / "c.py", "--out", tmp_path / "out/net.safetensors")
    assert load_classifier(tmp_path / "out/net.safetensors")[1].classes == NAMES
