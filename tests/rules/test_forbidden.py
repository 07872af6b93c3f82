"""Forbidden code that ruff does not find: run code on load, silence the rule against catching all errors."""

import ast
import re
from collections.abc import Mapping

import pytest

OUTERMOST = "command/errors.py"
"""The one place that may catch every error."""
SILENCED = re.compile(
    r"#\s*(?:ruff:\s*|flake8:\s*)?noqa(?!:)|#\s*(?:ruff:\s*)?noqa:[\s\w,]*\b(?:BLE001|E722)\b", re.IGNORECASE
)


def call_problem(call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if options.get("allow_pickle") == "True":
        return f"{name} runs code from the file; use safetensors or JSON"
    if name == "torch.load" and options.get("weights_only") != "True":
        return "torch.load runs code from the file; add weights_only=True"
    return None


def unsafe_loads(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{node.lineno}: {problem}"
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, ast.Call) and (problem := call_problem(node))
    ]


def silenced_lines(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{number}: catches every error; name those expected here, only {OUTERMOST} may do without"
        for path, text in sources.items()
        if path != OUTERMOST
        for number, line in enumerate(text.splitlines(), start=1)
        if SILENCED.search(line)
    ]


def test_no_code_runs_when_a_file_is_loaded(sources):
    found = unsafe_loads(sources)
    assert not found, "\n".join(found)


def test_errors_are_all_caught_in_one_place_only(sources):
    found = silenced_lines({path: text for path, text in sources.items() if not path.endswith("/test_forbidden.py")})
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "call",
    ["numpy.load(path, allow_pickle=True)", "torch.load(path)", "torch.load(path, weights_only=False)"],
)
def test_unsafe_load_is_found(call):
    assert [message.split(": ")[0] for message in unsafe_loads({"prune/bad.py": f"\n{call}"})] == ["prune/bad.py:2"]


@pytest.mark.parametrize("call", ["torch.load(path, weights_only=True)", "numpy.load(path, allow_pickle=False)"])
def test_safe_load_passes(call):
    assert unsafe_loads({"prune/good.py": call}) == []


@pytest.mark.parametrize(
    "comment", ["# noqa: BLE001", "# noqa:BLE001  # why", "# noqa: S110, BLE001", "# noqa", "# ruff: noqa: BLE001"]
)
def test_silenced_rule_is_found(comment):
    text = f"try: f()\nexcept Exception: pass  {comment}\n"
    assert [message.split(": ")[0] for message in silenced_lines({"prune/bad.py": text})] == ["prune/bad.py:2"]


@pytest.mark.parametrize(
    ("path", "comment"), [("prune/good.py", "# noqa: F401  # registered"), (OUTERMOST, "# noqa: BLE001")]
)
def test_other_comments_and_the_outermost_place_pass(path, comment):
    assert silenced_lines({path: f"import x  {comment}\n"}) == []
