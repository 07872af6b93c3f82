"""No default argument can change between calls."""

import ast
from collections.abc import Mapping

import pytest

DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
CONSTRUCTORS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict"}


def is_mutable(default: ast.expr) -> bool:
    if isinstance(default, ast.Call):
        return ast.unparse(default.func).split(".")[-1] in CONSTRUCTORS
    return isinstance(default, DISPLAYS)


def violations(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{default.lineno}: default {ast.unparse(default)} is shared by all calls; use a tuple or None"
        for path, text in sources.items()
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for default in [*node.args.defaults, *node.args.kw_defaults]
        if default is not None and is_mutable(default)
    ]


def test_defaults_cannot_change(sources):
    found = violations(sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    ["def f(a=[]): ...", "def f(*, a={}): ...", "lambda a=set(): a", "async def f(a=collections.deque()): ..."],
)
def test_mutable_default_is_found(text):
    assert len(violations({"prune/bad.py": text})) == 1


def test_immutable_defaults_pass():
    assert violations({"prune/good.py": "def f(a, b=(), c=None, *, d, e=Path('.')): ..."}) == []
