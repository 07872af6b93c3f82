import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from classify.augmentation import centre_crops
from classify.data import image_folder
from deploy.detector import as_rgb
from deploy.images import image_contents, image_from_file
from deploy.pictures import input_files
from deploy.video import open_video

PIXELS = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)


def encoded(kind, image=None, **options):
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, kind, **options)
    return file.getvalue()


def png_of(width, height):
    """A PNG that declares a size and holds no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


WHOLE = {
    **{kind: encoded(kind) for kind in ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")},
    "CMYK": encoded("JPEG", Image.fromarray(PIXELS).convert("CMYK")),
    "palette": encoded("PNG", Image.fromarray(PIXELS).convert("P"), transparency=b"\0\1\2"),
    "16 bits": encoded("PNG", Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257)),
}
BAD_TIFF = bytearray(encoded("TIFF", compression="tiff_lzw"))
BAD_TIFF[1000:1050] = bytes(50)


@pytest.fixture
def image_fault(tmp_path):
    """Return why the bytes of an image cannot be used, or None."""

    def fault(data):
        (tmp_path / "image").write_bytes(data)
        try:
            image_contents([tmp_path / "image"])
        except ValueError as error:
            return str(error).removeprefix(f"{tmp_path / 'image'}: ")
        return None

    return fault


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_image_has_no_fault(image_fault, kind):
    assert image_fault(WHOLE[kind]) is None


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("cut", [1, 20, 400])
def test_an_image_cut_short_has_a_fault(image_fault, kind, cut):
    assert image_fault(WHOLE[kind][:-cut]).startswith(("cut short", "does not decode"))


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "does not decode, got an empty file; expected a complete image"),
        (b"no image", "does not decode, got 8 bytes of another kind; expected a complete image"),
        (encoded("EPS"), "does not decode, got"),  # Pillow would start Ghostscript
        (png_of(20_000, 9_000), "has too many pixels, got 180,000,000; expected at most 178,956,970, scale it down"),
        (png_of(10_000, 10_000), "cut short or damaged, got image file is truncated"),
        (bytes(BAD_TIFF), "cut short or damaged, got decoder error"),
    ],
)
def test_why_an_image_cannot_be_used(image_fault, data, fault):
    assert image_fault(data).startswith(fault)


def odd_jpeg():
    data = bytearray(WHOLE["JPEG"])
    data[-2:-2] = b"odd bytes before the end"  # which libjpeg reports and skips
    return bytes(data)


def test_a_command_keeps_the_words_of_libraries_off_the_terminal(tmp_path):
    (tmp_path / "odd.jpg").write_bytes(odd_jpeg())
    (tmp_path / "odd.tif").write_bytes(bytes(BAD_TIFF))
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")  # from 89 million pixels Pillow warns
    code = """
import sys
from pathlib import Path
from command.errors import RequestError, exit_code_of
from classify.data import image_folder
from deploy.detector import as_rgb
from deploy.images import image_contents, image_from_file

def read():
    image_contents([Path("odd.jpg"), Path("large.png")])
    image_from_file("odd.jpg")
    print("ours", file=sys.stderr)
    image_contents([Path("odd.tif")])

sys.exit(exit_code_of(read))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    ours, last = run.stderr.splitlines()
    assert (run.returncode, ours) == (2, "ours")
    assert last.startswith("espalier: odd.tif: cut short or damaged, got ")


def test_an_orientation_that_is_text_is_ignored(image_fault):
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHI4sI", 8, 1, 274, 2, 4, b"abc\0", 0)
    assert image_fault(encoded("JPEG", exif=exif)) is None


def test_an_image_that_only_pillow_decodes_is_refused(image_fault):
    floats = Image.fromarray(PIXELS[..., 0].astype(np.float32))
    assert image_fault(encoded("TIFF", floats)).startswith("does not decode in OpenCV, got TIFF of mode F")


@pytest.mark.parametrize("kind", ["CMYK", "palette", "16 bits"])
def test_other_kinds_of_pixels_become_rgb_bytes(tmp_path, kind):
    (tmp_path / "image").write_bytes(WHOLE[kind])
    image = image_from_file(tmp_path / "image")
    assert (image.shape, image.dtype) == ((30, 40, 3), np.uint8)
    if kind == "16 bits":
        np.testing.assert_array_equal(image[..., 0], PIXELS[..., 0])


