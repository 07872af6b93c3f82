import pytest

from command.options import refuse_existing


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
