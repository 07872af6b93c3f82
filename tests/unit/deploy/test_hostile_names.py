import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from PIL import Image

from deploy import Found, measure, package_detector, record_from_measurement, table_from_record
from deploy.deployment import Deployment, open_deployment
from deploy.pictures import draw
from deploy.text import printable


class Still:
    """A runner that does nothing."""

    runtime, device, num_threads, file_sha256, precision = "onnxruntime", "cpu", 1, None, "fp32"

    def prepare(self, inputs):
        return lambda: None


def test_text_from_a_file_is_one_line_without_commands(hostile):
    assert printable(hostile).isprintable()
    backslashes = printable(hostile.replace("\\", "\\\\"))  # which are printed as they are
    assert backslashes.encode("raw_unicode_escape").decode("unicode_escape") == hostile


def test_a_printable_name_stays_what_it_is():
    assert printable("ca\u00f1\u00f3n_[red] & \N{GRINNING FACE}") == "ca\u00f1\u00f3n_[red] & \N{GRINNING FACE}"


def test_a_candidate_is_one_row_of_a_table(hostile):
    runners, inputs = {hostile: Still()}, {"image": np.ones((1, 3))}
    record = record_from_measurement(measure(runners, inputs, warmup=0, rounds=3), runners, inputs)
    header, _, row = table_from_record(record).splitlines()[-3:]
    assert row.replace("\\|", "").count("|") == header.count("|")


def test_deploy_json_keeps_class_names(elsewhere, renamed, hostile):
    renamed(elsewhere, [hostile, "b"])
    deployment = open_deployment(elsewhere).deployment
    assert Deployment.model_validate_json(deployment.model_dump_json()).classes == (hostile, "b")


def test_classes_are_drawn(hostile):
    drawn = draw(Image.new("RGB", (64, 48)), [Found(hostile, 0.5, (5.0, 20.0, 30.0, 40.0))])
    assert np.asarray(drawn)[20:41, 30].any(-1).all()  # the box's right side


@pytest.mark.parametrize("box", [(30.0, 40.0, 5.0, 20.0), (-1e30, -1e30, 1e30, 1e30), (1e30, 1e30, 1e30, 1e30)])
def test_impossible_boxes_are_drawn_inside_the_image(box):
    assert draw(Image.new("RGB", (64, 48)), [Found("a", 0.5, box)]).size == (64, 48)


def checked_package(images, classes):
    """Check that every generated file of a package reads as what it should hold."""
    assert (images / "labels.txt").read_bytes().decode().splitlines() == classes
    code = {path.name: ast.parse(path.read_bytes()) for path in (images / "1").glob("*.py")}
    assignments = [node for node in code["client.py"].body if isinstance(node, ast.Assign)]
    values = {getattr(node.targets[0], "id", None): node.value for node in assignments}
    assert ast.literal_eval(values["LABELS"]) == tuple(classes)
    package = importlib.util.find_spec("tritonclient").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("config", Path(package) / "grpc/model_config_pb2.py")
    spec.loader.exec_module(schema := importlib.util.module_from_spec(spec))
    assert text_format.Parse((images / "config.pbtxt").read_text(), schema.ModelConfig()).name == "det_images"


def test_a_class_is_packaged_as_a_value_or_refused(elsewhere, renamed, hostile, tmp_path):
    renamed(elsewhere, [hostile, "b"])
    repository = tmp_path / "repository"
    if hostile.splitlines() == [hostile]:
        package_detector(elsewhere, repository, "det")
        checked_package(repository / "det_images", [hostile, "b"])
    else:
        with pytest.raises(ValueError, match=r"class .*: not a line of text; expected a name without line breaks"):
            package_detector(elsewhere, repository, "det")
        assert not repository.exists()


def test_a_package_has_a_plain_name(deployed, hostile, tmp_path):
    with pytest.raises(ValueError, match=r"--name: not a valid model name, got .*; expected letters, digits"):
        package_detector(deployed, tmp_path / "repository", hostile)
