import numpy as np
import pytest
from mmdet.datasets.transforms import Resize
from PIL import Image

from deploy.fitting import boxes_by_graph, decode_image, fit_image, read_image


def plain(height, width):
    return np.full((height, width, 3), 7, np.uint8)


@pytest.mark.parametrize(
    ("image_hw", "size_hw", "fitted_hw", "grew_xy"),
    [
        ((64, 128), (64, 128), (64, 128), (1, 1)),
        ((100, 200), (64, 128), (64, 128), (0.64, 0.64)),
        ((100, 200), (128, 128), (64, 128), (0.64, 0.64)),  # padded below
        ((100, 100), (64, 128), (64, 64), (0.64, 0.64)),  # padded right
        ((200, 100), (64, 128), (64, 32), (0.32, 0.32)),  # portrait, in a landscape shape
        ((60, 200), (128, 64), (19, 64), (64 / 200, 19 / 60)),  # 60 x 0.32 = 19.2
        ((32, 64), (64, 128), (64, 128), (2, 2)),
        ((50, 75), (64, 64), (43, 64), (64 / 75, 43 / 50)),  # 50 x 64 / 75 = 42.7, so the axes differ a little
    ],
)
def test_an_image_is_scaled_to_fit_with_its_ratio_kept(image_hw, size_hw, fitted_hw, grew_xy):
    inputs, scale_xyxy = fit_image(plain(*image_hw), size_hw)
    assert inputs["image"].shape == (1, 3, *size_hw)
    assert inputs["image_hw"].tolist() == [list(fitted_hw)]
    assert scale_xyxy.tolist() == pytest.approx([*grew_xy, *grew_xy])


def test_an_image_lies_at_the_top_left_and_the_padding_is_zero():
    image = fit_image(plain(100, 100), (96, 128))[0]["image"]
    assert (image[:, :, :, :96] == 7).all()
    assert not image[:, :, :, 96:].any()


def test_an_image_is_scaled_as_mmdet_scales_it():
    picture = np.random.default_rng(0).integers(0, 256, (90, 131, 3), np.uint8)
    inputs, scale_xyxy = fit_image(picture, (64, 96))
    expected = Resize(scale=(96, 64), keep_ratio=True)({"img": picture})
    h, w = expected["img"].shape[:2]
    assert np.array_equal(inputs["image"][0, :, :h, :w], expected["img"].transpose(2, 0, 1))
    assert inputs["image_hw"].tolist() == [[h, w]]
    assert scale_xyxy[:2].tolist() == pytest.approx(expected["scale_factor"])


@pytest.mark.parametrize(("image_hw", "fitted_hw"), [((1, 1), (64, 64)), ((1, 1000), (1, 128)), ((1000, 1), (64, 1))])
def test_the_thinnest_image_keeps_a_pixel(image_hw, fitted_hw):
    inputs, _ = fit_image(plain(*image_hw), (64, 128))
    assert inputs["image_hw"].tolist() == [list(fitted_hw)]


def test_pixels_come_in_the_type_the_graph_takes():
    assert fit_image(plain(60, 80), (64, 128), "uint8")[0]["image"].dtype == np.uint8


def test_a_batch_is_filled_up_with_its_last_image_which_counts_once():
    batches = []

    def graph(inputs):
        batches.append(inputs["image"][:, 0, 0, 0].tolist())
        labels = np.zeros((2, 1), np.int64)
        return {"boxes_xyxy": np.zeros((2, 1, 4)), "scores": inputs["image"][:, 0, 0, :1], "labels": labels}

    images = [np.full((8, 8, 3), value, np.uint8) for value in (10, 20, 30)]
    found = list(boxes_by_graph(graph, images, (8, 8), 2, "float32"))
    assert batches == [[10, 20], [30, 30]]
    assert [scores.tolist() for _, scores, _ in found] == [[10], [20], [30]]


def test_a_file_is_read_as_red_green_blue_and_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter: the stored top row is the right column
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "turned.jpg", exif=exif)
    image = read_image(tmp_path / "turned.jpg")
    assert image.shape == (40, 20, 3)
    assert image[0, 0, 0] > 250
    assert image[0, 0, 2] < 5


@pytest.mark.parametrize("data", [b"", b"no image"])
def test_bytes_that_are_not_an_image_are_refused(data):
    with pytest.raises(ValueError, match="request 3: does not decode; expected an image"):
        decode_image(data, "request 3")
