"""Payloads in every text of every kind of file, read by every command: nothing runs, nothing is fetched."""

import itertools
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import onnx
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, save_model
from classify.synthetic import SHAPES, write_shapes
from detect import DetectorSettings, new_detector, save_detector
from detect.export import export_file
from detect.export_config import ExportConfig
from detect.synthetic import write_scenes
from prune import prune_model

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:9/evil.pth"
OURS = ("git", "gcc")
"""Programs that the command and mmengine's log ask for their versions."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A valid file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    arch = Architecture("resnet18", len(SHAPES), 8)
    settings = DetectorSettings((64, 64), fpn_channels=16, head_channels=32, num_proposals=20, roi_samples=16)
    save_detector(folder / "detector.safetensors", *new_detector(arch, SHAPES, settings, seed=0))
    card = ModelCard("classifier", arch, SHAPES, Preprocessing((32, 32)), provenance={"config": {"start": "x"}})
    save_model(folder / "classifier.safetensors", build_classifier(arch), card)
    export_file(folder / "detector.safetensors", ExportConfig(), folder / "deployed")
    write_scenes(folder / "scenes", 2, (64, 64), seed=0)
    write_shapes(folder / "shapes", 12, 6, 32, seed=0)
    return folder


class Alarm:
    """Notes every program that starts and every connection, from an audit hook, which cannot be evaded in Python."""

    def __init__(self):
        self.is_on, self.heard = False, []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.is_on and event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect"):
            words = " ".join(map(str, arguments[1])) if event == "subprocess.Popen" else str(arguments)
            if words.removeprefix("/bin/sh -c ").split()[0] not in OURS:
                self.heard.append((event, words))


ALARM = Alarm()


def test_the_alarm_hears_what_it_should():
    ALARM.is_on, ALARM.heard = True, []
    os.system("true")
    ALARM.is_on = False
    assert [event for event, _ in ALARM.heard] == ["os.system"]


@pytest.fixture
def harmless(command, tmp_path, monkeypatch):
    """Run a command in a folder of its own; check that it runs nothing, fetches nothing, and ends in one line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))

    def run(*arguments):
        ALARM.is_on, ALARM.heard = True, []
        code, _, err = command(*arguments)
        ALARM.is_on = False
        assert ALARM.heard == []
        assert not list(tmp_path.rglob("ran"))
        assert code in (0, 1, 2), err
        assert "Traceback" not in err
        assert code == 0 or err.splitlines()[-1].startswith("espalier: ")
        return code

    return run


def payloads(folder):
    """What would run, be fetched or be read if it came to a registry, an import, a shell, a template or a loader."""
    touch = f"touch {folder / 'ran'}"
    evil = folder / "evil.pth"
    evil.write_bytes(b"cos\nsystem\n(S'" + touch.encode() + b"'\ntR.")
    return [
        {"type": "os.system", "command": touch},
        {"type": "Pretrained", "checkpoint": ADDRESS},
        {"type": "Pretrained", "checkpoint": str(evil)},
        f"__import__('os').system('{touch}')",
        f"'+__import__('os').system('{touch}')+'",
        f"$({touch})`{touch}`",
        f"!!python/object/apply:os.system ['{touch}']",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "os.system",
        ADDRESS,
        str(evil),
    ]


def places(value, place=()):
    """Yield the place of every value inside a JSON value."""
    yield place
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*place, key))


def planted(value, place, payload):
    """Return a copy with a payload at a place, which may be a new key of an object."""
    if not place:
        return payload
    copied = value.copy()
    copied[place[0]] = planted(value[place[0]], place[1:], payload) if place[1:] else payload
    return copied


