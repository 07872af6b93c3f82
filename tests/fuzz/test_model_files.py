"""Reads damaged model files and checkpoints, some of which would run code."""

import io
import json
import pickle
import pickletools
import struct
import tarfile
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, json_bytes, mutated, texts
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
from classify.resume import _read
from classify.schedule import Schedule
from classify.train import train_classifier
from command.files import sha256_of
from detect.detector_file import load_detector
from detect.model import DetectorSettings, load_from_model_file, new_detector, settings_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, as odd tensors are made


class Payload:
    """Leaves a file when it is unpickled without restrictions."""

    def __init__(self, path):
        self.text = f"open({str(path)!r}, 'w').close()"

    def __reduce__(self):
        return exec, (self.text,)


def read_whole_card(path):
    card = read_card(path)
    return card.prune_spec, card.is_slim, settings_of(card)


def read_into_layer(path):
    layer = nn.Linear(2, 3)
    load_weights(layer, read_weights(path), str(path))
    return layer


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("classifier") / "net.safetensors"
    architecture = Architecture(
        "resnet20_cifar", 2, widths={"layer1.0.conv1": (16, 8), "layer1.0.bn1": (8, 8), "layer1.0.conv2": (8, 16)}
    )
    cut = {"kept_out": [*range(8)], "kept_in": None, "num_out": 16, "num_in": 16}
    card = ModelCard(
        "classifier",
        architecture,
        ("a", "b"),
        Preprocessing((32, 32)),
        spec={"version": 1, "layers": {"layer1.0.conv1": cut}},
    )
    save_model(path, build_classifier(architecture), card)
    return path.read_bytes()


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / "net.safetensors"
    settings = DetectorSettings((32, 32), 8, 8, 5, 4, 4)
    save_model(path, *new_detector(Architecture("resnet18", 1, 1), ("a", "b"), settings, 0))
    return path.read_bytes()


def parts_of(data):
    """Return header and weights of a safetensors file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, weights):
    text = header if isinstance(header, bytes) else json_bytes(header)
    return struct.pack("<Q", len(text)) + text + weights


def with_card(data, card):
    header, weights = parts_of(data)
    header["__metadata__"]["espalier"] = json_bytes(card).decode("utf-8", "replace")
    return joined(header, weights)


def card_in(data):
    return json.loads(parts_of(data)[0]["__metadata__"]["espalier"])


READERS = {
    "classifier": [read_whole_card, load_classifier],
    "detector": [read_whole_card, load_detector, load_from_model_file],
}


@pytest.mark.parametrize("kind", READERS)
def test_each_valid_model_file_is_read(kind, request, tmp_path, safely):
    (tmp_path / "net.safetensors").write_bytes(request.getfixturevalue(kind))
    assert all(safely(read, tmp_path / "net.safetensors") for read in READERS[kind])


@pytest.mark.parametrize("kind", READERS)
@given(data=st.data())
def test_model_with_another_card_is_read_or_refused(kind, data, request, tmp_path, safely):
    valid, path = request.getfixturevalue(kind), tmp_path / "net.safetensors"
    path.write_bytes(with_card(valid, data.draw(mutated(card_in(valid)))))
    for read in READERS[kind]:
        safely(read, path)


@given(data=st.data())
def test_model_with_another_header_is_read_or_refused(classifier, data, tmp_path, safely):
    header, weights = parts_of(classifier)
    path = tmp_path / "net.safetensors"
    path.write_bytes(joined(data.draw(mutated(header)), weights))
    for read in (read_whole_card, read_into_layer, load_classifier, load_from_model_file):
        safely(read, path)


@given(data=st.data())
def test_damaged_model_file_is_read_or_refused(classifier, data, tmp_path, safely):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data.draw(damaged(classifier)))
    for read in (read_whole_card, read_into_layer, load_classifier, load_from_model_file):
        safely(read, path)


TENSORS = {
    "plain": lambda: torch.ones(3, 2),
    "bias": lambda: torch.ones(3),
    "scalar": lambda: torch.tensor(1.0),
    "empty": lambda: torch.empty(0, 2),
    "sparse": lambda: torch.ones(3, 2).to_sparse(),
    "csr": lambda: torch.ones(3, 2).to_sparse_csr(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3, 2), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(3, 2, device="meta"),
    "complex": lambda: torch.ones(3, 2, dtype=torch.complex64),
    "integer": lambda: torch.ones(3, 2, dtype=torch.int64),
    "boolean": lambda: torch.ones(3, 2, dtype=torch.bool),
    "float8": lambda: torch.ones(3, 2).to(torch.float8_e4m3fn),
    "nan": lambda: torch.full((3, 2), torch.nan),
    "view": lambda: torch.ones(9, 9).T[2:5, 1:3],
    "parameter": lambda: nn.Parameter(torch.ones(3, 2)),
    "large": lambda: torch.ones(1).expand(2**20, 2**20),
}
tensors = st.sampled_from(list(TENSORS)).map(lambda name: TENSORS[name]())
names = st.sampled_from(["weight", "bias", "module.weight", "state_dict", "module."])
keys = names | texts | st.sampled_from([1, (1, 2), None, 2.5, b"a"])
values = st.recursive(
    tensors | st.sampled_from([None, 1, "a", (), [1]]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=4,
)
states = st.dictionaries(names, tensors, min_size=1, max_size=3) | st.dictionaries(keys, values, max_size=3) | values


def zipped(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def legacy(state):
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def in_tar(**contents):
    """Return a file of the kind that PyTorch wrote first."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


