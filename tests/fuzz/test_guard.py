"""The fixture `safely`, on which all tests of this folder rely, notices what readers must not do."""

import socket
import sys

import pytest

from command.errors import RequestError


def refuse(message):
    raise RequestError(message)


def test_value_is_returned_and_one_of_our_errors_is_none(safely):
    assert safely(len, "ab") == 2
    assert safely(refuse, "a.json: damaged,\ngot b; write it again") is None


@pytest.mark.parametrize(
    "read",
    [
        lambda: print("read"),  # noqa: T201
        lambda: socket.socket().connect(("localhost", 1)),
        lambda: refuse("damaged"),
        lambda: refuse(""),
    ],
)
def test_reader_that_does_something_else_is_noticed(read, safely):
    with pytest.raises(AssertionError):
        safely(read)


def test_payload_that_runs_is_noticed(ran, safely):
    with pytest.raises(AssertionError, match="ran"):
        safely(ran.touch)


def test_other_errors_and_large_memory_are_noticed(safely):
    with pytest.raises(KeyError, match="a"):
        safely({}.__getitem__, "a")
    if sys.platform == "linux":
        with pytest.raises(MemoryError):
            safely(bytearray, 2**33)
