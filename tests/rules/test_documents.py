"""Every table in the documents is generated from its record, and every relative link has a target."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load_tables():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks/tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = load_tables()
DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in TABLES.documents()]
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_are_made_from_their_records(document):
    text = (ROOT / document).read_text()
    assert TABLES.with_tables(text) == text, f"{document}: run python benchmarks/tables.py"


def test_a_table_typed_by_hand_is_found():
    text = (ROOT / "docs/photos.md").read_text()
    assert "| dense |" in text
    typed = text.replace("| dense |", "| dense, only better |")
    assert TABLES.with_tables(typed) == text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_have_existing_targets(document):
    for link in LINK.findall((ROOT / document).read_text()):
        assert ((ROOT / document).parent / link).exists(), f"{document}: {link} does not exist"
