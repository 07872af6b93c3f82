import importlib
import sys

import pytest

PACKAGE = """
from typing import TYPE_CHECKING
from command.lazy import lazy_names

if TYPE_CHECKING:
    from lazy_example.part import first, second as renamed

__getattr__ = lazy_names(__name__, __file__)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with one part that is imported when it is used."""
    folder = tmp_path / "lazy_example"
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "part.py").write_text("first, second = object(), object()")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("lazy_example")
    for name in [name for name in sys.modules if name.startswith("lazy_example")]:
        del sys.modules[name]


def test_part_is_imported_when_a_name_is_used(package):
    assert "lazy_example.part" not in sys.modules
    assert package.first is sys.modules["lazy_example.part"].first


def test_public_name_may_differ_from_that_in_the_module(package):
    assert package.renamed is importlib.import_module("lazy_example.part").second
    assert not hasattr(package, "second")


def test_name_is_looked_up_once(package):
    first = package.first
    assert vars(package)["first"] is first


def test_unknown_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=r"^module 'lazy_example' has no attribute 'third'$"):
        _ = package.third


def test_submodules_stay_importable(package):
    from lazy_example import part

    assert part is sys.modules["lazy_example.part"]
