import json

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import nn

from prune import LayerCut, PruneSpec, load_slim, prune_model, save_slim


class Tied(nn.Module):
    """A network of its own kind: two layers share a weight, one has a buffer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.one, self.two = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(self.two(self.one(x)))


@pytest.fixture
def images():
    return torch.randn(2, 3, 8, 8)


def test_a_network_of_any_kind_comes_back_slim_from_its_file(tmp_path, images):
    torch.manual_seed(0)
    dense = Tied()
    dense.norm.running_mean.normal_()
    first = prune_model(dense, (images,), 0.25)
    second = prune_model(first.model, (images,), 0.5)
    save_slim(tmp_path / "new/slim.safetensors", second.model, second.spec.after(first.spec))
    loaded, spec = load_slim(tmp_path / "new/slim.safetensors", Tied)
    assert spec == second.spec.after(first.spec)
    assert loaded.stem.out_channels == 3  # a quarter of 8 goes, then half of 6
    assert loaded.two.weight is loaded.one.weight
    torch.testing.assert_close(loaded(images), second.model.eval()(images), rtol=0, atol=0)
    loaded.train()(images).sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()


def test_a_timm_network_is_pruned_saved_loaded_and_trained(tmp_path, images):
    timm = pytest.importorskip("timm")

    def make():
        return timm.create_model("mobilenetv3_small_050", num_classes=3)

    images = torch.randn(2, 3, 64, 64)
    pruned = prune_model(make(), (images,), 0.5)
    save_slim(tmp_path / "slim.safetensors", pruned.model, pruned.spec)
    loaded, _ = load_slim(tmp_path / "slim.safetensors", make)
    torch.testing.assert_close(loaded(images), pruned.model.eval()(images), rtol=0, atol=0)
    before = loaded.classifier.weight.clone()
    loaded.train()(images).square().sum().backward()
    torch.optim.SGD(loaded.parameters(), lr=0.1).step()
    assert not torch.equal(loaded.classifier.weight, before)


def test_the_file_holds_tensors_and_json_alone(tmp_path, images):
    pruned = prune_model(Tied(), (images,), 0.5)
    save_slim(tmp_path / "slim.safetensors", pruned.model, pruned.spec)
    with safetensors.safe_open(tmp_path / "slim.safetensors", "pt") as file:
        assert json.loads(file.metadata()["espalier.PruneSpec"])["layers"]["stem"]["num_out"] == 8


def test_a_spec_of_another_model_is_not_saved(tmp_path, images):
    pruned = prune_model(Tied(), (images,), 0.5)
    with pytest.raises(ValueError, match=r"stem: the spec is for another model, got 8 channels; expected 4"):
        save_slim(tmp_path / "slim.safetensors", Tied(), pruned.spec)
    assert list(tmp_path.iterdir()) == []


class Wider(Tied):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(8, 9, 1)


class Deeper(Tied):
    def __init__(self):
        super().__init__()
        self.more = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Wider, "head: the spec is for another model"),
        (Deeper, r"slim\.safetensors: of another architecture than make_dense makes, .*more.weight"),
        (
            lambda: Tied().double(),
            r"slim\.safetensors: .* has another type than in make_dense, got torch.float32; expected",
        ),
        (lambda: nn.Linear(2, 2), "stem: the spec is for another model; Linear has no such layer"),
    ],
)
def test_another_architecture_is_refused(tmp_path, images, make, message):
    pruned = prune_model(Tied(), (images,), 0.5)
    save_slim(tmp_path / "slim.safetensors", pruned.model, pruned.spec)
    with pytest.raises(ValueError, match=message):
        load_slim(tmp_path / "slim.safetensors", make)


@pytest.mark.parametrize(
    "content",
    [b"", b"no file", {}, {"espalier.PruneSpec": "{"}, {"espalier.PruneSpec": "[]"}, {"espalier": "{}"}],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else save_file({"a": torch.zeros(1)}, path, content)
    with pytest.raises(ValueError, match=r"not a slim model's file|PruneSpec: not a spec"):
        load_slim(path, Tied)


def test_a_layer_that_was_cut_to_nothing_is_refused(tmp_path):
    text = PruneSpec({"stem": LayerCut((), None, 8, 3)}).to_json()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"espalier.PruneSpec": text})
    with pytest.raises(ValueError, match="PruneSpec: stem keeps"):
        load_slim(tmp_path / "x.safetensors", Tied)
