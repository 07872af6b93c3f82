"""The C++ programs in docs/cpp; the headers in tests/unit/deploy/cpp stand in where those of a runtime are missing."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.fitting import fit_image

EXAMPLES, DECLARED = Path(__file__).parents[3] / "docs/cpp", Path(__file__).with_name("cpp")
SYSTEM = ("/usr/include/onnxruntime", "/usr/local/include/onnxruntime", "/usr/include/x86_64-linux-gnu", "/usr/include")
CUDA = ("/usr/local/cuda/include", "/usr/local/cuda-13.0/include")

FIT = """
#include "picture.hpp"
int main(int, char** argv) {
    const Fitted fitted = fit(read_ppm(argv[1]), std::stoi(argv[2]), std::stoi(argv[3]));
    std::printf("%.0f %.0f %.9g %.9g\\n", fitted.image_hw[0], fitted.image_hw[1], fitted.grew_x, fitted.grew_y);
    std::fwrite(fitted.planes.data(), 1, fitted.planes.size(), stdout);
}
"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")]


def compiled(name, *options):
    """Compile an example with all warnings; return what the compiler says."""
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", EXAMPLES / name, *options]
    return subprocess.run([*map(str, command)], capture_output=True, text=True)


def include_of(header, places, otherwise=None):
    """Return the folder that has a header, or `otherwise`."""
    return next((place for place in places if Path(place, header).is_file()), otherwise)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example for ONNX Runtime, linked with the library in its Python package."""
    package = Path(importlib.util.find_spec("onnxruntime").submodule_search_locations[0])
    libraries = sorted(package.glob("capi/libonnxruntime.so*"))
    if not libraries:
        pytest.skip("this package of ONNX Runtime has no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "libonnxruntime.so.1").symlink_to(libraries[0])  # the name that programs look for
    include = include_of("onnxruntime_cxx_api.h", SYSTEM, DECLARED)
    linked = (f"-I{include}", folder / "libonnxruntime.so.1", f"-Wl,-rpath,{folder}", "-o", folder / "detect")
    built = compiled("detect_onnxruntime.cpp", *linked)
    assert built.returncode == 0, built.stderr
    return folder / "detect"


def boxes_printed(program, *arguments):
    """Return names, scores and boxes, of the lines that the program prints."""
    lines = subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, text=True).stdout
    rows = [line.rsplit(" ", 5) for line in lines.splitlines()]
    return [row[0] for row in rows], np.array([row[1:] for row in rows], float)


def boxes_in_python(detector, picture, min_score):
    (found,) = detector([picture], min_score)
    return [thing.name for thing in found], np.array([(thing.score, *thing.box_xyxy) for thing in found])


def test_the_program_finds_what_python_finds(program, deployed, detector, files, tmp_path):
    Image.open(files[0]).convert("RGB").save(tmp_path / "same.ppm")  # of the input's size: nothing is scaled
    names, figures = boxes_printed(program, deployed, tmp_path / "same.ppm", 0)
    expected_names, expected = boxes_in_python(detector, tmp_path / "same.ppm", 0.0)
    assert names == expected_names
    assert names
    np.testing.assert_allclose(figures[:, 0], expected[:, 0], atol=2e-4)  # printed with 4 digits
    np.testing.assert_allclose(figures[:, 1:], expected[:, 1:], atol=0.02)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Fit a picture with `picture.hpp`; return the planes, the size without padding and the factors."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "fit.cpp").write_text(FIT)
    built = compiled(folder / "fit.cpp", f"-I{EXAMPLES}", "-o", folder / "fit")
    assert built.returncode == 0, built.stderr

    def run(pixels, size_hw):
        Image.fromarray(pixels).save(folder / "p.ppm")
        printed = subprocess.run(
            [folder / "fit", folder / "p.ppm", *map(str, size_hw)], check=True, capture_output=True
        )
        figures, _, planes = printed.stdout.partition(b"\n")
        return np.frombuffer(planes, np.uint8).reshape(1, 3, *size_hw), np.array(figures.split(), float)

    return run


@pytest.mark.parametrize(
    "image_hw", [(96, 128), (48, 64), (192, 256), (171, 313), (313, 171), (1, 1), (1, 500), (7, 3)]
)
def test_pictures_are_fitted_as_in_python(fitted, image_hw):
    pixels = np.random.default_rng(0).integers(0, 256, (*image_hw, 3), np.uint8)
    planes, figures = fitted(pixels, (96, 128))
    inputs, grew_xyxy = fit_image(pixels, (96, 128), "uint8")
    np.testing.assert_allclose(figures, [*inputs["image_hw"][0], *grew_xyxy[:2]], rtol=1e-6)
    assert np.abs(planes.astype(int) - inputs["image"]).max() <= 1  # OpenCV rounds its weights


@pytest.mark.parametrize(
    ("folder", "picture", "message"),
    [
        (None, b"P3\n1 1\n255\n0 0 0", "p.ppm: not a picture; expected a binary PPM of 8 bits, without comments"),
        (None, b"P6\n2 2\n255\nabc", "p.ppm: ends before its last pixel"),
        (None, b"P6\n-2 2\n255\n", "p.ppm: not a picture"),
        ("nowhere", b"", "nowhere/deploy.json: no classes; expected a deployed folder"),
    ],
)
def test_the_program_says_in_a_line_what_is_wrong(program, deployed, tmp_path, folder, picture, message):
    (tmp_path / "p.ppm").write_bytes(picture)
    ended = subprocess.run([program, folder or deployed, tmp_path / "p.ppm"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_class_names_with_quotes_and_backslashes_are_read(program, elsewhere, files, renamed, tmp_path, detector):
    names = [f'{name} "\\" [x], ]' for name in detector.classes]
    renamed(elsewhere, names)
    Image.open(files[0]).convert("RGB").save(tmp_path / "p.ppm")
    found, _ = boxes_printed(program, elsewhere, tmp_path / "p.ppm")
    assert found
    assert set(found) <= {name.replace("\\", "\\\\").replace('"', '\\"') for name in names}  # as JSON writes them


def test_the_program_for_tensorrt_compiles():
    triton = importlib.util.find_spec("triton")
    packaged = [f"{place}/backends/nvidia/include" for place in triton.submodule_search_locations] if triton else []
    cuda = include_of("cuda_runtime_api.h", (*CUDA, *packaged))
    if cuda is None:
        pytest.skip("needs CUDA's headers, got none; expected them in /usr/local/cuda or in the package triton")
    tensorrt = include_of("NvInfer.h", SYSTEM, DECLARED)
    checked = compiled("detect_tensorrt.cpp", "-fsyntax-only", f"-I{tensorrt}", "-isystem", cuda)
    assert checked.returncode == 0, checked.stderr
