import pytest

from command.folders import locked


def test_a_folder_is_held_by_one_run_at_a_time(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by another run"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass  # free again
