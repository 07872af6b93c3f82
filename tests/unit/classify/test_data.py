import copy
import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from classify.augmentation import Augmentation, centre_crops
from classify.data import check_folder, class_names, fingerprint, image_folder
from command.notes import note


def make_folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def save_images(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / name)
    return root


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("image_size", [16, 48])
@pytest.mark.parametrize("kind", [Augmentation().crops, Augmentation(padding=4).crops, centre_crops])
def test_images_are_bytes_of_the_requested_size(shapes, split, image_size, kind):
    images = [image for image, _ in image_folder(shapes, split, kind(image_size))]
    assert {(image.dtype, tuple(image.shape)) for image in images} == {(torch.uint8, (3, image_size, image_size))}


@pytest.mark.parametrize(("mode", "size_wh"), [("L", (40, 20)), ("RGBA", (20, 40)), ("P", (5, 5))])
def test_any_picture_becomes_rgb(tmp_path, mode, size_wh):
    folder = make_folders(tmp_path, "val/a") / "val/a"
    Image.new(mode, size_wh, 7 if mode != "RGBA" else (7, 7, 7, 255)).save(folder / "x.png")
    image, label = image_folder(tmp_path, "val", centre_crops(16))[0]
    assert (image.shape, label) == ((3, 16, 16), 0)


def test_validation_images_are_not_augmented(shapes):
    data = image_folder(shapes, "val", centre_crops(24))
    assert torch.equal(data[5][0], data[5][0])


def test_training_images_are_augmented_and_follow_the_seed(shapes):
    data = image_folder(shapes, "train", Augmentation().crops(24))
    torch.manual_seed(0)
    first, second = data[0][0], data[0][0]
    torch.manual_seed(0)
    assert not torch.equal(first, second)
    assert torch.equal(data[0][0], first)


def test_folder_with_both_splits_passes(tmp_path):
    root = save_images(tmp_path, "train/b/x.png", "train/a/x.png", "val/a/x.png", "val/b/deeper/x.JPG")
    check_folder(root)
    assert class_names(root) == ("a", "b")


def test_validation_may_be_spelled_out(tmp_path):
    check_folder(save_images(tmp_path, "train/a/x.png", "validation/a/x.png"))
    assert len(image_folder(tmp_path, "val", centre_crops(8))) == 1


@pytest.mark.parametrize(("present", "missing"), [("train/a", "val"), ("val/a", "train")])
def test_missing_split_is_refused(tmp_path, present, missing):
    make_folders(tmp_path, present)
    with pytest.raises(FileNotFoundError, match=f"{missing}: no such folder; expected .* train/ and val/"):
        check_folder(tmp_path)


def test_split_without_class_folders_is_refused(tmp_path):
    make_folders(tmp_path, "train", "val/a")
    (tmp_path / "train/a.png").touch()
    with pytest.raises(ValueError, match="train: holds no class folders"):
        check_folder(tmp_path)


def test_splits_with_different_classes_are_refused(tmp_path):
    make_folders(tmp_path, "train/a", "train/b", "val/a", "val/c")
    with pytest.raises(ValueError, match=r"got 2 in train \(b there alone\) and 2 in val \(c there alone\)"):
        check_folder(tmp_path)


def test_a_class_may_be_empty_and_is_named(tmp_path, capsys):
    note.cache_clear()
    make_folders(save_images(tmp_path, "train/b/x.png", "val/b/x.png"), "train/a", "val/a")
    check_folder(tmp_path)
    assert "train: 1 classes have no images, first a" in capsys.readouterr().err
    assert [label for _, label in image_folder(tmp_path, "train", Augmentation().crops(8))] == [1]


@pytest.mark.parametrize(("full", "empty"), [("train", "val"), ("val", "train")])
def test_a_split_without_images_is_refused(tmp_path, full, empty):
    save_images(tmp_path, f"{full}/a/x.png", f"{empty}/outside.png")
    (make_folders(tmp_path, f"{empty}/a") / empty / "a/notes.txt").touch()
    with pytest.raises(ValueError, match=f"{empty}: holds no images, got empty class folders; expected images"):
        check_folder(tmp_path)


