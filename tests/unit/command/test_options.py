import ast
import shlex

import pytest

from command.errors import RequestError
from command.options import check_one_form, closing, refuse_existing, setting


@pytest.mark.parametrize(
    ("entries", "is_refused"),
    [([".lock", ".partial"], False), ([".lock"], False), ([], True), ([".lock", ".partial", "model.onnx"], True)],
)
def test_what_a_killed_process_left_of_a_folder_does_not_exist(tmp_path, entries, is_refused):
    (tmp_path / "out").mkdir()
    for name in entries:
        (tmp_path / "out" / name).touch()
    if is_refused:
        with pytest.raises(ValueError, match="out: exists already; give another --out, or --force"):
            refuse_existing(False, tmp_path / "out")
    else:
        refuse_existing(False, tmp_path / "out")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("it's", 'a.b="it\'s"'),
        (("x", "y"), 'a.b=("x", "y",)'),
        (
            {"root": "my set", "strict": False, "n": 1, "at": None},
            'a.b={"root": "my set", "strict": False, "n": 1, "at": None}',
        ),
        (0.5, "a.b=0.5"),
    ],
)
def test_a_setting_is_read_as_it_was_written(value, text):
    assert setting("a.b", value) == text
    assert ast.literal_eval(text.partition("=")[2]) == value


def test_the_next_command_can_be_pasted_whatever_a_path_holds(tmp_path, capsys):
    words = ["espalier", "deploy", "export", tmp_path / "my $net's; x.safetensors"]
    closing("done", words)
    assert shlex.split(capsys.readouterr().err.splitlines()[-1]) == ["next:", *map(str, words)]


def test_one_output_format_may_be_chosen_at_a_time():
    check_one_form(json=True, csv=False, latex=False)
    with pytest.raises(RequestError, match="--json --latex: more than one output format, got 2; expected one"):
        check_one_form(json=True, csv=False, latex=True)