WEIGHTS = {"state_dict": {"weight": torch.ones(3, 2), "bias": torch.ones(3)}}
FILES = {
    "zip": zipped(WEIGHTS),
    "legacy": legacy(WEIGHTS),
    "pickle": pickle.dumps({"weight": [1, 2]}),
    "tar": in_tar(
        sys_info=pickle.dumps({}), storages=pickle.dumps(0), tensors=pickle.dumps(0), pickle=pickle.dumps({})
    ),
}


@pytest.mark.parametrize("write", [zipped, legacy])
@given(state=states)
def test_odd_weights_are_read_or_refused(write, state, tmp_path, safely):
    (tmp_path / "net.pth").write_bytes(write(state))
    safely(read_into_layer, tmp_path / "net.pth")


def with_pickle(data, change):
    """Return a file of torch whose pickles are changed."""
    if not data.startswith(b"PK"):
        return change(data)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(file, "w") as made:
        for name in source.namelist():
            content = source.read(name)
            made.writestr(name, change(content) if name.endswith(".pkl") else content)
    return file.getvalue()


def opcodes(content):
    """Return the instructions of the first pickle in a file, and what follows it."""
    places = [place for _, _, place in pickletools.genops(content)]
    return [content[a:b] for a, b in zip(places, [*places[1:], places[-1] + 1], strict=True)], content[places[-1] + 1 :]


@st.composite
def changed_pickle(draw, content, spare):
    """Return a pickle some of whose instructions are replaced by those of other pickles, doubled or left out."""
    steps, rest = opcodes(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(steps)))
        size = draw(st.integers(0, 3))
        steps[place : place + size] = draw(st.lists(st.sampled_from([*steps, *spare]), max_size=3))
    return b"".join(steps) + rest


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@given(data=st.data())
def test_changed_pickle_is_read_or_refused_and_runs_nothing(kind, data, ran, tmp_path, safely):
    steps = [step for protocol in (0, 2, 4) for step in opcodes(pickle.dumps(Payload(ran), protocol))[0]]
    whole = b"".join(opcodes(pickle.dumps(Payload(ran), 2))[0][1:-1])
    content = with_pickle(FILES[kind], lambda old: data.draw(changed_pickle(old, [*steps, whole])))
    (tmp_path / "net.pth").write_bytes(content)
    safely(read_into_layer, tmp_path / "net.pth")


@pytest.mark.parametrize("kind", FILES)
@given(data=st.data())
def test_damaged_torch_file_is_read_or_refused(kind, data, tmp_path, safely):
    (tmp_path / "net.pth").write_bytes(data.draw(damaged(FILES[kind])))
    safely(read_into_layer, tmp_path / "net.pth")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """Return the folder of a training, its checkpoint, and a function that resumes it."""
    folder = tmp_path_factory.mktemp("training")
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)

    def train():
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
        train_classifier(net, [(images[0], 0), (images[1], 1)], Schedule(1, 2, 0.1), folder, 0)

    train()
    checkpoint = torch.load(folder / "epoch_1.pth", weights_only=True)
    return folder / "epoch_1.pth", checkpoint, train


def sealed(path):
    """Write the hash of a checkpoint, as one could who can write into the folder."""
    path.with_name(f"{path.name}.sha256").write_text(sha256_of(path))


@given(data=st.data())
def test_changed_checkpoint_is_resumed_or_refused(training, data, safely):
    path, checkpoint, train = training
    changed = data.draw(mutated(checkpoint))
    torch.save(changed, path)
    safely(_read, path, "cpu")
    if isinstance(changed, dict):  # with the epoch as it was nothing is left to do but loading
        torch.save({**changed, "meta": checkpoint["meta"]}, path)
        sealed(path)
        safely(train)


@given(data=st.data())
def test_damaged_checkpoint_is_resumed_or_refused(training, data, ran, safely):
    path, checkpoint, train = training
    evil = [step for protocol in (0, 2) for step in opcodes(pickle.dumps(Payload(ran), protocol))[0]]
    path.write_bytes(with_pickle(zipped(checkpoint), lambda old: data.draw(changed_pickle(old, evil))))
    sealed(path)
    safely(train)
