"""Every module lists in __all__ what others may use."""

import ast
from collections.abc import Iterator, Mapping

import pytest

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SCOPES = (*DEFINITIONS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes whose names belong to the module: those under an if or a try too, none inside a function."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, SCOPES):
            yield from module_level(child)


def names_of(nodes: list[ast.AST], *, imported: bool) -> set[str]:
    """Return the names that these nodes give the module."""
    defined = {node.name for node in nodes if isinstance(node, DEFINITIONS)}
    assigned = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    aliases = {(node.asname or node.name).split(".")[0] for node in nodes if imported and isinstance(node, ast.alias)}
    return defined | assigned | aliases


def declaration(tree: ast.Module) -> ast.Assign | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return node
    return None


def problems(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, what is wrong with the module's public names)."""
    nodes = list(module_level(tree))
    declared = declaration(tree)
    if declared is None:
        if any(name[0] != "_" for name in names_of(nodes, imported=False)):
            yield 1, "has public names but no __all__; declare it below the imports"
        return
    public = set(ast.literal_eval(declared.value))
    for name in sorted(public - names_of(nodes, imported=True)):
        yield declared.lineno, f"__all__ names {name}, which does not exist; remove it"
    for node in nodes:
        if isinstance(node, DEFINITIONS) and node.name[0] != "_" and node.name not in public:
            yield node.lineno, f"{node.name} is public but not in __all__; add it, or call it _{node.name}"


def violations(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{path}:{line}: {problem}"
        for path, text in sources.items()
        for line, problem in problems(ast.parse(text, path))
    ]


def test_public_names_are_declared(package_sources):
    found = violations(package_sources)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(): ...", "prune/bad.py:1: has public names but no __all__"),
        ("WIDTHS = (16, 32)", "prune/bad.py:1: has public names but no __all__"),
        ('__all__ = ["gone"]', "prune/bad.py:1: __all__ names gone, which does not exist"),
        ("__all__ = []\nclass C: ...", "prune/bad.py:2: C is public but not in __all__"),
    ],
)
def test_undeclared_name_is_found(text, message):
    assert [found.startswith(message) for found in violations({"prune/bad.py": text})] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import torch\n_SIZE = [x for x in (1, 2)]\nif True:\n    def _f(): x = 1",
        'from prune.cost import macs\n__all__ = ["macs"]',
        '__all__ = ["f"]\ntry:\n    from fast import f\nexcept ImportError:\n    def f(): ...',
    ],
)
def test_declared_or_private_names_pass(text):
    assert violations({"prune/good.py": text}) == []