def test_a_fingerprint_is_of_the_images_of_one_split(tmp_path):
    roots = [save_images(tmp_path / name, "train/a/x.png", "val/a/x.png") for name in "ab"]
    before = fingerprint(roots[0], "val")
    assert fingerprint(roots[1], "val") == before
    (roots[0] / "model.safetensors").touch()
    (roots[0] / "val/a/notes.txt").touch()
    (roots[0] / "train/a/x.png").unlink()
    assert fingerprint(roots[0], "val") == before
    (roots[0] / "val/a/x.png").rename(roots[0] / "val/a/y.png")
    (roots[1] / "val/b").mkdir()
    assert len({before, *(fingerprint(root, "val") for root in roots)}) == 3


def test_an_image_replaced_by_one_of_equal_size_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr("command.contents._RECENT_NS", 0)  # remembered at once
    path = save_images(tmp_path, "train/a/x.bmp") / "train/a/x.bmp"
    before, old = fingerprint(tmp_path, "train"), path.stat()
    time.sleep(0.05)  # longer than the resolution of a file's times
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))  # as `cp -p` does
    assert path.stat().st_size == old.st_size
    assert fingerprint(tmp_path, "train") != before


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"text"])
def test_an_image_that_does_not_decode_is_named_before_any_work(tmp_path, damage):
    save_images(tmp_path, "train/a/x.png", "train/a/y.png")
    path = tmp_path / "train/a/y.png"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a/y\.png: .*; expected a complete image"):
        fingerprint(tmp_path, "train")


def test_a_fifo_among_images_is_refused_not_waited_for(tmp_path):
    save_images(tmp_path, "train/a/x.png")
    os.mkfifo(tmp_path / "train/a/y.png")
    with pytest.raises(ValueError, match=r"y\.png: not a regular file, got prw.*; move or delete it"):
        fingerprint(tmp_path, "train")


def test_sixteen_bits_of_grey_become_the_upper_eight(tmp_path):
    folder = make_folders(tmp_path, "val/a") / "val/a"
    Image.fromarray(np.full((16, 16), 0x80FF, np.uint16)).save(folder / "x.png")
    assert set(image_folder(tmp_path, "val", centre_crops(16))[0][0].flatten().tolist()) == {0x80}


HIDDEN = (
    "train/.ipynb_checkpoints/x.png",
    "train/a/.ipynb_checkpoints/x.png",
    "train/a/._x.png",
    "train/__MACOSX/y.png",
)


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path, capsys):
    note.cache_clear()
    save_images(tmp_path, "train/a/x.png", "train/b/x.png", "val/a/x.png", "val/b/x.png")
    before = fingerprint(tmp_path, "train")
    save_images(tmp_path, *HIDDEN)
    check_folder(tmp_path)
    assert capsys.readouterr().err.endswith("hidden images are left out, 4 of them, first .ipynb_checkpoints/x.png\n")
    assert class_names(tmp_path) == ("a", "b")
    assert [label for _, label in image_folder(tmp_path, "train", Augmentation().crops(8))] == [0, 1]
    assert fingerprint(tmp_path, "train") == before


def test_images_are_in_the_order_of_torchvision(tmp_path):
    save_images(tmp_path, *(f"val/{name}.png" for name in ("b/x", "a-c/x", "a/z/y", "a/x", "a/b/c", "B/x")))
    expected = [(path, label) for path, label in ImageFolder(tmp_path / "val").samples]
    for i, (path, _) in enumerate(expected):
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
    found = [(int(image[0, 0, 0]), label) for image, label in image_folder(tmp_path, "val", centre_crops(8))]
    assert found == [(i, label) for i, (_, label) in enumerate(expected)]


def damage(path):
    path.write_bytes(path.read_bytes()[:20])


@pytest.fixture
def some_damaged(tmp_path):
    """An image folder of eight grey images, of which five do not decode."""
    save_images(tmp_path, "val/a/x.png")
    for i in range(8):
        save_images(tmp_path, f"train/a/{i}.png")
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"train/a/{i}.png")
    for i in (0, 2, 3, 5, 6):
        damage(tmp_path / f"train/a/{i}.png")
    note.cache_clear()
    return tmp_path


