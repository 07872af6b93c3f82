import sys

import pytest

from command.errors import RequestError
from command.extras import install_command, loading, optional_module


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("torch", "train"),
        ("mmengine.config", "train"),
        ("tensorrt", "tensorrt"),
        ("tensorrt_rtx", "tensorrt-rtx"),
        ("openvino", "openvino"),
        ("pynvml", "nvml"),
        ("submitit", "slurm"),
        ("tensorboard", "tensorboard"),
    ],
)
def test_module_is_brought_by_its_extra(module, extra):
    assert install_command(module) == f'pip install "espalier[{extra}]"'


def test_installed_module_is_returned():
    assert optional_module("json", "tests need").__name__ == "json"


def test_missing_module_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        RequestError, match=r'^openvino is not installed; x needs it: pip install "espalier\[openvino\]"$'
    ):
        optional_module("openvino", "x needs")


def test_missing_package_of_a_block_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdet", None)
    expected = r'^mmdet is not installed; this command needs it: pip install "espalier\[train\]"$'
    with pytest.raises(RequestError, match=expected), loading():
        import mmdet.apis  # noqa: F401


@pytest.mark.parametrize("name", ["json.no_such_part", "command.no_such_module"])
def test_missing_part_of_what_is_installed_is_a_bug(name):
    with pytest.raises(ModuleNotFoundError, match=name), loading():
        __import__(name)


def test_error_without_a_name_is_a_bug():
    with pytest.raises(ModuleNotFoundError, match="of somebody else"), loading():
        raise ModuleNotFoundError("of somebody else")
