"""Reads damaged image files, and damaged notes of what is in them."""

import io
import random
import sqlite3
import struct
import time
import zlib
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import damaged
from PIL import Image

from classify.augmentation import centre_crops
from classify.data import check_folder, fingerprint, image_folder
from command.files import sha256_of
from deploy.images import ImageContent, image_contents, image_from_file

FEW = settings(max_examples=max(5, settings.default.max_examples // 5))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # lies on its side
KINDS = {
    "png": {},
    "png-exif": {"exif": EXIF},
    "jpg": {"exif": EXIF},
    "jpg-progressive": {"progressive": True},
    "bmp": {},
    "tif": {"compression": "tiff_lzw"},
    "tif-jpeg": {"compression": "jpeg"},
    "webp": {"exif": EXIF},
    "ppm": {},
    "jp2": {},
    "gif": {},
}


def image_bytes(kind):
    """Return a small image of a format."""
    name = kind.partition("-")[0]
    image = Image.frombytes("RGB", (24, 16), random.Random(0).randbytes(24 * 16 * 3))
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{name}"], **KINDS[kind])
    return file.getvalue()


def with_checksums(data):
    """Return a PNG whose checksums are right again, so that its content is looked at."""
    made, place = bytearray(data[:8]), 8
    while place + 12 <= len(data):
        size = struct.unpack(">I", data[place : place + 4])[0]
        chunk = data[place + 4 : place + 8 + size]
        made += struct.pack(">I", size) + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + size
    return bytes(made) + data[place:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder whose one validation image is to be replaced."""
    root = tmp_path_factory.mktemp("images")
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(root / split / "cat" / "a.png")
    return root


def use(root):
    """Check an image folder and load its image as a training and a report do."""
    check_folder(root)
    fingerprint(root, "val")
    return image_folder(root, "val", centre_crops(8))[0], image_from_file(root / "val/cat/a.png")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damaged_image_is_used_or_refused(kind, data, folder, safely):
    content = data.draw(damaged(image_bytes(kind)))
    if kind.startswith("png") and data.draw(st.booleans()):
        content = with_checksums(content)
    path = folder / "val/cat/a.png"
    path.write_bytes(content)
    if safely(image_contents, [path]):
        assert safely(use, folder)
    safely(image_from_file, path)


@pytest.fixture(scope="module")
def remembered(tmp_path_factory):
    """Return an image, the database that remembers it, and the valid content of that database."""
    root = tmp_path_factory.mktemp("cache")
    image, database = root / "a.png", root / "espalier/contents.sqlite"
    Image.new("RGB", (8, 6)).save(image)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root))
        time.sleep(2.1)  # a file that was just made is not remembered
        image_contents([image])
        assert database.stat().st_size > 0
        yield image, database, database.read_bytes()


@FEW
@given(data=st.data())
def test_damaged_notes_change_nothing(data, remembered, safely):
    image, database, valid = remembered
    database.write_bytes(data.draw(damaged(valid)))
    assert safely(image_contents, [image]) == [ImageContent(sha256_of(image), (8, 6))]


@FEW
@given(
    column=st.sampled_from(["path", "sha256", "about", "seal"]),
    value=st.text(st.characters(codec="utf-8")) | st.integers(-1, 2**62) | st.binary() | st.floats(allow_nan=False),
)
def test_changed_notes_change_nothing(column, value, remembered, safely):
    image, database, valid = remembered
    database.write_bytes(valid)
    with closing(sqlite3.connect(database)) as notes, notes:
        notes.execute(f"UPDATE files SET {column} = ?", (value,))
    assert safely(image_contents, [image]) == [ImageContent(sha256_of(image), (8, 6))]