def test_damaged_images_are_counted_and_left_out_if_chosen(some_damaged, capsys):
    before = fingerprint(some_damaged, "train", damaged="skip")
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("note: 5 of 8 images are left out: ")
    assert [name in told for name in ("0.png", "2.png", "3.png", "5.png")] == [True, True, True, False]
    assert told.endswith("; and 2 more")
    kept = image_folder(some_damaged, "train", centre_crops(8), damaged="skip")
    assert [int(image.max()) for image, _ in kept] == [1, 4, 7]
    for i in (0, 2, 3, 5, 6):
        (some_damaged / f"train/a/{i}.png").unlink()
    assert fingerprint(some_damaged, "train", damaged="skip") == before == fingerprint(some_damaged, "train")


def test_a_split_without_a_usable_image_is_refused(some_damaged):
    for i in (1, 4, 7):
        damage(some_damaged / f"train/a/{i}.png")
    with pytest.raises(ValueError, match="none of the 8 images can be used"):
        fingerprint(some_damaged, "train", damaged="skip")


def test_an_image_that_becomes_unreadable_stops_the_work(shapes, tmp_path):
    root = save_images(tmp_path, "train/a/x.png", "val/a/x.png")
    data = image_folder(root, "train", Augmentation().crops(8))
    damage(root / "train/a/x.png")
    with pytest.raises(RuntimeError, match=r"train/a/x\.png: .*; replace or delete it"):
        data[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_becomes_unreadable_is_replaced_by_the_next(some_damaged, num_workers, capfd):
    data = image_folder(some_damaged, "train", Augmentation().crops(8), damaged="skip", replaces=True)
    damage(some_damaged / "train/a/4.png")
    (some_damaged / "train/a/7.png").unlink()
    for _ in range(2):  # each is named once
        images = [int(image.max()) for image, _ in DataLoader(data, batch_size=None, num_workers=num_workers)]
        assert images == [1, 1, 1]
    told = " ".join(capfd.readouterr().err.split())
    assert told.count("the next image takes its place") == told.count("4.png") + told.count("7.png")
    assert 2 <= told.count("takes its place") <= 2 + num_workers
    assert "2 such images so far" in told


def test_many_unreadable_images_in_a_row_stop_the_work(tmp_path):
    root = save_images(tmp_path, "val/a/x.png", *(f"train/a/{i:02}.png" for i in range(12)))
    data = image_folder(root, "train", Augmentation().crops(8), replaces=True)
    for i in range(10):
        damage(root / f"train/a/{i:02}.png")
    assert data[1][1] == 0
    with pytest.raises(RuntimeError, match=r"09\.png: cannot be read, nor can the 9 images before it; check the disk"):
        data[0]


def test_links_to_a_folder_above_or_to_itself_are_not_followed(tmp_path):
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name / "x.png")
    (tmp_path / "train/a/up").symlink_to("..")
    (tmp_path / "train/a/self").symlink_to(".")
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere/deep/y.png")
    for name in ("one", "two"):
        (tmp_path / "train/b" / name).symlink_to(tmp_path / "elsewhere")
    check_folder(tmp_path)
    labels = [label for _, label in image_folder(tmp_path, "train", centre_crops(8))]
    assert labels == [0, 1, 1]


def test_an_image_that_is_gone_is_named_with_the_reason(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / split / "a/x.png")
    data = image_folder(tmp_path, "train", centre_crops(8))
    (tmp_path / "train/a/x.png").unlink()
    with pytest.raises(
        RuntimeError, match=r"x\.png: cannot be read any more, No such file or directory; bring it back"
    ):
        data[0]


def test_copies_of_a_data_set_share_what_was_replaced(tmp_path, capsys):
    for name in ("x", "y"):
        (tmp_path / "train/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"train/a/{name}.png")
    data = image_folder(tmp_path, "train", centre_crops(8), damaged="skip", replaces=True)
    (tmp_path / "train/a/x.png").write_bytes(b"")
    for one in (data, copy.deepcopy(data)):
        assert one[0][1] == 0
    assert capsys.readouterr().err.count("takes its place") == 1
