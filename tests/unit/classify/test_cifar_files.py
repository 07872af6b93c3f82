"""CIFAR in its original files: archives and folders, whole, damaged and hostile."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from cifar_archives import LAYOUTS, batches, files, write_archive, write_cifar

from classify.cifar_files import cifar_place, read_cifar


def expected(given, names):
    images, labels = zip(*(given[name] for name in names), strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.fixture
def unpacked(tmp_path):
    """Unpack an archive; return the folder in it."""

    def unpack(archive, num_classes):
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path, filter="data")
        return tmp_path / LAYOUTS[num_classes][0]

    return unpack


@pytest.mark.parametrize("num_classes", LAYOUTS)
@pytest.mark.parametrize("kind", ["archive", "folder", "folder with an archive", "folder with a folder"])
def test_images_labels_and_names_are_those_of_the_batches(num_classes, kind, tmp_path, unpacked):
    name = f"cifar-{num_classes}-python.tar.gz"
    given = write_cifar(tmp_path / name, num_classes)
    root = tmp_path / name if kind == "archive" else tmp_path
    if kind in ("folder", "folder with a folder"):
        folder = unpacked(tmp_path / name, num_classes)
        (tmp_path / name).unlink()
        root = folder if kind == "folder" else tmp_path
    for split, names in (("train", LAYOUTS[num_classes][1]), ("val", [LAYOUTS[num_classes][2]])):
        images, labels = expected(given, names)
        found = read_cifar(root, split)
        assert np.array_equal(found.images, images)
        assert found.labels.tolist() == labels.tolist()
        assert found.classes == tuple(f"name {i}" for i in range(num_classes))


def test_archive_and_folder_have_the_same_fingerprint(tmp_path, unpacked):
    write_cifar(tmp_path / "a.tar.gz", 10)
    folder = unpacked(tmp_path / "a.tar.gz", 10)
    assert read_cifar(folder, "val").fingerprint() == read_cifar(tmp_path / "a.tar.gz", "val").fingerprint()
    write_cifar(tmp_path / "b.tar.gz", 10, seed=1)
    assert read_cifar(folder, "val").fingerprint() != read_cifar(tmp_path / "b.tar.gz", "val").fingerprint()


def test_a_folder_without_cifar_is_none_and_one_with_two_is_refused(tmp_path):
    assert cifar_place(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"no CIFAR there; expected cifar-10-python\.tar\.gz or cifar-100"):
        read_cifar(tmp_path, "val")
    for num_classes in LAYOUTS:
        write_cifar(tmp_path / f"cifar-{num_classes}-python.tar.gz", num_classes)
    with pytest.raises(ValueError, match="holds CIFAR-10 and CIFAR-100; expected one of"):
        cifar_place(tmp_path)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_archive_is_refused(tmp_path, share):
    write_cifar(tmp_path / "a.tar.gz", 10)
    content = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"a\.tar\.gz: (cut short or damaged|lacks the file)"):
        read_cifar(tmp_path / "a.tar.gz", "val")


def test_a_file_that_is_missing_is_named(tmp_path, unpacked):
    entries = [(f"cifar-10-batches-py/{name}", content) for name, content in files(10, batches(10)).items()]
    write_archive(tmp_path / "a.tar.gz", [entry for entry in entries if not entry[0].endswith("_3")])
    message = "lacks the file cifar-10-batches-py/data_batch_3; expected cifar-10-python.tar.gz"
    with pytest.raises(ValueError, match=message):
        read_cifar(tmp_path / "a.tar.gz", "train")
    with pytest.raises(FileNotFoundError, match=r"data_batch_3: no such file; unpack cifar-10-python\.tar\.gz again"):
        read_cifar(unpacked(tmp_path / "a.tar.gz", 10), "train")


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def test_other_entries_of_an_archive_are_not_read_and_nothing_is_written(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    good = [(f"./cifar-10-batches-py/{name}", content) for name, content in files(10, batches(10)).items()]
    odd = [
        "../escaped",
        "/tmp/escaped-absolute",
        "cifar-10-batches-py/../../escaped",
        "../cifar-10-batches-py/test_batch",
    ]
    evil = [(name, b"evil") for name in odd]
    links = [link("cifar-10-batches-py/x", "/etc/passwd"), link("cifar-10-batches-py/../y", "../..")]
    write_archive(tmp_path / "a.tar.gz", [*evil, *links, *good, *evil])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    images, _ = batches(10)["test_batch"]
    assert np.array_equal(read_cifar(tmp_path / "a.tar.gz", "val").images, images)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert not os.path.exists("/tmp/escaped-absolute")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "cifar-10-batches-py/data_batch_1"])
def test_a_link_in_place_of_a_file_is_not_followed(kind, target, tmp_path):
    entries = {f"cifar-10-batches-py/{name}": content for name, content in files(10, batches(10)).items()}
    del entries["cifar-10-batches-py/test_batch"]
    write_archive(tmp_path / "a.tar.gz", [*entries.items(), link("cifar-10-batches-py/test_batch", target, kind)])
    with pytest.raises(ValueError, match="lacks the file cifar-10-batches-py/test_batch"):
        read_cifar(tmp_path / "a.tar.gz", "val")


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


FAULTS = {
    "runs": (pickle.dumps(Runs()), "test_batch is not plain data, got names posix.system; expected the original file"),
    "runs inside": (pickle.dumps({"data": [Runs()]}), "is not plain data, got names posix.system"),
    "empty": (b"", "test_batch is not plain data"),
    "no images": (pickle.dumps({"labels": [1]}, 2), "test_batch holds no images, got NoneType; expected uint8"),
    "other size": (
        pickle.dumps({"data": np.zeros((2, 9), np.uint8)}, 2),
        r"got uint8 \(2, 9\); expected uint8 \(N, 3072",
    ),
    "no labels": (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, 2), "lacks the list 'labels', got NoneType"),
    "few labels": (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, 2), "got 1; expected 2 whole"),
    "no label": (
        pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 2),
        "out of range, got 10; expected 0 to 9",
    ),
    "text": (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": ["1"]}, 2), "expected 1 whole numbers"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_batch_of_something_else_is_refused_and_nothing_runs(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = FAULTS[kind]
    entries = {**files(10, batches(10)), "test_batch": content}
    write_archive(tmp_path / "a.tar.gz", [(f"cifar-10-batches-py/{name}", c) for name, c in entries.items()])
    with pytest.raises(ValueError, match=message):
        read_cifar(tmp_path / "a.tar.gz", "val")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]
