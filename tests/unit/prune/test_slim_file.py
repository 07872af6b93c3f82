import json
import os

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
    text = PruneSpec({"stem": LayerCut((7,), None, 8, 3)}).to_json().replace("[7]", "[]")
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"espalier.PruneSpec": text})
    with pytest.raises(ValueError, match="PruneSpec: stem keeps"):
        load_slim(tmp_path / "x.safetensors", Tied)


class Holding(Tied):
    """A network with one more tensor, or other state."""

    def __init__(self, tensor=None, state=None):
        super().__init__()
        self.state = state
        if tensor is not None:
            self.register_buffer("held", tensor)

    def get_extra_state(self):
        return self.state


class Views(Tied):
    """A network whose buffers have no memory of their own."""

    def __init__(self):
        super().__init__()
        both = torch.randn(12)
        self.register_buffer("part", torch.ones(16)[:8])
        self.register_buffer("repeated", torch.ones(1).expand(8))
        self.register_buffer("left", both[:8])
        self.register_buffer("right", both[4:])
        self.register_buffer("turned", torch.randn(3, 2).T)
        self.register_buffer("all", both.view(3, 4))
        self.register_buffer("conjugate", torch.randn(3, dtype=torch.complex64).conj())
        self.register_buffer("empty", torch.zeros(0))
        self.same = self.stem.weight


def test_tensors_that_share_memory_come_back_each_with_its_own(tmp_path, images):
    pruned = prune_model(Views(), (images,), 0.5)
    save_slim(tmp_path / "slim.safetensors", pruned.model, pruned.spec)
    with safetensors.safe_open(tmp_path / "slim.safetensors", "pt") as file:
        names = {*file.keys()}
    assert pruned.model.state_dict().keys() - names == {"stem.weight", "two.weight"}  # of `same`, and of `one`
    loaded, _ = load_slim(tmp_path / "slim.safetensors", Views)
    assert loaded.same is loaded.stem.weight
    expected = pruned.model.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.eye(8).to_sparse(), "torch.sparse_coo, torch.float32"),
        (torch.zeros(8, dtype=torch.complex128), "torch.strided, torch.complex128"),
        (torch.zeros(8, device="meta"), "a meta tensor"),
    ],
)
def test_a_tensor_that_no_file_holds_is_refused_by_name(tmp_path, tensor, got):
    with pytest.raises(
        ValueError, match=f"^held: cannot be in a safetensors file, got {got}; expected a dense tensor$"
    ):
        save_slim(tmp_path / "new/slim.safetensors", Holding(tensor), PruneSpec({}))
    assert list(tmp_path.iterdir()) == []


def test_state_that_is_no_tensor_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"^_extra_state: cannot be in a safetensors file, got dict; expected"):
        save_slim(tmp_path / "slim.safetensors", Holding(state={"a": 1}), PruneSpec({}))


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (Tied(), None, "^spec: of the wrong kind, got NoneType; expected a PruneSpec$"),
        (None, PruneSpec({}), "^model: of the wrong kind, got NoneType; expected a Module$"),
    ],
)
def test_what_is_no_model_or_no_spec_is_not_saved(tmp_path, model, spec, message):
    with pytest.raises(ValueError, match=message):
        save_slim(tmp_path / "slim.safetensors", model, spec)


@pytest.mark.parametrize("path", [None, 5, b"x", "a\0b", "\ud800", "n" * 300, "n" * 250])
def test_what_is_no_path_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: save_slim(path, Tied(), PruneSpec({})), lambda: load_slim(path, Tied)):
        with pytest.raises(ValueError, match=r"^[ -~]{,400}; expected [ -~]{,60}$"):
            call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/proc/new.safetensors", "/proc/new/slim.safetensors"])
def test_a_place_that_takes_no_file_is_told_in_one_line(path):
    with pytest.raises(RuntimeError, match=f"^{path}: cannot be written, .*; free some space"):
        save_slim(path, Tied(), PruneSpec({}))


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/null"):
        with pytest.raises(ValueError, match=f"^{path}: not a regular file; expected a file that save_slim wrote$"):
            load_slim(path, Tied)


def fails():
    raise KeyError("no such network")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fails, "^make_dense: fails, 'no such network'; expected a function that makes the dense model$"),
        (Tied(), "^make_dense: fails, .*; expected a function"),
        (lambda: None, "^make_dense: makes no module, got NoneType; expected the dense model$"),
        (lambda: Tied().to("meta"), r"slim\.safetensors: .* is a meta tensor there"),
        (Views, r"slim\.safetensors: of another architecture than make_dense makes, the file lacks part"),
    ],
)
def test_a_function_that_does_not_make_the_model_is_told(tmp_path, make, message):
    save_slim(tmp_path / "slim.safetensors", Tied(), PruneSpec({}))
    with pytest.raises(ValueError, match=message):
        load_slim(tmp_path / "slim.safetensors", make)


def test_tensors_that_only_the_dense_model_shares_are_refused(tmp_path):
    apart = Tied()
    apart.two.weight = nn.Parameter(apart.one.weight + 1)
    save_slim(tmp_path / "slim.safetensors", apart, PruneSpec({}))
    with pytest.raises(ValueError, match=r"two\.weight has numbers of its own, where make_dense shares one\.weight"):
        load_slim(tmp_path / "slim.safetensors", Tied)


class Guarded(Tied):
    @property
    def secret(self):
        raise KeyError("was read")


@pytest.mark.parametrize("name", ["secret", "secret.weight", "secret.0", "stem.forward", "sizes." + "9" * 5000])
def test_names_in_a_file_run_no_code_of_the_model(tmp_path, name):
    text = PruneSpec({name: LayerCut((0,), None, 8, 3)}).to_json()
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"espalier.PruneSpec": text})
    with pytest.raises(ValueError, match=r"^\S.{,350}: the spec is for another model; Guarded has no such layer$"):
        load_slim(tmp_path / "x.safetensors", Guarded)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "\u202e", "n" * 100_000])
@pytest.mark.parametrize("cut", [{"num_out": 1}, {"kept_out": [5], "num_out": 1}, {"kept": 1}])
def test_names_in_a_file_are_shown_in_one_short_line(tmp_path, name, cut):
    text = json.dumps({"version": 1, "layers": {name: cut}})
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"espalier.PruneSpec": text})
    with pytest.raises(ValueError, match=r"^[ -~]{,500}$"):
        load_slim(tmp_path / "x.safetensors", Tied)


class Scaled(nn.Module):
    """A scale per channel and place, outside the layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 1)
        self.scale = nn.Parameter(torch.rand(8, 16) + 1)

    def forward(self, x):
        return self.b(self.a(x) * self.scale)


def test_a_scale_cut_to_one_channel_is_saved_and_loaded(tmp_path):
    x = torch.randn(2, 3, 16)
    first = prune_model(Scaled(), (x,), 0.5)
    second = prune_model(first.model, (x,), 0.7)
    assert second.model.scale.shape == (1, 16)
    third = prune_model(second.model, (x,), 0.7)
    joined = third.spec.after(second.spec).after(first.spec)
    save_slim(tmp_path / "slim.safetensors", third.model, joined)
    loaded, _ = load_slim(tmp_path / "slim.safetensors", Scaled)
    torch.testing.assert_close(loaded(x), third.model.eval()(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="scale: the spec is for another model, got 8 channels; expected 1"):
        save_slim(tmp_path / "slim.safetensors", Scaled(), PruneSpec({"scale": joined.layers["scale"]}))
