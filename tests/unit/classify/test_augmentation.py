"""What training and validation images are cut to."""

import io
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from typer.testing import CliRunner

from classify.augmentation import Augmentation, _random_part, centre_crops
from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, read_card, save_model
from classify.cli import app
from classify.config import ClassifierTraining
from classify.export import export_classifier
from classify.importing import import_classifier
from classify.provenance import origin
from command.config import config_file, read_config
from deploy.images import image_from_bytes, image_from_file, jpeg_hw

SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), (640, 480))
"""480 x 640 pixels without fine detail, so that scaling in another way hardly changes them."""


@pytest.fixture
def saved(tmp_path):
    """Save pixels as a JPEG, or as the kind that the ending says."""

    def save(pixels=SMOOTH, name="x.jpg", orientation=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / name, quality=95, exif=exif)
        return tmp_path / name

    return save


def drawn(crops, path, seed):
    torch.manual_seed(seed)
    return crops.of_file(path)


@pytest.mark.parametrize("crop_share", [1.0, 0.875, 0.5])
def test_the_middle_is_what_torchvision_cuts(saved, crop_share):
    path = saved()
    expected = v2.Compose([v2.PILToTensor(), v2.Resize(round(56 / crop_share)), v2.CenterCrop(56)])
    found = centre_crops(56, crop_share).of_file(path)
    assert torch.equal(found, expected(Image.fromarray(image_from_file(path))))


def test_the_paper_scales_to_256_and_cuts_224():
    seen = torch.arange(256, dtype=torch.uint8).repeat(3, 256, 1)
    assert torch.equal(centre_crops(224, 0.875).of_image(seen), seen[:, 16:240, 16:240])


