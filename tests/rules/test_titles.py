"""Titles of tests stay short enough for one line of a test report."""

import ast
from collections.abc import Mapping

LIMIT = 70


def violations(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{node.lineno} {node.name}: too long, got {len(node.name)} letters; expected fewer than {LIMIT}"
        for path, text in sources.items()
        if path.startswith("tests/")
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) >= LIMIT
    ]


def test_titles_are_short(sources):
    found = violations(sources)
    assert not found, "\n".join(found)


def test_long_title_is_found():
    name = "test_".ljust(LIMIT, "x")
    found = violations({"tests/test_bad.py": f"def {name}():\n    pass\n"})
    assert found == [f"tests/test_bad.py:1 {name}: too long, got 70 letters; expected fewer than 70"]


def test_title_below_the_limit_passes():
    name = "test_".ljust(LIMIT - 1, "x")
    assert violations({"tests/test_good.py": f"def {name}():\n    pass\n"}) == []