def make_pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_pipe, "a.jpg: not a regular file, got prw"),
        (lambda path: path.mkdir(), "a.jpg: not a regular file, got drw"),
        (lambda path: path.touch(), "a.jpg: does not decode, got an empty file"),
        (lambda path: path.write_bytes(WHOLE["JPEG"][:-9]), "a.jpg: cut short or damaged"),
        (lambda path: path.write_bytes(b"#EXTM3U\n"), "a.jpg: does not decode, got 8 bytes of another kind"),
    ],
)
def test_inputs_are_checked_before_any_is_processed(tmp_path, make, message):
    make(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=message):
        input_files([tmp_path])


def test_a_wrong_ending_does_not_matter(tmp_path):
    (tmp_path / "a.jpg").write_bytes(WHOLE["PNG"])
    assert input_files([tmp_path]) == [tmp_path / "a.jpg"]


@pytest.mark.parametrize("content", [b"#EXTM3U\n#EXTINF:1,\nother.ts\n", b"ffconcat version 1.0\nfile other.mp4\n"])
def test_a_list_of_other_files_is_not_a_video(tmp_path, content):
    (tmp_path / "list.mp4").write_bytes(content)
    with pytest.raises(ValueError, match=r"list\.mp4: does not decode; expected a video"):
        open_video(tmp_path / "list.mp4")


@pytest.mark.parametrize("start", [b"", b"RIFF", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypisom", b"\0\0\0\x08moov"])
def test_a_damaged_video_is_refused(tmp_path, start):
    (tmp_path / "film.mp4").write_bytes(start + bytes(100))
    with pytest.raises(ValueError, match=r"film\.mp4: does not decode; expected a video"):
        open_video(tmp_path / "film.mp4")


GRAY, ALPHA = Image.fromarray(PIXELS[..., 0]), Image.fromarray(PIXELS[..., 1])
SIXTEEN = Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 256 + 255)
MODES = {
    "1": (GRAY.convert("1"), "PNG"),
    "L": (GRAY, "PNG"),
    "LA": (Image.merge("LA", [GRAY, ALPHA]), "PNG"),
    "P": (Image.fromarray(PIXELS).quantize(64), "PNG"),
    "P with transparency": (Image.fromarray(PIXELS).quantize(64), "PNG"),
    "RGB": (Image.fromarray(PIXELS), "PNG"),
    "RGBA": (Image.merge("RGBA", [*Image.fromarray(PIXELS).split(), ALPHA]), "PNG"),
    "CMYK": (Image.fromarray(PIXELS).convert("CMYK"), "TIFF"),
    "I;16": (SIXTEEN, "PNG"),
    "I;16 in a TIFF": (SIXTEEN, "TIFF"),
}


def in_every_use(mode, folder):
    """Return the pixels that a reader of files, a classifier and a detector given Pillow's image see."""
    image, kind = MODES[mode]
    path = folder / "val/a" / f"x.{kind.lower()}"
    path.parent.mkdir(parents=True)
    image.save(path, kind, **({"transparency": 3} if "transparency" in mode else {}))
    tensor, _ = image_folder(folder, "val", centre_crops(30))[0]
    with Image.open(path) as opened:
        given = as_rgb(opened, "image")
    whole = image_from_file(path)
    return whole, tensor.permute(1, 2, 0).numpy(), given


@pytest.mark.parametrize("mode", MODES)
def test_every_use_sees_the_same_pixels_whatever_the_mode(mode, tmp_path):
    whole, classified, given = in_every_use(mode, tmp_path)
    expected = np.stack([PIXELS[..., 0]] * 3, axis=2) if mode.startswith("I;16") else MODES[mode][0].convert("RGB")
    assert np.array_equal(whole, expected)
    assert np.array_equal(classified, whole[:, 5:35])  # the centre
    assert np.array_equal(given, whole)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_an_image_whose_white_nobody_knows_is_refused(detector, kind):
    with pytest.raises(
        ValueError, match=r"images\[0\]: not 8 or 16 bits a channel, got a PIL image of mode [IF]; scale"
    ):
        detector([Image.fromarray(PIXELS[..., 0].astype(kind))])


def test_a_png_whose_chunks_do_not_lead_to_its_end_is_refused(image_fault):
    data = bytearray(WHOLE["PNG"])
    data[33] = 255  # of the length of the pixels' chunk: Pillow does not need it, OpenCV takes as much memory
    assert image_fault(bytes(data)).startswith("cut short, got a PNG without its end")
