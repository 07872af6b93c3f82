"""VOC's folders: what is read, what is refused, and that work on them goes as on COCO's."""

import json

import pytest
from mmdet.registry import DATASETS
from mmengine.registry import DefaultScope

from classify.backbones import Architecture
from classify.checkpoint import ModelCard, Preprocessing
from command.config import read_config
from command.errors import MissingFileError
from detect.annotations import annotations_sha256, read_annotations
from detect.config import DetectorTraining, VocData
from detect.crops import write_crops
from detect.data import CocoSet, check_coco, coco_subset, fingerprint
from detect.synthetic import write_scenes
from detect.train import train_loader
from detect.voc import voc_images

SIZE = "<size><width>100</width><height>50</height></size>"


def an_object(name="cat", box=(1, 1, 10, 20), difficult="<difficult>0</difficult>"):
    edges = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    inner = "".join(f"<{edge}>{number}</{edge}>" for edge, number in edges)
    return f"<object><name>{name}</name>{difficult}<bndbox>{inner}</bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    """Write VOC2007 with the given content of each XML file; return the list of its images."""

    def write(**files):
        for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (tmp_path / "VOC2007" / folder).mkdir(parents=True)
        for stem, text in files.items():
            content = text if isinstance(text, bytes) else f"<annotation>{SIZE}{text}</annotation>".encode()
            (tmp_path / f"VOC2007/Annotations/{stem}.xml").write_bytes(content)
        image_set = tmp_path / "VOC2007/ImageSets/Main/test.txt"
        image_set.write_text("".join(f"{stem}\n" for stem in files))
        return image_set

    return write


def fault_of(image_set):
    with pytest.raises(ValueError, match="fault") as caught:
        read_annotations(image_set)
    return str(caught.value)


def test_a_box_holds_its_first_and_last_pixels_whole(voc):
    data = read_annotations(voc(a=an_object("dog", (1, 11, 10, 50))))
    # pixels 1 to 10 of 100 are 0 to 10 in x; 11 to 50 of 50 are 10 to 50 in y
    row = {"bbox": [0, 10, 10, 40], "area": 400, "difficult": 0, "iscrowd": 0, "id": 1, "image_id": 1}
    assert data["annotations"] == [{**row, "category_id": 12}]  # dog is the twelfth of VOC's twenty
    assert data["images"] == [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 50}]


def test_the_classes_are_the_twenty_of_voc(voc):
    names = [row["name"] for row in read_annotations(voc(a=an_object("tvmonitor")))["categories"]]
    assert (len(names), names[0], names[14], names[-1]) == (20, "aeroplane", "person", "tvmonitor")
    assert names == sorted(names)


def test_other_classes_are_those_that_occur(voc):
    data = read_annotations(voc(a=an_object("red cell") + an_object("cat"), b=an_object("platelet")))
    assert [row["name"] for row in data["categories"]] == ["cat", "platelet", "red cell"]


def test_difficult_objects_are_learnt_and_say_so(voc, save_image):
    image_set = voc(a=an_object(difficult="<difficult>1</difficult>") + an_object(difficult=""))
    save_image(coco := CocoSet(image_set, voc_images(image_set)), name="a.jpg")
    assert [row["difficult"] for row in read_annotations(image_set)["annotations"]] == [1, 0]
    check_coco(coco)
    card = _card(read_annotations(image_set))
    with DefaultScope.overwrite_default_scope("mmdet"):
        loader = train_loader(card, coco)["dataset"]
        dataset = DATASETS.build({**loader, "pipeline": []})
    assert [row["ignore_flag"] for row in dataset.get_data_info(0)["instances"]] == [0, 0]


def _card(data):
    names = tuple(row["name"] for row in data["categories"])
    return ModelCard("detector", Architecture("resnet18", 1, 8), names, Preprocessing((64, 64)))


def test_faults_of_all_files_are_listed_with_their_objects(voc):
    cut = f"<annotation>{SIZE}<object>".encode()
    image_set = voc(
        a=an_object() + an_object("dog", (5, 1, 120, 20)) + "<object><name>cow</name></object>",
        b=cut,
        c=an_object(box=(9, 1, 3, 20)) + an_object(box=("x", 1, 3, 20)) + an_object("", (1, 1, 2, 2)),
        d=an_object(difficult="<difficult>yes</difficult>"),
        e=b"<annotation/>",
    )
    with image_set.open("a") as file:
        file.write("gone\n")
    found = fault_of(image_set)
    assert found.startswith(f"{image_set.parents[2] / 'Annotations'}: 9 faults in files that test.txt names, got ")
    for fault in (
        "a.xml: object 2 (dog): bndbox 5 1 120 20 is outside 1 to 100 x 1 to 50",
        "a.xml: object 3 (cow): bndbox is missing",
        "b.xml: is not XML, no element found",
        "c.xml: object 1 (cat): bndbox 9 1 3 20 ends before it begins",
        "c.xml: object 2 (cat): xmin is x, not a number",
        "c.xml: object 3 (no name): name is missing",
        "d.xml: object 1 (cat): difficult is yes, not 0 or 1",
        "e.xml: size is missing",
        "; and 1 more; expected VOC's annotations of 6 images",
    ):
        assert fault in found
    assert "\n" not in found


BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 10))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (f'<!DOCTYPE a [<!ENTITY e0 "x">{BOMB}]><annotation>&e9;</annotation>'.encode(), "has a DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "has a DOCTYPE"),
        ('<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a><annotation/>'.encode("utf-16"), "is not UTF-8"),
        (b"<annotation>&e;</annotation>", "is not XML, undefined entity"),
        (b"<annotation>" + b" " * (1 << 20), "bytes, more than"),
        (f"<annotation>{SIZE}</annotation>".replace("100", "1e999").encode(), "width is 1e999, not a number"),
        (f"<annotation>{SIZE}</annotation>".replace("100", "1e300").encode(), r"size (w, h) is (1e+300, 50.0), not"),
        (an_object("x" * 10**5), "name is not one line of at most 200 bytes"),
        (an_object("two\nlines"), r"object 1 (two\nlines): name is not one line"),
    ],
    ids=["bomb", "outside", "utf-16", "undefined", "large", "infinite", "wide", "long name", "two lines"],
)
def test_an_unsafe_or_senseless_file_is_refused(voc, content, fault):
    found = fault_of(voc(a=content))
    assert fault in found
    assert len(found) < 1000


@pytest.mark.parametrize("name", ["../a", "..", ".a", "/etc/passwd", "a\\b", "a -1", "x" * 300, "犬" * 100, "a\x1b"])
def test_a_list_names_images_alone(voc, name):
    image_set = voc(a=an_object())
    image_set.write_text(f"a\n{name}\n")
    with pytest.raises(ValueError, match="not the name of an image, got"):
        read_annotations(image_set)


def test_a_list_names_each_image_once(voc):
    image_set = voc(a=an_object())
    image_set.write_text("a\na\n")
    with pytest.raises(ValueError, match="names an image twice, got a; expected each once"):
        read_annotations(image_set)


def test_a_missing_list_is_a_missing_file(tmp_path):
    with pytest.raises(MissingFileError, match="expected a list of VOC's images"):
        read_annotations(tmp_path / "VOC2007/ImageSets/Main/test.txt")


def test_every_change_of_an_annotation_changes_the_fingerprint(voc, save_image):
    image_set = voc(a=an_object(), b=an_object())
    coco = CocoSet(image_set, voc_images(image_set))
    for name in ("a.jpg", "b.jpg"):
        save_image(coco, name=name)
    before = annotations_sha256(image_set), fingerprint(coco)
    xml = image_set.parents[2] / "Annotations/b.xml"
    xml.write_text(xml.read_text().replace("cat", "dog"))
    assert annotations_sha256(image_set) != before[0]
    assert fingerprint(coco) != before[1]


def test_a_part_of_a_set_keeps_metric_and_difficult_objects(voc, tmp_path):
    image_set = voc(a=an_object(), b=an_object(difficult="<difficult>1</difficult>"))
    some = coco_subset(CocoSet(image_set, tmp_path), [1], tmp_path / "some.json", "limit")
    data = read_annotations(some.annotations)
    assert data["metric"] == "voc07"
    assert [row["difficult"] for row in data["annotations"]] == [1]


def test_its_objects_are_cut_out_like_those_of_coco(scenes, write_voc, tmp_path):
    image_set = write_voc(scenes, tmp_path)
    assert write_crops(CocoSet(image_set, voc_images(image_set)), tmp_path / "crops") == write_crops(
        scenes, tmp_path / "others"
    )


@pytest.fixture
def devkit(write_voc, tmp_path):
    """VOCdevkit of generated scenes, four to train and two to validate."""
    for image_set, num, seed in (("trainval", 4, 0), ("test", 2, 1)):
        scenes = write_scenes(tmp_path / image_set, num, (64, 96), seed=seed)
        write_voc(scenes, tmp_path / "VOCdevkit", image_set, prefix=image_set)
    return tmp_path / "VOCdevkit"


def test_the_sets_are_found_by_the_root_alone(devkit):
    data = VocData(type="voc", root=devkit)
    assert len(data.check()) == 20
    assert [len(read_annotations(coco.annotations)["images"]) for coco in (data.train, data.val)] == [4, 2]


def test_a_missing_root_names_the_setting(tmp_path):
    with pytest.raises(MissingFileError, match=r"set data\.root to a VOC-format folder"):
        VocData(type="voc", root=tmp_path / "none").check()


def test_a_detector_trains_and_is_evaluated_on_voc(devkit, invoke, tmp_path):
    config = tmp_path / "voc.py"
    config.write_text(
        "start = dict(type='dense', name='resnet18', base_channels=8)\n"
        f"data = dict(type='voc', root={str(devkit)!r})\n"
        "model = dict(image_size_hw=(64, 96), fpn_channels=16, head_channels=32, num_proposals=50, roi_samples=16)\n"
        "schedule = dict(epochs=1, batch_size=4, lr=1e-3)\n"
    )
    assert isinstance(read_config(config, (), DetectorTraining).data, VocData)
    model, val = tmp_path / "det.safetensors", devkit / "VOC2007/ImageSets/Main/test.txt"
    figures = json.loads(invoke("detect", "train", config, "--out", model, "--json").stdout)
    assert set(figures) == {"map", "map50", "map50_area", "per_class"}
    again = json.loads(invoke("detect", "eval", model, val, devkit / "VOC2007/JPEGImages", "--json").stdout)
    assert again == figures


def test_deploy_eval_scores_an_exported_file_by_voc(deployed, model, write_voc, invoke, tmp_path):
    names = json.loads((deployed / "deploy.json").read_text())["classes"]
    val = write_voc(write_scenes(tmp_path / "scenes", 7, (96, 128), seed=0), tmp_path, "test", names=names)
    arguments = (val, voc_images(val), "--json")
    found = json.loads(invoke("deploy", "eval", deployed, *arguments, "--model", model).stdout)
    assert found["metric"] == "voc07"
    assert found["map"] == found["map50"]
    assert found["map"] == pytest.approx(found["framework_map"], abs=0.01)
    assert found["map"] > 0.3  # of a detector trained on such scenes
