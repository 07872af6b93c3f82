"""A flat folder of validation images with a file of labels, as ImageNet's, beside train's class folders."""

import pytest
from PIL import Image

from classify.augmentation import centre_crops
from classify.data import check_folder, fingerprint, image_folder
from classify.val_labels import labelled_files

SYNSETS = ("n01440764", "n01443537", "n02124075")
NAMES = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in range(1, 5)]
LABELS = [2, 0, 0, 1]


@pytest.fixture
def root(tmp_path):
    """Three classes to train on; four flat validation images whose grey is ten times their label."""
    for name in (*(f"train/{synset}/a.png" for synset in SYNSETS), *(f"val/{name}" for name in NAMES)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        grey = 10 * LABELS[NAMES.index(name[4:])] if name.startswith("val") else 0
        Image.new("RGB", (40, 40), (grey,) * 3).save(tmp_path / name)
    (tmp_path / "val/.hidden.png").touch()
    return tmp_path


FORMS = {
    "synsets": [SYNSETS[label] for label in LABELS],
    "numbers": map(str, LABELS),
    "names and synsets": [f"{name} {SYNSETS[label]}" for name, label in reversed([*zip(NAMES, LABELS, strict=True)])],
    "names and numbers": [f"{name}\t{label}" for name, label in zip(NAMES, LABELS, strict=True)],
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_in_every_form(root, form):
    (root / "labels.txt").write_text("\n".join(FORMS[form]) + "\n\n")
    check_folder(root, root / "labels.txt")
    data = image_folder(root, "val", centre_crops(32), val_labels=root / "labels.txt")
    assert [label for _, label in data] == LABELS
    assert [round(image.float().mean().item() / 10) for image, _ in data] == LABELS


def test_class_folders_with_spaces_are_names_too(root, tmp_path):
    (tmp_path / "labels.txt").write_text("maine coon\n" * 4)
    assert {label for _, label in labelled_files(root / "val", tmp_path / "labels.txt", ["lynx", "maine coon"])} == {1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n" * 3, r"not one line for each image in .*val, got 3; expected 4"),
        (
            "0\n0\n0\nn0\n",
            r"no such class, got 'n0'; expected a class folder's name, or its place in their order, 0 to 2",
        ),
        ("1\n2\n3\n1\n", r"got '3'; .* \(ImageNet's own ground truth counts from 1 in another order: take synsets\)"),
        (f"{NAMES[0]} 0\n{NAMES[1]} 0\n{NAMES[2]} 0\nother.JPEG 0\n", f"no line for {NAMES[3]}; expected one for each"),
        ("", "not one line for each image"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_work(root, text, message):
    (root / "labels.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        check_folder(root, root / "labels.txt")


def test_a_missing_file_of_labels_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"labels\.txt: no such file; expected a text file with a class"):
        check_folder(root, root / "labels.txt")


def test_the_fingerprint_depends_on_the_labels_and_not_on_their_form(root):
    prints = []
    for text in ("0\n0\n0\n1\n", f"{SYNSETS[0]}\n" * 3 + SYNSETS[1], "0\n0\n1\n1\n"):
        (root / "labels.txt").write_text(text)
        prints.append(fingerprint(root, "val", root / "labels.txt"))
    assert prints[0] == prints[1] != prints[2]
