"""What no file may do: run code on load, swallow every error, print from a library, collect odds and ends."""

import ast
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import pytest

UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler"}
CATCH_ALL = {"Exception", "BaseException"}
ODDS_AND_ENDS = {"util", "utils", "helper", "helpers", "common"}
COMMANDS = {"cli.py", "__main__.py"}


def call_problem(call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in UNSAFE or options.get("allow_pickle") == "True":
        return f"{name} runs code from the file; use safetensors or JSON"
    if name == "torch.load" and options.get("weights_only") != "True":
        return "torch.load runs code from the file; add weights_only=True"
    return None


def handler_problem(handler: ast.ExceptHandler) -> str | None:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    catches_all = any(kind is None or ast.unparse(kind) in CATCH_ALL for kind in caught)
    if catches_all and not isinstance(handler.body[-1], ast.Raise):
        return "swallows every error; name the exceptions expected here, or raise again at the end"
    return None


def unsafe_code(sources: Mapping[str, str]) -> list[str]:
    found = []
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text, path)):
            problem = None
            if isinstance(node, ast.Call):
                problem = call_problem(node)
            elif isinstance(node, ast.ExceptHandler):
                problem = handler_problem(node)
            if problem:
                found.append(f"{path}:{node.lineno}: {problem}")
    return found


def prints(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{node.lineno}: prints, and is no command; return the text, or log it"
        for path, text in sources.items()
        if PurePosixPath(path).name not in COMMANDS
        for node in ast.walk(ast.parse(text, path))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def odds_and_ends(paths: Iterable[str]) -> list[str]:
    return [
        f"{path}:1: a name for odds and ends; name it after what it does"
        for path in paths
        if ODDS_AND_ENDS & {*PurePosixPath(path).parts, PurePosixPath(path).stem}
    ]


def test_no_code_runs_on_load_and_no_error_is_swallowed(sources):
    found = unsafe_code(sources)
    assert not found, "\n".join(found)


def test_only_commands_print(package_sources):
    found = prints(package_sources)
    assert not found, "\n".join(found)


def test_no_file_collects_odds_and_ends(sources):
    found = odds_and_ends(sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "pickle.load(file)",
        "numpy.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "try: f()\nexcept: pass",
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept (ValueError, BaseException): return_nothing()",
    ],
)
def test_unsafe_code_is_found(text):
    line = text.count("\n") + 1
    assert [message.split(": ")[0] for message in unsafe_code({"prune/bad.py": text})] == [f"prune/bad.py:{line}"]


@pytest.mark.parametrize(
    "text",
    [
        "torch.load(path, weights_only=True)",
        "try: f()\nexcept ValueError: pass",
        "try: f()\nexcept BaseException:\n    tidy()\n    raise",
    ],
)
def test_safe_code_passes(text):
    assert unsafe_code({"prune/good.py": text}) == []


def test_print_in_a_library_is_found():
    found = prints({"prune/bad.py": "\nprint(1)", "prune/cli.py": "print(1)"})
    assert [message.split(": ")[0] for message in found] == ["prune/bad.py:2"]


@pytest.mark.parametrize("path", ["prune/utils.py", "tests/helpers.py", "detect/common/boxes.py"])
def test_odds_and_ends_are_found(path):
    assert len(odds_and_ends([path, "prune/cost.py"])) == 1
