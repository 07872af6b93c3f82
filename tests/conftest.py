import sys

import pytest

from experiment.cli import main


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `main` as the shell would; return exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["espalier", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    return run
