"""CIFAR's archives in their original layout, with few images: pickles as Python 2 wrote them, in a compressed tar."""

import io
import struct
import tarfile

import numpy as np

LAYOUTS = {
    10: ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta"),
    100: ("cifar-100-python", ["train"], "test", "meta"),
}
"""Number of classes -> folder, training files, test file, file with the names."""


def python2_pickle(value):
    """Return what cPickle of Python 2 writes in protocol 2, without its memo; text is bytes."""
    return b"\x80\x02" + encoded(value) + b"."


def encoded(value):
    if isinstance(value, dict):
        return b"}(" + b"".join(encoded(part) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(encoded, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(encoded, value)) + b"t"
    if isinstance(value, bytes):
        return (b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<I", len(value))) + value
    if isinstance(value, np.ndarray):
        return encoded_array(value)
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    return b"J" + struct.pack("<i", value)


def encoded_array(array):
    kind = array.dtype.str[1:].encode()
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + encoded((0,)) + encoded(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + encoded((kind, 0, 1)) + b"R"
    dtype += encoded((3, array.dtype.str[:1].encode(), None, None, None, -1, -1, 0)) + b"b"
    return made + b"(" + encoded(1) + encoded(array.shape) + dtype + encoded(False) + encoded(array.tobytes()) + b"tb"


def batches(num_classes, num=4, seed=0):
    """Return (images (N, 32, 32, 3), labels) by file, of `num` images each."""
    _, train, test, _ = LAYOUTS[num_classes]
    rng = np.random.default_rng(seed)
    size = (num, 32, 32, 3)
    return {name: (rng.integers(0, 256, size, np.uint8), rng.integers(0, num_classes, num)) for name in (*train, test)}


def files(num_classes, given):
    """Return the content of every file of a layout by name."""
    made = {}
    for name, (images, labels) in given.items():
        rows = {b"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), b"filenames": [b"a.png"] * len(images)}
        kinds = [b"labels"] if num_classes == 10 else [b"coarse_labels", b"fine_labels"]
        by_kind = {kind: [int(v) // (5 if kind[:1] == b"c" else 1) for v in labels] for kind in kinds}
        made[name] = python2_pickle({b"batch_label": name.encode(), **by_kind, **rows})
    names = [b"name %d" % i for i in range(num_classes)]
    key = b"label_names" if num_classes == 10 else b"fine_label_names"
    made[LAYOUTS[num_classes][3]] = python2_pickle({b"num_vis": 3072, key: names})
    return made


def write_archive(path, entries):
    """Write a compressed tar of (name or TarInfo, content) pairs."""
    with tarfile.open(path, "w:gz") as tar:
        for entry, content in entries:
            info = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_cifar(path, num_classes, num=4, seed=0):
    """Write a whole archive; return what `batches` gave."""
    given, folder = batches(num_classes, num, seed), LAYOUTS[num_classes][0]
    write_archive(path, [(f"{folder}/{name}", content) for name, content in files(num_classes, given).items()])
    return given
