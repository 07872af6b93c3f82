"""Pickles of arrays and plain values are read, and nothing in any other is run."""

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
from cifar_archives import encoded, python2_pickle

from classify.plain_pickle import NOT_PLAIN, plain_pickle

ARRAY = np.arange(24, dtype=np.uint8).reshape(2, 12)
HELD = {b"data": ARRAY, b"labels": [3, 255, 70_000], b"filenames": [b"a.png", b"\xe9" * 300], b"one": 1}


def check_held(found):
    assert found.keys() == {"data", "labels", "filenames", "one"}
    assert found["data"].dtype == np.uint8
    assert found["data"].tolist() == ARRAY.tolist()
    assert (found["labels"], found["one"]) == (HELD[b"labels"], 1)


def test_what_python_2_wrote_is_read_as_pickle_itself_reads_it():
    content = python2_pickle(HELD)
    theirs = pickle.loads(content, encoding="bytes")  # noqa: S301  # written above
    assert theirs[b"filenames"] == HELD[b"filenames"]
    assert theirs[b"data"].tolist() == ARRAY.tolist()
    check_held(plain_pickle(content))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_what_python_3_writes_is_read(protocol):
    check_held(plain_pickle(pickle.dumps({name.decode(): value for name, value in HELD.items()}, protocol)))


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", "|i1"])
def test_arrays_of_any_whole_numbers_and_order_are_read(dtype):
    array = np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype))
    found = plain_pickle(pickle.dumps({"a": array}, 2))["a"]
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def calling(function, arguments, after=b""):
    """A pickle of a dictionary that calls what it names for a value."""
    return b"\x80\x02}" + encoded(b"data") + function + encoded(arguments) + b"R" + after + b"s."


TOUCH = (b"touch ran",)
HOSTILE = {
    "reduce": lambda: pickle.dumps(Runs(os.system, "touch ran")),
    "reduce inside": lambda: pickle.dumps({"data": [[{"x": Runs(os.system, "touch ran")}]]}),
    "reduce with ours around": lambda: pickle.dumps(OrderedDict(data=1)),
    "eval": lambda: pickle.dumps({"data": Runs(eval, "open('ran', 'w')")}),
    "global": lambda: calling(named("os", "system"), TOUCH),
    "python 2 names": lambda: calling(named("__builtin__", "eval"), (b"open('ran', 'w')",)),
    "below numpy": lambda: calling(named("numpy", "load"), (b"ran",)),
    "dotted": lambda: calling(b"\x8c\x05numpy\x8c\x0endarray.tofile\x93", (ARRAY, b"ran")),
    "dotted module": lambda: calling(b"\x8c\x05numpy\x8c\x09os.system\x93", TOUCH),
    "numpy's own eval": lambda: calling(named("numpy.core.multiarray", "__builtins__"), TOUCH),
    "getattr": lambda: calling(named("builtins", "getattr"), (b"", b"__class__")),
    "inst": lambda: b"(" + encoded(b"touch ran") + b"ios\nsystem\n.",
    "obj": lambda: b"(" + named("os", "system") + encoded(b"touch ran") + b"o.",
    "newobj": lambda: named("numpy", "dtype") + encoded((b"O",)) + b"\x81.",
    "extension": lambda: b"\x80\x02\x82\x01.",
    "persistent": lambda: b"\x80\x02" + encoded(b"ran") + b"Q.",
    "another reconstruct": lambda: calling(named("copyreg", "_reconstructor"), (b"", b"", None)),
    "objects": lambda: pickle.dumps({"data": np.array([Runs(os.system, "touch ran")], object)}),
    "text": lambda: pickle.dumps({"data": np.array(["a"])}),
    "dtype alone": lambda: calling(named("numpy", "dtype"), (b"u1", 0, 1)),
    "no state": lambda: calling(named("numpy.core.multiarray", "_reconstruct"), ((b"", (0,), b"b"))),
    "wrong size": lambda: python2_pickle({b"data": ARRAY}).replace(encoded((2, 12)), encoded((2, 13))),
    "state of a name": lambda: b"\x80\x02}" + encoded(b"data") + named("numpy", "dtype") + b"}" + b"bs.",
    "large buffer": lambda: b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b".",
    "large memo": lambda: b"\x80\x02Nr\xff\xff\xff\x7f.",
    "list": lambda: python2_pickle([1]),
    "cut short": lambda: python2_pickle(HELD)[:-40],
    "empty": lambda: b"",
    "text file": lambda: b"<html>not found</html>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_else_is_refused_and_not_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NOT_PLAIN):
        plain_pickle(HOSTILE[kind]())
    assert list(tmp_path.iterdir()) == []


def test_no_module_is_imported(monkeypatch):
    monkeypatch.setattr("builtins.__import__", lambda *_: pytest.fail("imported"))
    with pytest.raises(NOT_PLAIN, match=r"names os\.system"):
        plain_pickle(calling(named("os", "system"), TOUCH))
