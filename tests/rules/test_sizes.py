"""Files and functions stay short enough to read at once."""

import ast
from collections.abc import Mapping

MAX_FILE, MAX_FUNCTION = 400, 80


def function_lengths(sources: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return (lines, place) of every function, longest first."""
    return sorted(
        (
            (node.end_lineno - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
            for path, text in sources.items()
            for node in ast.walk(ast.parse(text, path))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ),
        reverse=True,
    )


def file_lengths(sources: Mapping[str, str]) -> list[tuple[int, str]]:
    """Return (lines, place) of every file, longest first."""
    return sorted(((len(text.splitlines()), f"{path}:1") for path, text in sources.items()), reverse=True)


def violations(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{place}: {lines} lines; split it by what it does, expected at most {limit}"
        for lengths, limit in ((file_lengths(sources), MAX_FILE), (function_lengths(sources), MAX_FUNCTION))
        for lines, place in lengths
        if lines > limit
    ]


def report(sources: Mapping[str, str]) -> str:
    longest = [*file_lengths(sources)[:5], *function_lengths(sources)[:10]]
    return "\n".join(["", "longest files and functions:", *(f"{lines:5} {place}" for lines, place in longest)])


def test_files_and_functions_are_short(package_sources, request, capsys):
    if request.config.get_verbosity() >= 0:  # the project's own -q makes the ordinary run -1, and -v 0
        with capsys.disabled():
            print(report(package_sources))
    found = violations(package_sources)
    assert not found, "\n".join([*found, report(package_sources)])


def test_long_file_is_found():
    assert violations({"prune/bad.py": "x = 1\n" * (MAX_FILE + 1)})[0].startswith("prune/bad.py:1: 401 lines")


def test_long_function_is_found():
    text = "x = 1\ndef f():\n" + "    y = 1\n" * MAX_FUNCTION
    assert violations({"prune/bad.py": text})[0].startswith("prune/bad.py:2 f: 81 lines")


def test_lengths_at_the_limit_pass():
    assert violations({"prune/good.py": "def f():\n" + "    y = 1\n" * (MAX_FUNCTION - 1) + "x = 1\n" * 320}) == []