def changes(value, folder):
    """Yield lists of payloads with their places, none inside another: a value, a new key, a key's name."""
    texts, found = payloads(folder), [*places(value)]
    objects = [place for place in found if isinstance(_at(value, place), dict)]
    keys = ("type", "init_cfg", "_base_", "_scope_", "detector", "custom_imports", "pretrained")
    for several in (
        [(place, texts[i % len(texts)]) for i, place in enumerate(found) if place],
        [(place, texts[(i + 3) % len(texts)]) for i, place in enumerate(found) if place],
        [((key,), texts[i % 3]) for i, key in enumerate(keys)],
        [((*place, texts[4]), [8, 8]) for place in objects],
        [((*place, "init_cfg"), texts[1]) for place in objects],
    ):
        by_depth = sorted(several, key=lambda change: len(change[0]))
        yield from (list(group) for _, group in itertools.groupby(by_depth, lambda change: len(change[0])))


def variants(value, folder):
    """Yield copies of a JSON value with one payload each."""
    return (planted(value, *change) for change in itertools.chain(*changes(value, folder)))


def _at(value, place):
    for key in place:
        value = value[key]
    return value


def with_card(source, target, card):
    """Write a model file with another card."""
    save_file(load_file(source), target, {"espalier": json.dumps(card)})


def card_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["espalier"])


@pytest.fixture
def each(harmless, tmp_path):
    """Run every command on every payload in a value: alone if it is refused, else with others that are read too."""

    def run(value, write, commands):
        codes = {words: set() for words in commands}

        def halved(batch, words):
            content = value
            for change in batch:
                content = planted(content, *change)
            write(content)
            code = harmless(*words)
            codes[words].add(code)
            middle = len(batch) // 2
            return [batch] if code == 0 or not middle else halved(batch[:middle], words) + halved(batch[middle:], words)

        batches = list(changes(value, tmp_path))
        for words in commands:
            batches = [part for batch in batches for part in halved(batch, words)]
        assert all(found >= {0, 2} for found in codes.values()), codes

    return run


BOTH = [
    ("prune", "show", "x.safetensors"),
    ("prune", "l1_half", "x.safetensors", "--out", "slim.safetensors", "--force"),
    ("deploy", "export", "x.safetensors", "--out", "deployed", "--force"),
]


@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_a_card_runs_nothing(files, each, tmp_path, kind):
    source, coco = files / f"{kind}.safetensors", (files / "scenes/instances.json", files / "scenes/images")
    commands = {
        "detector": [
            ("detect", "eval", "x.safetensors", *coco),
            ("detect", "predict", "x.safetensors", coco[1] / "00000.png", "--out", "seen", "--force"),
            ("deploy", "bench", "x.safetensors", "--rounds", "1", "--warmup", "0", "--out", "record.json", "--force"),
        ],
        "classifier": [("classify", "eval", "x.safetensors", files / "shapes")],
    }[kind]
    each(card_of(source), lambda card: with_card(source, tmp_path / "x.safetensors", card), [*BOTH, *commands])


def test_a_deployed_folder_runs_nothing(files, each, tmp_path):
    coco = (files / "scenes/instances.json", files / "scenes/images")
    commands = [
        ("deploy", "eval", "d", *coco),
        ("detect", "predict", "d", coco[1] / "00000.png", "--out", "seen", "--force"),
        ("deploy", "package", "d", "--out", "repository", "--force"),
    ]
    shutil.copytree(files / "deployed", tmp_path / "d")
    description = tmp_path / "d/deploy.json"
    each(json.loads(description.read_text()), lambda content: description.write_text(json.dumps(content)), commands)


def test_annotations_run_nothing(files, each, tmp_path):
    coco = json.loads((files / "scenes/instances.json").read_text())
    content = {**coco, "annotations": coco["annotations"][:1]}
    command = ("detect", "eval", files / "detector.safetensors", "x.json", files / "scenes/images")
    each(content, lambda content: (tmp_path / "x.json").write_text(json.dumps(content)), [command])


class Payload:
    def __init__(self, folder):
        self.command = f"touch {folder / 'ran'}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("key", ["state_dict", "meta", "optimizer", None])
