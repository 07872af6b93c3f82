import subprocess
import sys
from pathlib import Path

import pytest

from command import config
from command.config import Part, check_name, config_file, read_config, shipped_configs
from command.errors import MissingFileError, RequestError

ROOT = Path(__file__).parents[3]


class Named(Part):
    name: str = ""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A place where Espalier is installed, with one config and none of a checkout's folders."""
    folder = tmp_path / "site-packages" / "espalier" / "configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "small.py").write_text("name = 'installed'")
    monkeypatch.setattr(config, "_ROOT", tmp_path / "site-packages")
    return folder / "small.py"


def test_names_of_all_configs_are_unique_and_sorted_by_kind():
    files = list((ROOT / "configs").glob("*/*.py"))
    assert list(shipped_configs().values()) == sorted(files)


def test_config_is_found_by_name_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_file("quickstart") == ROOT / "configs/experiment/quickstart.py"


def test_config_of_an_installation_is_found_by_name(installed):
    assert config_file("small") == installed
    assert read_config("small", (), Named) == Named(name="installed")


def test_users_file_is_read_by_its_path(installed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text("name = 'mine'")
    assert read_config(Path("small.py"), (), Named).name == "mine"
    assert read_config("small", (), Named).name == "installed"


def test_users_folder_named_as_a_config_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").mkdir()
    assert config_file("quickstart") == ROOT / "configs/experiment/quickstart.py"


@pytest.mark.parametrize("name", ["quikstart", "quickstart.yaml", "configs/quickstart.py"])
def test_unknown_config_names_the_nearest(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError, match=rf"^{name}: no such file or config; .*nearest names are quickstart"):
        config_file(name)


def test_config_like_no_other_is_refused_with_the_command_that_lists_them():
    with pytest.raises(MissingFileError, match=r"^zzz: no such file or config; .*espalier configs lists the names$"):
        config_file("zzz")


def test_no_config_has_every_default_and_takes_overrides():
    assert read_config(None, (), Named) == Named()
    assert read_config(None, ["name=x"], Named) == Named(name="x")
    with pytest.raises(RequestError, match=r"^--set: unknown key nme; nearest valid ones: name$"):
        read_config(None, ["nme=x"], Named)


def test_wrong_key_is_reported_with_the_name_that_was_given():
    with pytest.raises(RequestError, match=r"^fp16: unknown key precision; nearest valid ones: name$"):
        read_config("fp16", (), Named)


def test_config_imports_nothing_that_it_names(tmp_path):
    (tmp_path / "c.py").write_text("custom_imports = dict(imports=['no_such_module'])\nname = 'x'")
    with pytest.raises(RequestError, match=r"unknown key custom_imports"):
        read_config(tmp_path / "c.py", (), Named)


def test_missing_mmengine_is_reported_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmengine", None)
    with pytest.raises(RequestError, match=r'^mmengine is not installed; .*: pip install "espalier\[train\]"$'):
        read_config("quickstart", (), Named)


def test_configs_are_found_without_mmengine():
    code = "import sys; sys.modules['mmengine'] = None\nfrom command.config import config_file; config_file('fp16')"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_known_name_is_returned_and_another_refused():
    assert check_name("a", ["a", "b"]) == "a"
    with pytest.raises(RequestError, match=r"^unknown, got 'c'; expected one of a, b$"):
        check_name("c", ["b", "a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\nsys.exit('bye')\n", "c.py: cannot be read, got bye; expected Python"),
        ("raise KeyboardInterrupt\n", "c.py: cannot be read, got KeyboardInterrupt; expected Python"),
        ("class A: pass\nname = A()\n", "c.py: unknown key A"),
        ("_base_ = 'evil.yaml'\n", "c.py: cannot be read, got could not determine a constructor"),
    ],
)
def test_a_config_that_does_more_than_set_keys_is_one_line(tmp_path, text, message):
    (tmp_path / "evil.yaml").write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n")
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(RequestError, match=message):
        read_config(tmp_path / "c.py", (), Named)
    assert not (tmp_path / "ran").exists()


def test_a_function_as_a_value_is_no_key(tmp_path):
    (tmp_path / "c.py").write_text("name = lambda: 3\n")  # mmengine drops it
    assert read_config(tmp_path / "c.py", (), Named) == Named()
