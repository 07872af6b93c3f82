import numpy as np
import pytest

from classify.arrays import common_classes, labelled_arrays, read_npz

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 6, 3), np.uint8)
LABELS = np.array([0, 2, 1, 2, 0])


@pytest.fixture
def written(tmp_path):
    def write(**arrays):
        np.savez_compressed(tmp_path / "a.npz", **arrays)
        return tmp_path / "a.npz"

    return write


@pytest.mark.parametrize("dtype", ["u1", "i8", ">i4", "u8"])
def test_images_and_labels_of_any_whole_numbers_are_read(written, dtype):
    found = read_npz(written(images=IMAGES, labels=LABELS.astype(dtype)))
    assert np.array_equal(found.images, IMAGES)
    assert (found.labels.dtype, found.labels.tolist(), found.classes) == (np.int64, LABELS.tolist(), ())


def test_names_are_those_in_the_file(written):
    assert read_npz(written(images=IMAGES, labels=LABELS, classes=["owl", "wren", "jay"])).classes == (
        *("owl", "wren", "jay"),
    )


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, r"a\.npz: lacks the array 'labels', got images; expected a \.npz file of images"),
        ({"images": IMAGES / 255, "labels": LABELS}, r"images are not RGB bytes, got float64 \(5, 8, 6, 3\)"),
        ({"images": IMAGES[..., 0], "labels": LABELS}, r"got uint8 \(5, 8, 6\); expected uint8 \(N, H, W, 3\)"),
        ({"images": IMAGES.transpose(0, 3, 1, 2), "labels": LABELS}, r"got uint8 \(5, 3, 8, 6\)"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, r"got uint8 \(0, 8, 6, 3\)"),
        ({"images": IMAGES, "labels": LABELS[:4]}, r"not one label for each image, got int64 \(4,\).*\(5,\)"),
        ({"images": IMAGES, "labels": LABELS * 1.0}, r"not one label for each image, got float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "a label is out of range, got -1; expected 0 to "),
        (
            {"images": IMAGES, "labels": LABELS, "classes": ["a", "b"]},
            "a label is out of range, got 2; expected 0 to 1",
        ),
        (
            {"images": IMAGES, "labels": LABELS, "classes": [1, 2, 3]},
            r"not a list of different names, got int64 \(3,\)",
        ),
        ({"images": IMAGES, "labels": LABELS, "classes": ["a", "b", "a"]}, "not a list of different names"),
        ({"images": IMAGES, "labels": np.array([None] * 5)}, "cannot be read, got Object arrays cannot be loaded"),
    ],
)
def test_other_arrays_are_refused(written, arrays, message):
    with pytest.raises(ValueError, match=message):
        read_npz(written(**arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz: cannot be read, got .*; expected a \.npz file"):
        read_npz(tmp_path / "a.npz")


def test_one_array_alone_and_a_missing_file_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    with pytest.raises(ValueError, match="cannot be read, got one array without a name"):
        read_npz(tmp_path / "a.npy")
    with pytest.raises(FileNotFoundError, match=r"b\.npz: no such file; expected a \.npz file"):
        read_npz(tmp_path / "b.npz")


def test_a_header_that_asks_for_all_memory_is_refused(tmp_path, written):
    content = written(images=IMAGES, labels=LABELS).with_name("b.npz")
    np.savez(content, images=IMAGES, labels=LABELS)
    content.write_bytes(content.read_bytes().replace(b"(5, 8, 6, 3), }        ", b"(5, 8, 6, 3000000000000)"[:23]))
    with pytest.raises(ValueError, match=r"b\.npz: "):
        read_npz(content)


def part(labels, *classes):
    return labelled_arrays("a", np.zeros((len(labels), 2, 2, 3), np.uint8), np.array(labels), classes)


def test_classes_are_numbered_by_the_labels_or_named_by_one_part():
    assert common_classes("a", part([0, 1]), part([3])) == ("class 0", "class 1", "class 2", "class 3")
    assert common_classes("a", part([0, 1]), part([1], "x", "y", "z")) == ("x", "y", "z")


@pytest.mark.parametrize("other", [part([0], "y", "x"), part([2])])
def test_parts_with_other_classes_are_refused(other):
    with pytest.raises(ValueError, match="a: train and val differ in their classes"):
        common_classes("a", part([0, 1], "x", "y"), other)


def test_a_fingerprint_is_of_images_labels_and_names():
    prints = [part([0, 1]), part([1, 0]), part([0, 1], "a", "b"), part([0, 1], "a", "c"), part([0, 1, 1])]
    assert len({one.fingerprint() for one in prints}) == 5
    assert part([0, 1]).fingerprint() == prints[0].fingerprint()
