import datetime
import logging
import re
import resource
import socket
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

from command.errors import RequestError, WorkError

CACHE = Path(__file__).parents[2] / ".pytest_cache/fuzz"
MOST_BYTES = 2**31
"""That a reader may take, besides what the process has already."""

set_hypothesis_home_dir(CACHE)
# fixtures live as long as the test: they have to be clean, not new, for every example
shared = {"suppress_health_check": list(HealthCheck), "deadline": datetime.timedelta(seconds=20), "print_blob": True}
settings.register_profile("few", max_examples=5, derandomize=True, database=None, **shared)
settings.register_profile("fuzz", max_examples=500, **shared)
settings.load_profile("few")


@contextmanager
def little_memory():
    """Let this process take no more than `MOST_BYTES` in the block, where the system can tell what it has."""
    if not Path("/proc/self/statm").exists():
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MOST_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def ran(tmp_path):
    """A file that exists if something planted in a file was executed."""
    return tmp_path / "ran"


@pytest.fixture
def safely(ran, capsys, monkeypatch):
    """Call a reader: it returns a value or raises one of our errors, and does nothing else that one could notice."""
    connections = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: connections.append(address))

    def call(read, *arguments):
        monkeypatch.setattr(logging.root, "handlers", [])  # pytest's would hide what is printed otherwise
        value = message = None
        with little_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as commands do
            try:
                value = read(*arguments)
            except (RequestError, WorkError) as error:
                message = " ".join(str(error).split())
        assert message is None or re.match(r".+: .", message)
        assert capsys.readouterr() == ("", "")
        assert not connections
        assert not ran.exists()
        return value

    return call
