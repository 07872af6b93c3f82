import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import Field

from classify.backbones import BACKBONES
from classify.config import ClassifierTraining, Dense, Finetune, ShapesData
from command.config import Part, read_config
from command.errors import RequestError

ROOT = Path(__file__).parents[3]
CONFIGS = sorted((ROOT / "configs/classify").glob("*.py"))
SHAPES = ROOT / "configs/classify/resnet18_shapes.py"


class Inner(Part):
    number: int = Field(1, ge=1)
    path: Path = Path("here")


class Outer(Part):
    inner: Inner = Inner()
    numbers: tuple[int, ...] = ()
    name: str = ""


@pytest.fixture
def read(tmp_path):
    """Read a config of the given text as an Outer."""

    def read_text(text, *overrides):
        (tmp_path / "c.py").write_text(text)
        return read_config(tmp_path / "c.py", overrides, Outer)

    return read_text


def refused(*overrides):
    with pytest.raises(ValueError, match=r"^.+$") as caught:
        read_config(SHAPES, overrides, ClassifierTraining)
    return str(caught.value).removeprefix(f"{SHAPES}: ")


def test_an_empty_config_is_all_defaults(read):
    assert read("") == Outer()


def test_values_are_read_into_their_types(read):
    assert read("inner = dict(path='a/b')\nnumbers = [1, 2]") == Outer(inner=Inner(path=Path("a/b")), numbers=(1, 2))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("inner.number=3", Outer(inner=Inner(number=3))),
        ("numbers=(4, 5)", Outer(numbers=(4, 5))),
        ("name=resnet18", Outer(name="resnet18")),
        ("name=a=b", Outer(name="a=b")),
        ("name=", Outer(name="")),
    ],
)
def test_an_override_is_a_literal_or_else_a_text(read, override, expected):
    assert read("", override) == expected


def test_an_override_leaves_its_neighbours(read):
    assert read("inner = dict(number=2, path='p')", "inner.number=3").inner == Inner(number=3, path=Path("p"))


@pytest.mark.parametrize("override", ["name", "=3", "a." * 3_000 + "b=1"], ids=["name", "value", "deep"])
def test_an_override_without_key_and_value_is_refused(read, override):
    with pytest.raises(RequestError, match=rf"--set {override}: no key and value; expected a.b=value"):
        read("", override)


@pytest.mark.parametrize("text", ["(" * 9_999, "-" * 9_999 + "1", "{[]: 1}"])
def test_an_override_that_python_cannot_read_is_a_text(read, text):
    assert read("", f"name={text}").name == text


@pytest.mark.parametrize(
    ("override", "owner"),
    [
        ("name.x=1", "name"),
        ("numbers.5=1", "numbers"),  # there are two
        ("numbers.0=1", "numbers"),  # mmengine replaces parts of lists only by dictionaries
        ("inner={3: 4}", "inner"),
    ],
)
def test_an_override_of_a_part_that_is_not_there_is_refused(read, override, owner):
    with pytest.raises(RequestError, match=f"{owner} has no such part; expected a key of the config"):
        read("name = 'n'\nnumbers = [1, 2]\ninner = dict(number=1)", override)


def test_a_missing_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.py: no such file or config; expected a Python file or a name, "):
        read_config(tmp_path / "none.py", (), Outer)


def test_a_config_that_is_not_python_is_refused_in_one_line(read):
    with pytest.raises(ValueError, match=r"^.*c.py: cannot be read, got [^\n]*; expected Python that sets"):
        read("inner = dict(")


def test_an_unknown_key_lists_the_nearest_of_its_own_level():
    assert refused("schedule.epoch=3") == "unknown key schedule.epoch; nearest valid ones: epochs"
    assert refused("start.nme=3") == "unknown key start.nme; nearest valid ones: name"


def test_an_unknown_key_in_a_chosen_kind_names_that_kinds_keys():
    assert refused("data.num_trian=3") == "unknown key data.num_trian; nearest valid ones: num_train, num_val"


def test_an_unknown_key_like_no_other_lists_all_of_its_level():
    assert (
        refused("xyz=3")
        == "unknown key xyz; nearest valid ones: start, data, image_size, crop_share, augmentation, schedule, "
        "objective, method, seed, num_threads, validate_every, tracking"
    )