def test_foreign_weights_run_nothing(harmless, tmp_path, is_zip, key):
    weights = build_classifier(Architecture("resnet18", 6, 8)).state_dict()
    content = Payload(tmp_path) if key is None else {"state_dict": weights, "x": 1, key: Payload(tmp_path)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=is_zip)
    (tmp_path / "train.py").write_text(
        'start = dict(type="dense", name="resnet18", base_channels=8, weights="x.pth")\n'
        'data = dict(type="shapes", num_train=6, num_val=6)\nimage_size = 32\n'
        "schedule = dict(epochs=1, batch_size=6, lr=0.01)\n"
    )
    assert harmless("classify", "train", "train.py", "--out", "x.safetensors") == 2


def in_texts(model, text):
    model.graph.name = model.graph.node[0].name = model.producer_name = model.doc_string = text
    model.metadata_props.add(key=text, value=text)


def in_domain(model, text):
    model.graph.node[0].domain = text
    model.opset_import.add(domain=text, version=1)


def in_external_data(model, text):
    tensor = next(tensor for tensor in model.graph.initializer if tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=text)


@pytest.mark.parametrize("plant", [in_texts, in_domain, in_external_data])
@pytest.mark.parametrize(
    "words",
    [
        ("bench", "x.onnx", "--rounds", "1", "--out", "r.json", "--force"),
        ("build", "x.onnx", "--force"),
        ("explain", "x.onnx", "x.onnx", "--rounds", "1"),
    ],
)
def test_an_onnx_file_runs_nothing(files, harmless, tmp_path, plant, words):
    for text in (text for text in payloads(tmp_path) if isinstance(text, str)):
        model = onnx.load(files / "deployed/model.onnx")
        plant(model, text)
        onnx.save(model, tmp_path / "x.onnx")
        code = harmless("deploy", *words)
        assert code == 0 or plant in (in_domain, in_external_data)


def test_a_picture_that_is_a_program_is_refused(files, harmless, tmp_path):
    shutil.copytree(files / "shapes", tmp_path / "shapes")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n(%pipe%touch ran) (w) file\n"
    (tmp_path / "shapes/val/circle/00000.png").write_bytes(program)
    assert harmless("classify", "eval", files / "classifier.safetensors", "shapes") == 2
    assert harmless("detect", "predict", files / "deployed", "shapes/val/circle", "--out", "seen", "--force") in (1, 2)


def test_a_prune_spec_runs_nothing(harmless, tmp_path):
    spec = prune_model(build_classifier(Architecture("resnet18", 3)), (torch.zeros(1, 3, 64, 64),), 0.5).spec
    write, command = (
        (tmp_path / "x.json").write_text,
        ("prune", "show", "x.json", "--backbone", "resnet18", "--num-classes", "3"),
    )
    content = json.loads(spec.to_json())
    codes = set()
    for value in (content, *itertools.islice(variants(content, tmp_path), 0, None, 15)):
        write(json.dumps(value))
        codes.add(harmless(*command))
    assert codes >= {0, 2}


def test_results_run_nothing(each, tmp_path):
    results = json.loads((ROOT / "benchmarks/photos-cpu/results.json").read_text())
    write = (tmp_path / "results.json").write_text
    each(results, lambda content: write(json.dumps(content)), [("report", tmp_path, "--json")])


def test_an_engine_s_sidecar_runs_nothing(files, harmless, tmp_path):
    shutil.copytree(files / "deployed", tmp_path / "d")
    assert harmless("deploy", "build", "d/model.onnx", "--backend", "tensorrt_rtx") == 0
    sidecar = next(tmp_path.glob("d/*.engine.json"))
    for content in variants(json.loads(sidecar.read_text()), tmp_path):
        sidecar.write_text(json.dumps(content))
        assert harmless("deploy", "bench", sidecar.with_suffix(""), "--rounds", "1", "--out", "r.json") in (1, 2)


def test_a_stage_s_record_runs_nothing(finished, harmless, tiny_arguments, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    record = next(folder.glob("stages/evaluate_detector-*/stage.json"))
    for content in itertools.islice(variants(json.loads(record.read_text()), tmp_path), 0, None, 5):
        record.write_text(json.dumps(content))
        assert harmless(*tiny_arguments(folder)) == 2
