"""A packaged detector behind a real Triton Inference Server.

No wheel holds Triton's ONNX Runtime backend, so a few lines of Python run `model.onnx` in its place; everything else
is as packaged.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.fitting import read_image

ENVIRONMENT = Path(sys.prefix) / "triton"
"""Separate environment: Triton's Python backend in that wheel needs numpy 1."""
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
ROOT = ENVIRONMENT / f"lib/python{VERSION}/site-packages"
INSTALL = (
    f"{sys.executable} -m venv {ENVIRONMENT} && "
    f"{ENVIRONMENT}/bin/pip install nvidia-pytriton==0.7.0 onnxruntime opencv-python-headless"
)

NAMES = ("det", "other")

GRAPH = """
import os
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.response(request) for request in requests]

    def response(self, request):
        inputs = {i.name: pb_utils.get_input_tensor_by_name(request, i.name) for i in self.session.get_inputs()}
        arrays = self.session.run(None, {name: tensor.as_numpy() for name, tensor in inputs.items()})
        names = [output.name for output in self.session.get_outputs()]
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in zip(names, arrays)])
"""

ASK = """
import sys
import numpy as np
import tritonclient.http as triton

requests = np.load(sys.argv[2])
client = triton.InferenceServerClient(sys.argv[1], concurrency=8)
sent = {}
for key in requests.files:
    name, array = key.partition("-")[0], requests[key]
    tensor = triton.InferInput(name, array.shape, "UINT8")
    tensor.set_data_from_numpy(array)
    sent[key] = client.async_infer("det_images", [tensor])
found = {}
for key, request in sent.items():
    try:
        result = request.get_result()
    except triton.InferenceServerException as error:
        found[key + "/error"] = str(error)
        continue
    for name in ("boxes_xyxy", "scores", "labels"):
        found[key + "/" + name] = result.as_numpy(name)
statistics = client.get_inference_statistics("det_images")["model_stats"][0]["batch_stats"]
found["batches"] = [[entry["batch_size"], entry["compute_infer"]["count"]] for entry in statistics]
np.savez(sys.argv[3], **found)
"""


@pytest.fixture(scope="module")
def repository(deployed, invoke, tmp_path_factory):
    """What `deploy package` wrote for one name and then for another, their graphs run by Python."""
    if not (ROOT / "pytriton").is_dir():
        pytest.skip(f"{ROOT}/pytriton: absent, it holds a Triton server; install it with: {INSTALL}")
    out = tmp_path_factory.mktemp("package") / "repository"
    for name in NAMES:
        invoke("deploy", "package", deployed, "--out", out, "--name", name, "--force")
        _run_by_python(out / name)
    return out


def _run_by_python(graph):
    (graph / "1/model.py").write_text(GRAPH)
    config = (graph / "config.pbtxt").read_text()
    for packaged, stand_in in (('backend: "onnxruntime"', 'backend: "python"'), ('"model.onnx"', '"model.py"')):
        assert config.count(packaged) == 1
        config = config.replace(packaged, stand_in)
    (graph / "config.pbtxt").write_text(config)


