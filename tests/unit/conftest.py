import hashlib
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from classify.backbones import Architecture, build_classifier
from classify.checkpoint import ModelCard, Preprocessing, load_weights, read_weights, save_model
from classify.synthetic import SHAPES
from command.files import sha256_of
from deploy import Detector, EngineInfo
from deploy.onnx_file import input_specs, output_specs
from detect import DetectorSettings, new_detector, save_detector
from detect.annotations import read_annotations
from detect.synthetic import write_scenes
from experiment.cli import app

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TRAINED = Path(__file__).parents[1] / "data/small_detector.safetensors"
SETTINGS = DetectorSettings(
    (96, 128), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16, anchor_scale=4
)


HOSTILE = {
    "empty": "",
    "newline": "a\nb",
    "tab": "\ta",
    "carriage-return": "\ra",
    "line-separator": "a\u2028b",
    "next-line": "a\x85b",
    "nul": "a\0b",
    "escape": "\x1b[31ma",
    "right-to-left": "\u200fa\u202eb",
    "emoji": "😀漢",
    "long": "x" * 10_000,
    "script": "<script>alert(1)</script>",
    "attribute": '" onload="alert(1)',
    "scheme": "javascript:alert(1)",
    "quotes": "'\"`",
    "entity": "&amp;",
    "formula": '=HYPERLINK("http://x")',
    "plus": "+1",
    "minus": "-1+1",
    "at": "@x",
    "pipe": "a|b",
    "backslash": "a\\",
    "percent": "%s %(a)d",
    "underscores": "_a_",
    "dollars": "$\\frac{a}$ $",
    "hash": "# a",
    "jinja": "{{7*7}}",
    "liquid": "{% raw %}",
    "rich": "[red]x[/red]",
    "rich-end": "[/]",
    "shortcode": ":smile:",
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request):
    """A name that some format would take for markup, code or an end of something."""
    return request.param


@pytest.fixture(scope="session")
def shared_data():
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA}: absent, it holds the real photographs and reference figures")
    return SHARED_DATA


@pytest.fixture(scope="session")
def invoke():
    """Run a command in this process; its errors are raised."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="session")
def write_voc():
    """Write a COCO set as VOC's VOC2007 in a folder, into one list; return the list's path.

    `names` are those of the categories in VOC, `prefix` tells the images of several lists apart.
    """

    def write(coco, root, image_set="trainval", prefix="", names=("bird", "cat", "cow", "dog", "horse", "sheep")):
        data = read_annotations(coco.annotations)
        classes = {row["id"]: name for row, name in zip(data["categories"], names, strict=True)}
        place = root / "VOC2007"
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        listed = place / f"ImageSets/Main/{image_set}.txt"
        stems = [f"{prefix}{i:06}" for i, _ in enumerate(data["images"])]
        listed.write_text("".join(f"{stem}\n" for stem in stems))
        for stem, image in zip(stems, data["images"], strict=True):
            Image.open(coco.images / image["file_name"]).convert("RGB").save(place / f"JPEGImages/{stem}.jpg")
            rows = [row for row in data["annotations"] if row["image_id"] == image["id"]]
            objects = "".join(voc_object(classes[row["category_id"]], *row["bbox"]) for row in rows)
            size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
            (place / f"Annotations/{stem}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        return listed

    return write


def voc_object(name, x, y, w, h, difficult=0):
    """Return an object as VOC has it: edges are numbers of pixels, from 1, both in the box."""
    edges = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
    box = "".join(f"<{edge}>{number}</{edge}>" for edge, number in edges.items())
    part = "<part><name>head</name><bndbox><xmin>9999</xmin></bndbox></part>"  # of VOC's layout task
    flag = f"<difficult>{difficult}</difficult>"
    return f"<object><name>{name}</name>{flag}<bndbox>{box}</bndbox>{part}</object>"


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Seven images of 96 x 128, which no batch of two divides."""
    scenes = write_scenes(tmp_path_factory.mktemp("scenes"), 7, (96, 128), seed=0)
    return sorted(scenes.images.iterdir())


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The file of a detector trained on such scenes."""
    path = tmp_path_factory.mktemp("model") / "det.safetensors"
    net, card = new_detector(Architecture("resnet18", 1, 8), SHAPES, SETTINGS, seed=0)
    load_weights(net, read_weights(TRAINED), str(TRAINED))
    save_detector(path, net, card)
    return path


@pytest.fixture(scope="session")
def deployed(model, invoke):
    """The folder that `deploy export` writes beside the model, for batches of two."""
    invoke("deploy", "export", model, "--set", "batch=2")
    return model.with_suffix(".deploy")


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    arch = Architecture("resnet18", 3, 8)
    card = ModelCard("classifier", arch, ("a", "b", "c"), Preprocessing((32, 32)))
    save_model(tmp_path / "net.safetensors", build_classifier(arch), card)
    return tmp_path / "net.safetensors"


@pytest.fixture
def elsewhere(deployed, tmp_path):
    """A copy of that folder, to be changed."""
    return shutil.copytree(deployed, tmp_path / "det.deploy")


@pytest.fixture
def with_engine():
    """Write a file into a folder with the sidecar of an engine built from the ONNX file there."""

    def put(folder, name="model.engine", backend="tensorrt", content=b"engine", **other):
        (folder / name).write_bytes(content)
        graph = onnx.load(folder / "model.onnx")
        info = EngineInfo(
            backend=backend,
            backend_version="10.9.0",
            compute_capabilities=(),
            precision="fp32",
            onnx_sha256=sha256_of(folder / "model.onnx"),
            engine_sha256=hashlib.sha256(content).hexdigest(),
            inputs=input_specs(graph),
            outputs=output_specs(graph),
        )
        (folder / f"{name}.json").write_text(info.model_copy(update=other).model_dump_json())

    return put


@pytest.fixture(scope="session")
def detector(deployed):
    return Detector.load(deployed)
