import re
import shutil
import subprocess

import pytest
from rich.table import Table
from rich.text import Text

from deploy.text import latex, latex_from_rich, latex_table, printable

COMMANDS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\char34{}": '"',
}
TOKEN = re.compile(r"\\(?:text[a-z]+|char34)\{\}|\\[{}$&#_%]|\{[\[\]*]?\}|.", re.DOTALL)


def typeset(text):
    """Return what LaTeX prints for escaped text; fail at a letter that it would take for a command."""
    printed = []
    for token in TOKEN.findall(text):
        assert token not in {*"\\{}$&#_%~^"}, f"{token!r} is not escaped"
        printed.append(COMMANDS.get(token, token[1:] if token[0] == "\\" else token.strip("{}")))
    return "".join(printed)


def test_a_name_reads_as_it_is(hostile):
    assert typeset(latex(hostile)) == printable(hostile)


@pytest.mark.parametrize("text", ["a--b", "---", "``a''", "a,,b", "?`", "!`"])
def test_letters_are_not_joined(text):
    assert latex(text).replace("{}", "") == text
    assert not re.search("--|``|''|,,|[?!]`", latex(text))


def test_a_table_is_one_row_a_line():
    table = latex_table(["name", "ms"], "lr", [["a_b & c", "1.5"], ["[x]", "-2.0"]], ["100 %", "two\nlines"])
    assert table.splitlines() == [
        "% 100 %",
        r"% two\nlines",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"name & ms \\",
        r"\midrule",
        r"a\_b \& c & 1.5 \\",
        r"{[}x{]} & -2.0 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_a_terminal_table_keeps_its_cells_and_sides():
    table = Table(title=Text("measured on\nCPU_1"), caption="note")
    table.add_column("layer")
    table.add_column("ms", justify="right")
    table.add_row(Text("[red]a"), "1")
    lines = latex_from_rich(table).splitlines()
    assert lines[:4] == ["% measured on", "% CPU_1", "% note", r"\begin{tabular}{lr}"]
    assert r"{[}red{]}a & 1 \\" in lines


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_takes_the_table(hostile, tmp_path):
    name = hostile[:100]
    if not printable(name).isascii():
        pytest.skip("pdflatex has Latin letters only")
    body = latex_table([name, name], "lr", [[name, "1"], ["*", name], ["[x]", name]], [name])
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "page.tex"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert ended.returncode == 0, ended.stdout[-2000:]
    assert (tmp_path / "page.pdf").is_file()