@pytest.fixture(scope="module")
def server(repository, tmp_path_factory):
    """The address of a running server."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copytree(ROOT / "pytriton/tritonserver/backends", folder / "backends")
    stub = ROOT / f"pytriton/tritonserver/python_backend_stubs/{VERSION}/triton_python_backend_stub"
    shutil.copy(stub, folder / "backends/python")  # the server looks for it there
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log.txt").open("w") as log, _started(repository, folder, address, log) as process:
        try:
            _wait(process, address, folder / "log.txt")
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(30)


def _started(repository, folder, address, log):
    host, port = address.split(":")
    options = {
        "model-repository": repository,
        "backend-directory": folder / "backends",
        "http-address": host,
        "http-port": port,
        "allow-grpc": "false",
        "allow-metrics": "false",
        "backend-config": "python,shm-default-byte-size=4194304",
    }
    path = f"{ENVIRONMENT}/bin:{os.environ['PATH']}"  # whose Python the models run in
    environment = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": str(ROOT / "nvidia_pytriton.libs")}
    binary = ROOT / "pytriton/tritonserver/bin/tritonserver"
    command = [str(binary), *(f"--{name}={value}" for name, value in options.items())]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)


def _wait(process, address, log):
    for _ in range(120):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://{address}/v2/health/ready", timeout=1).close()
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.25)
    raise AssertionError(log.read_text()[-2000:])


def in_its_environment(*arguments):
    result = subprocess.run([ENVIRONMENT / "bin/python", *map(str, arguments)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def bytes_of(data):
    return np.frombuffer(data, np.uint8)[None]


@pytest.fixture(scope="module")
def answers(server, files, sized, tmp_path_factory):
    """The server's answers to images, files and invalid ones sent at the same time, and its batches."""
    folder = tmp_path_factory.mktemp("answers")
    requests = {f"image-{i}": image[None] for i, image in enumerate(sized)}
    requests |= {f"encoded-{i}": bytes_of(file.read_bytes()) for i, file in enumerate(files)}
    requests |= {"image-two": np.stack([sized[0], sized[0][::-1]]), "image-pixel": np.zeros((1, 1, 1, 3), np.uint8)}
    requests |= {"encoded-broken": bytes_of(b"no image"), "image-empty": np.zeros((1, 0, 8, 3), np.uint8)}
    np.savez(folder / "requests.npz", **requests)
    (folder / "ask.py").write_text(ASK)
    in_its_environment(folder / "ask.py", server, folder / "requests.npz", folder / "found.npz")
    return dict(np.load(folder / "found.npz"))


@pytest.fixture(scope="module")
def sized(files):
    """The images, each of another size."""
    opened = (Image.open(file).convert("RGB") for file in files)
    return [np.asarray(image.resize((60 + 20 * i, 50 + 7 * i))) for i, image in enumerate(opened)]


def same(answers, key, expected, place=0):
    boxes, scores, labels = (answers[f"{key}/{name}"][place] for name in ("boxes_xyxy", "scores", "labels"))
    num = len(expected)
    assert num > 0
    assert (labels >= 0).sum() == num
    np.testing.assert_allclose(boxes[:num], [thing.box_xyxy for thing in expected], atol=0.01)
    np.testing.assert_allclose(scores[:num], [thing.score for thing in expected], atol=1e-4)
    assert not scores[num:].any()


def test_images_of_any_size_get_the_boxes_that_detector_gives(answers, detector, sized):
    for i, expected in enumerate(detector(sized, 0.0)):
        same(answers, f"image-{i}", expected)


def test_image_files_get_the_boxes_that_detector_gives(answers, detector, files):
    for i, expected in enumerate(detector(files, 0.0)):
        same(answers, f"encoded-{i}", expected)


def test_a_request_may_hold_several_images(answers, detector, sized):
    for place, expected in enumerate(detector([sized[0], sized[0][::-1]], 0.0)):
        same(answers, "image-two", expected, place)


def test_a_pixel_is_an_image(answers):
    assert answers["image-pixel/labels"].shape == (1, 100)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("encoded-broken", "encoded: does not decode; expected an image"),
        ("image-empty", "image: no pixels, got [1, 0, 8, 3]; expected height x width x 3"),
    ],
)
def test_a_faulty_request_gets_an_error_and_others_are_answered(answers, key, message):
    assert message in str(answers[f"{key}/error"])
    assert sum(name.endswith("/error") for name in answers) == 2


def test_requests_were_collected_into_batches(answers):
    assert 2 in answers["batches"][:, 0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [[], ["--on-server"]])
def test_each_client_prints_the_boxes_that_detector_gives(server, repository, detector, files, options, name):
    client = repository / f"{name}_images/1/client.py"
    arguments = ("--url", server, "--min-score", 0.1, *options, *files)
    lines = [line.split() for line in in_its_environment(client, *arguments).splitlines()]
    expected = [(str(file), thing) for file, found in zip(files, detector(files, 0.1), strict=True) for thing in found]
    assert [line[:2] for line in lines] == [[file, thing.name] for file, thing in expected]
    boxes = [[float(side) for side in line[3:]] for line in lines]
    np.testing.assert_allclose(boxes, [thing.box_xyxy for _, thing in expected], atol=0.06)


def test_fitting_is_the_same_file_everywhere(repository):
    ours = Path(sys.modules[read_image.__module__].__file__).read_bytes()
    assert (repository / "det_images/1/fitting.py").read_bytes() == ours
