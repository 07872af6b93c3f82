"""Reads damaged `.npz` files, CIFAR's archives, and the pickles in them."""

import io

import numpy as np
import pytest
from cifar_archives import batches, files, write_archive, write_cifar
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged

from classify.arrays import read_npz
from classify.cifar_files import read_cifar
from classify.plain_pickle import NOT_PLAIN, plain_pickle
from command.errors import RequestError


def npz_bytes(save):
    file = io.BytesIO()
    save(file, images=np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3), labels=[0, 1], classes=["a", "b"])
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@given(data=st.data())
def test_damaged_npz_is_used_or_refused(save, data, tmp_path_factory, safely):
    path = tmp_path_factory.getbasetemp() / "a.npz"
    path.write_bytes(data.draw(damaged(npz_bytes(save))))
    safely(read_npz, path)


@given(data=st.data())
def test_damaged_archive_is_used_or_refused(data, tmp_path_factory, safely):
    path = tmp_path_factory.getbasetemp() / "a.tar.gz"
    write_cifar(path, 10, num=1)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    safely(read_cifar, path, "val")


@given(data=st.data())
def test_damaged_entries_are_used_or_refused(data, tmp_path_factory, safely):
    path, content = tmp_path_factory.getbasetemp() / "b.tar.gz", files(10, batches(10, num=1))
    for name in ("test_batch", "batches.meta"):
        content[name] = data.draw(damaged(content[name]))
    write_archive(path, [(f"cifar-10-batches-py/{name}", entry) for name, entry in content.items()])
    safely(read_cifar, path, "val")


def read_pickle(content):
    try:
        plain_pickle(content)
    except NOT_PLAIN as error:
        raise RequestError(f"a: {error!r}") from error


@given(content=st.binary(max_size=60))
def test_any_bytes_are_plain_data_or_refused(content, safely):
    safely(read_pickle, b"\x80\x02" + content)
