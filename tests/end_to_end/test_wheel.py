"""The installed wheel, outside the checkout: deployed folders need four packages, configs are found by name."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from packaging.requirements import Requirement

from command.files import sha256_of
from deploy.deployment import Deployment
from deploy.onnx_file import input_specs, output_specs
from espalier.places import FOLDERS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "espalier", "configs", *FOLDERS)
NEEDED = ("numpy", "cv2", "onnxruntime", "pydantic")
THEIR_OWN = ("pydantic_core", "annotated_types", "typing_extensions", "typing_inspection")

FINDS_BOXES = """
import sys
sys.path[:0] = sys.argv[1:3]
import cv2, numpy
from {face} import Detector

detector = Detector.load(sys.argv[3])
array = detector([numpy.zeros((16, 32, 3), numpy.uint8)])
file = detector([sys.argv[4]])
print([(thing.name, round(thing.score, 3), thing.box_xyxy) for thing in array[0]])
print([(thing.name, round(thing.score, 3), thing.box_xyxy) for thing in file[0]])
"""
COMMAND = """
import sys
sys.path[:0] = sys.argv[1:3]
sys.argv = ["espalier", *sys.argv[3:]]
from espalier.__main__ import main
main()
"""
LOADS = """
import sys
from {face} import Detector
print([name for name in ("torch", "mmdet", "mmengine", "onnx", "scipy", "PIL", "rich", "typer") if name in sys.modules])
"""


def copy_of(name, folder):
    source = ROOT / name
    if source.is_dir():
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, folder / name)


def link(path, folder):
    if not (folder / path.name).exists():
        (folder / path.name).symlink_to(path)


def names_of(distribution):
    """Names of what a distribution requires here without any extra."""
    required = [Requirement(text) for text in distribution.requires or ()]
    return [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built from a copy so that nothing is left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in BUILT_FROM:
        copy_of(name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder, folder / "source"], check=True, capture_output=True)
    return next(folder.glob("espalier-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed in, alone."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps"]
    subprocess.run([*pip, "--target", folder, wheel], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def few_packages(tmp_path_factory):
    """A folder of those packages of this environment that a deployed detector needs, and no others."""
    folder = tmp_path_factory.mktemp("few")
    for name in (*NEEDED, *THEIR_OWN):
        origin = Path(importlib.util.find_spec(name).origin)
        package = origin.parent if origin.name == "__init__.py" else origin
        link(package, folder)
        for libraries in package.parent.glob("*.libs"):  # which compiled packages load from beside themselves
            link(libraries, folder)
    return folder


@pytest.fixture(scope="module")
def required_packages(installed, tmp_path_factory):
    """A folder of what the wheel requires without any extra, out of this environment."""
    folder = tmp_path_factory.mktemp("required")
    wheel = next(iter(metadata.distributions(path=[str(installed)])))
    waiting, done = names_of(wheel), set()
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name in done:
            continue
        done.add(distribution.name)
        waiting += names_of(distribution)
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            link(Path(distribution.locate_file(name)), folder)
    return folder


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    """A deployed folder whose graph finds the same two boxes in every image of 32 x 32."""
    folder = tmp_path_factory.mktemp("constant.deploy")
    found = {
        "boxes_xyxy": np.array([[[2, 4, 10, 12], [1, 1, 20, 9]]], np.float32),
        "scores": np.array([[0.5, 0.75]], np.float32),
        "labels": np.array([[1, 0]], np.int64),
    }
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(a)) for name, a in found.items()]
    inputs = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 32, 32)),
        helper.make_tensor_value_info("image_hw", TensorProto.FLOAT, (1, 2)),
    ]
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in found.items()
    ]
    graph = helper.make_graph(nodes, "constant", inputs, outputs)
    file = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    described = Deployment(
        inputs=input_specs(onnx.load(file)),
        outputs=output_specs(onnx.load(file)),
        preprocessing="RGB, 0 to 255",
        classes=("cat", "dog"),
        precision="fp32",
        versions={},
        sha256={file.name: sha256_of(file)},
        model="none.safetensors",
        model_sha256="0" * 64,
        parity=None,
        compared_on="nothing",
        config={},
    )
    (folder / "deploy.json").write_text(described.model_dump_json())
    return folder


def run_alone(arguments, paths, deployed, folder):
    """Run the command in a folder of an image, a model file and a deployed folder, with nothing but `paths`."""
    shutil.copytree(deployed, folder / "det.deploy")
    (folder / "det.safetensors").write_bytes(b"")
    cv2.imwrite(str(folder / "street.png"), np.zeros((64, 64, 3), np.uint8))
    program = [sys.executable, "-S", "-I", "-c", COMMAND, *map(str, paths), *arguments]
    return subprocess.run(program, cwd=folder, capture_output=True, text=True)


@pytest.fixture
def run_command(installed, tmp_path):
    """Run the installed command in an empty folder, with everything else of this environment."""

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}
        command = [sys.executable, "-m", "espalier", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_wheel_holds_every_config_and_no_test(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*/*.py")}
    assert {name.removeprefix("espalier/") for name in names if name.startswith("espalier/configs/")} == configs
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"espalier", *FOLDERS}


def test_wheel_holds_every_module_and_template(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in ("espalier", *FOLDERS)
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources - names == set()


@pytest.mark.parametrize("face", ["espalier", "deploy"])
def test_detector_finds_boxes_with_four_packages_only(face, installed, few_packages, deployed, tmp_path):
    cv2.imwrite(str(tmp_path / "street.png"), np.zeros((64, 64, 3), np.uint8))
    arguments = [installed, few_packages, deployed, tmp_path / "street.png"]
    program = [sys.executable, "-S", "-I", "-c", FINDS_BOXES.format(face=face), *map(str, arguments)]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    in_array, in_file = ran.stdout.splitlines()
    assert in_array == "[('cat', 0.75, (1.0, 1.0, 20.0, 9.0)), ('dog', 0.5, (2.0, 4.0, 10.0, 12.0))]"
    assert in_file == "[('cat', 0.75, (2.0, 2.0, 40.0, 18.0)), ('dog', 0.5, (4.0, 8.0, 20.0, 24.0))]"


@pytest.mark.parametrize("face", ["espalier", "deploy"])
def test_detector_loads_nothing_that_trains(face):
    ran = subprocess.run([sys.executable, "-c", LOADS.format(face=face)], cwd=ROOT, capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.returncode) == ("[]", 0), ran.stderr


def test_configs_are_listed_with_their_first_lines(run_command):
    ran = run_command("configs")
    assert ran.returncode == 0, ran.stderr
    lines = [line.split(maxsplit=1) for line in ran.stdout.splitlines() if line.startswith("  ")]
    first_lines = {path.stem: path.read_text().splitlines()[0][3:] for path in (ROOT / "configs").glob("*/*.py")}
    assert dict(lines) == first_lines


def test_config_is_copied_once(run_command, tmp_path):
    ran = run_command("configs", "copy", "quickstart", ".")
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "quickstart.py").read_text() == (ROOT / "configs/experiment/quickstart.py").read_text()
    assert ran.stderr.splitlines()[-1] == "next: espalier run quickstart.py"
    again = run_command("configs", "copy", "quickstart", ".")
    assert again.returncode == 2
    assert again.stderr.startswith("espalier: quickstart.py: exists already")


def test_wrong_key_of_a_config_found_by_name_is_refused(run_command, tmp_path):
    ran = run_command("run", "quickstart", "--set", "nonsense=1")
    assert ran.returncode == 2, ran.stderr
    line = ran.stderr.splitlines()[-1]
    assert line.startswith("espalier: quickstart: unknown key nonsense; nearest valid ones: ")
    assert list(tmp_path.iterdir()) == []


def test_version_is_the_wheels(run_command, wheel):
    ran = run_command("--version")
    assert (ran.returncode, ran.stdout.strip()) == (0, f"espalier {wheel.name.split('-')[1]}")


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        (["detect", "predict", "det.deploy", "street.png", "--out", "out"], "out/street.png"),
        (["deploy", "bench", "det.deploy/model.onnx", "--rounds", "10", "--out", "record.json"], "record.json"),
        (["deploy", "package", "det.deploy"], "det.triton/det/config.pbtxt"),
        (["configs", "copy", "fp16", "."], "fp16.py"),
    ],
)
def test_install_without_extras_serves_deployed_folders(
    arguments, written, installed, required_packages, deployed, tmp_path
):
    ran = run_alone(arguments, [installed, required_packages], deployed, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / written).is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "quickstart"],
        ["prune", "l1_half", "det.safetensors"],
        ["detect", "predict", "det.safetensors", "street.png"],
        ["deploy", "bench", "det.safetensors"],
    ],
)
def test_install_without_extras_names_the_extra_for_the_rest(
    arguments, installed, required_packages, deployed, tmp_path
):
    ran = run_alone(arguments, [installed, required_packages], deployed, tmp_path)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.endswith(' it: pip install "espalier[train]"\n')