def test_a_misspelt_key_is_reported_before_the_one_it_leaves_missing(tmp_path):
    config = tmp_path / "c.py"
    config.write_text(SHAPES.read_text().replace("schedule =", "shedule ="))
    with pytest.raises(ValueError, match="unknown key shedule; nearest valid ones: schedule"):
        read_config(config, (), ClassifierTraining)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.num_train=1", "data.num_train: Input should be greater than or equal to 2, got 1"),
        ("schedule.lr=-1", "schedule.lr: out of range, got -1.0; expected at least 1e-12 and at most 1e+30"),
        ("start.name=resnet9", "start.name: unknown, got 'resnet9'; expected one of convnext_tiny, densenet121,"),
        ("data.type=lmdb", "data.type: unknown, got 'lmdb'; expected one of 'shapes', 'folder', 'npz', 'cifar'"),
    ],
)
def test_a_wrong_value_is_reported_with_its_key(override, message):
    assert refused(override).startswith(message)


def test_a_missing_key_is_named(tmp_path):
    (tmp_path / "c.py").write_text("start = dict(type='finetune')\ndata = dict(type='shapes')\nschedule = dict()")
    with pytest.raises(ValueError, match=r"start.file: Field required"):
        read_config(tmp_path / "c.py", (), ClassifierTraining)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_valid(path):
    assert read_config(path, (), ClassifierTraining).schedule.epochs >= 1


def recipe(name, *overrides):
    return read_config(ROOT / f"configs/classify/{name}.py", overrides, ClassifierTraining)


@pytest.mark.parametrize("kind", ["dense", "scratch"])
@pytest.mark.parametrize(
    ("images", "batch_size", "epochs", "decay_epochs"), [("imagenet", 256, 90, (30, 60)), ("cifar", 64, 160, (80, 120))]
)
def test_recipes_have_the_papers_schedule(kind, images, batch_size, epochs, decay_epochs):
    schedule = recipe(f"{images}_{kind}").schedule
    assert (schedule.optimizer, schedule.lr, schedule.batch_size, schedule.epochs) == ("SGD", 0.1, batch_size, epochs)
    assert (schedule.decay_epochs, schedule.warmup_iters) == (decay_epochs, 0)
    assert (schedule.weight_decay, schedule.momentum) == (1e-4, 0.9)


@pytest.mark.parametrize(("images", "epochs"), [("imagenet", 20), ("cifar", 40)])
def test_recipes_of_finetuning_differ_in_the_rate_and_its_course(images, epochs):
    small, large = (recipe(f"{images}_finetune{ending}").schedule for ending in ("", "_large"))
    assert (small.epochs, small.lr, small.decay_epochs) == (epochs, 1e-3, (epochs,))  # never: the rate is constant
    assert (large.epochs, large.lr, large.decay_epochs) == (epochs, 0.1, ())
    assert replace(small, lr=large.lr, milestones=(), warmup_iters=large.warmup_iters) == large


@pytest.mark.parametrize(
    ("name", "networks"),
    [
        ("imagenet_dense", ("resnet18", "resnet34", "resnet50", "vgg16", "vgg16_bn")),
        ("cifar_dense", tuple(name for name in BACKBONES if name.endswith("_cifar"))),
    ],
)
def test_recipe_names_the_networks_that_it_trains(name, networks):
    text = (ROOT / f"configs/classify/{name}.py").read_text()
    for network in networks:
        assert re.search(rf"\b{network}\b", text)
        assert recipe(name, f"start.name={network}").start == Dense(name=network)


@pytest.mark.parametrize("value", [0.5, 1001, float("nan")])
def test_a_cap_that_shortens_the_training_is_refused(value):
    with pytest.raises(ValueError, match=r"start\.scratch_b_cap: Input should be"):
        recipe("imagenet_scratch", f"start.scratch_b_cap={value}")


def test_scratch_trains_for_the_epochs_of_its_schedule_unless_told():
    shapes = recipe("resnet18_shapes_finetune", "start.type=scratch").start
    assert (shapes.budget, shapes.finetune_epochs) == ("scratch_e", 0)


def test_kinds_differ_by_their_type():
    assert isinstance(read_config(SHAPES, (), ClassifierTraining).data, ShapesData)
    finetune = read_config(SHAPES.with_name("resnet18_shapes_finetune.py"), (), ClassifierTraining)
    assert isinstance(finetune.start, Finetune)


def test_the_file_of_a_dense_start_is_its_weights():
    assert Dense().file is None
    assert Dense(weights=Path("w.pth")).file == Path("w.pth")