@pytest.mark.parametrize("seed", range(8))
def test_a_small_photograph_is_cut_as_torchvision_does(saved, seed):
    path = saved()
    crops = Augmentation(crop_scale=(0.08, 1.0)).crops(250)  # nothing to gain from fewer pixels
    expected = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(250, (0.08, 1.0)), v2.RandomHorizontalFlip()])
    found = drawn(crops, path, seed)
    torch.manual_seed(seed)
    assert torch.equal(found, expected(Image.fromarray(image_from_file(path))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_photograph_has_the_same_part_with_fewer_pixels_decoded(saved, orientation, monkeypatch):
    monkeypatch.setattr("classify.augmentation._LARGE", 0)
    path, crops = saved(orientation=orientation), Augmentation(crop_scale=(0.3, 1.0)).crops(48)
    expected = v2.Compose([v2.PILToTensor(), v2.RandomResizedCrop(48, (0.3, 1.0)), v2.RandomHorizontalFlip()])
    for seed in range(5):
        found = drawn(crops, path, seed)
        torch.manual_seed(seed)
        whole = expected(Image.fromarray(image_from_file(path)))
        assert (found.float() - whole.float()).abs().mean() < 6  # of 255; another part differs by 30 and more


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_a_header_tells_the_size_that_is_decoded(saved, reduction):
    data = saved(SMOOTH[:101, :203], orientation=1).read_bytes()
    height, width = jpeg_hw(data)
    found = image_from_bytes(data, "x", reduction)
    assert found.shape == (-(-height // reduction), -(-width // reduction), 3)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_photograph_is_decoded_whole(saved, orientation):
    # the rest of a side that is no multiple of the reduction would be on another side after the turn
    assert jpeg_hw(saved(SMOOTH[:101, :203], orientation=orientation).read_bytes()) is None


def test_a_part_never_reaches_beyond_the_reduced_image(saved, monkeypatch):
    monkeypatch.setattr("classify.augmentation._LARGE", 0)
    path, box = saved(SMOOTH[:173, :278]), {"top": 47, "left": 33, "height": 107, "width": 140}
    crop = v2.RandomResizedCrop(26)
    monkeypatch.setattr(crop, "make_params", lambda _: {**box, "top": 66.6})  # rounded up at both ends
    places = []
    monkeypatch.setattr("classify.augmentation.resized_crop", lambda image, *place: places.append((image, place)))
    _random_part(path, crop)
    ((image, (top, left, height, width, _)),) = places
    assert image.shape == (3, 44, 70)
    assert (top + height, left + width) <= (44, 70)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", b"text"])
def test_what_is_no_jpeg_has_no_size(data):
    png = io.BytesIO()
    Image.new("RGB", (3, 2)).save(png, "PNG")
    assert jpeg_hw(data) is jpeg_hw(png.getvalue()) is None


def test_cifar_is_cut_from_forty_pixels(saved):
    path = saved(SMOOTH[:32, :32] // 2 + 100, "x.png")
    whole = torch.nn.functional.pad(torch.from_numpy(image_from_file(path)).permute(2, 0, 1), (4, 4, 4, 4))
    parts = [whole[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    allowed = {tuple(one.flatten().tolist()) for part in parts for one in (part, part.flip(2))}
    crops = Augmentation(padding=4).crops(32)
    found = {tuple(drawn(crops, path, seed).flatten().tolist()) for seed in range(30)}
    assert len(found) > 10
    assert found <= allowed


@pytest.mark.parametrize("policy", ["trivial_augment", "rand_augment"])
def test_a_policy_follows_the_seed(saved, policy):
    path, crops = saved(), Augmentation(policy=policy).crops(32)
    found = [drawn(crops, path, seed) for seed in range(10)]
    assert all(torch.equal(one, drawn(crops, path, seed)) for seed, one in enumerate(found))
    plain = [drawn(Augmentation().crops(32), path, seed) for seed in range(10)]
    assert not all(map(torch.equal, found, plain))


def test_erased_parts_are_the_mean(saved):
    path = saved(np.zeros((64, 64, 3), np.uint8))
    found = drawn(Augmentation(erasing=1.0).crops(32), path, 0)
    assert found.flatten(1).amax(1).tolist() == [124, 116, 104]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("augmentation.crop_scale=(1.0,0.5)", "augmentation.crop_scale: not two ascending shares, got "),
        ("augmentation.crop_scale=(0.0,0.5)", "augmentation.crop_scale: not two ascending shares, got "),
        ("augmentation.padding=4", r"augmentation.padding: not used with crop_scale, got 4; expected one of the two"),
        ("augmentation.policy=nice", "augmentation.policy: .*got 'nice'"),
        ("augmentation.erasing=2", "augmentation.erasing: .*got 2"),
        ("augmentation.crop_size=2", "unknown key augmentation.crop_size; nearest valid ones: crop_scale"),
        ("crop_share=0", "crop_share: .*got 0"),
        ("crop_share=1.1", "crop_share: .*got 1.1"),
        ("data.damaged=ignore", "data.damaged: .*got 'ignore'"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(setting, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_config(config_file("imagenet_dense"), [setting], ClassifierTraining)
    assert "\n" not in str(caught.value)


def test_a_training_depends_on_its_augmentation():
    def made_from(*overrides):
        return json.dumps(origin(read_config(config_file("resnet18_shapes"), overrides, ClassifierTraining), None))

    settings = ("augmentation.erasing=0.1", "augmentation.policy=rand_augment", "crop_share=0.875")
    assert len({made_from(), *(made_from(setting) for setting in settings)}) == 4


@pytest.mark.parametrize(("name", "crop_share"), [("resnet18", 0.875), ("resnet20_cifar", 1.0)])
def test_published_networks_see_what_they_were_measured_on(name, crop_share):
    assert import_classifier(name, None)[1].preprocessing.crop_share == crop_share


@pytest.fixture
def edges_matter(tmp_path):
    """An image folder of two classes with equal middles and other edges, and a model that sees 16 of 32 pixels."""
    for split in ("train", "val"):
        for label, edge in enumerate((0, 255)):
            picture = np.full((64, 64, 3), edge, np.uint8)
            picture[8:56, 8:56] = 100
            (tmp_path / f"data/{split}/{label}").mkdir(parents=True)
            Image.fromarray(picture).save(tmp_path / f"data/{split}/{label}/x.png")
    torch.manual_seed(0)
    arch = Architecture("resnet20_cifar", 2)
    card = ModelCard("classifier", arch, ("0", "1"), Preprocessing((32, 32), crop_share=0.5))
    save_model(tmp_path / "net.safetensors", build_classifier(arch), card)
    return tmp_path / "data", tmp_path / "net.safetensors"


def test_an_evaluation_sees_the_share_in_the_model_file_or_another(edges_matter):
    data, model = edges_matter

    def confidences(*options):
        result = CliRunner().invoke(app, ["eval", str(model), str(data), "--json", *options], catch_exceptions=False)
        return [one["confidence"] for one in json.loads(result.stdout)["bins"] if one["num"]]

    assert len({*confidences()}) == 1
    assert confidences() == confidences("--crop-share", "0.5") != confidences("--crop-share", "1")


def test_a_training_keeps_its_share_in_the_model_file(edges_matter, tmp_path):
    data, _ = edges_matter
    text = (
        f'start = dict(type="dense", name="resnet20_cifar")\ndata = dict(type="folder", root="{data}")\n'
        "image_size = 32\ncrop_share = 0.5\nschedule = dict(epochs=1, batch_size=2, lr=1e-3)\n"
    )
    (tmp_path / "c.py").write_text(text)
    out = tmp_path / "out/net.safetensors"
    CliRunner().invoke(app, ["train", str(tmp_path / "c.py"), "--out", str(out)], catch_exceptions=False)
    assert read_card(out).preprocessing.crop_share == 0.5
    description = export_description(out, tmp_path / "deployed")
    assert "the shorter side scaled to 64 pixels" in description["preprocessing"]
    assert "the shorter side scaled to 64 pixels" in description["meaning"]["image"]


def export_description(model, folder):
    export_classifier(model, folder, batch=1, precision="fp32", image="uint8", config={})
    return json.loads((folder / "deploy.json").read_text())
