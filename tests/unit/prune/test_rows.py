import pytest
import torch
from torch import nn

from prune.refit.rows import Drawn, Rows, maps_of

LAYERS = {
    "padded": lambda: nn.Conv2d(4, 5, 3, padding=1),
    "strided": lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1),
    "oblong": lambda: nn.Conv2d(4, 5, (3, 1), stride=(1, 2), padding=(2, 0)),
    "dilated": lambda: nn.Conv2d(4, 5, 3, dilation=2, padding="same"),
    "reflecting": lambda: nn.Conv2d(4, 5, 5, padding=2, padding_mode="reflect"),
    "pointwise": lambda: nn.Conv2d(4, 5, 1),
    "tokens": lambda: nn.Linear(4, 5),
}


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_rows_times_weights_are_what_the_layer_gives(build):
    torch.manual_seed(0)
    layer = build()
    read = torch.randn(3, 7, 4) if isinstance(layer, nn.Linear) else torch.randn(3, 4, 7, 9)
    rows, written = Rows(layer, read), maps_of(layer, layer(read))
    images, places = Drawn(0, "layer", 0).places(rows.num_images, rows.num_places, 5)
    given = rows.at(images, places) @ layer.weight.flatten(1).T + layer.bias
    torch.testing.assert_close(given, written.flatten(2)[images, :, places])


def test_rows_of_flattened_maps_are_whole_images():
    layer, read = nn.Linear(6, 2), torch.randn(3, 6)
    rows = Rows(layer, read)
    assert rows.num_places == 1
    images, places = Drawn(0, "layer", 0).places(3, 1, 10)
    assert torch.equal(rows.at(images, places), read)


def test_places_of_an_image_are_all_different():
    images, places = Drawn(0, "layer", 0).places(50, 12, 10)
    assert len({*zip(images.tolist(), places.tolist(), strict=True)}) == 500


def test_small_map_gives_every_place_once():
    images, places = Drawn(0, "layer", 0).places(2, 4, 10)
    assert images.tolist() == [0] * 4 + [1] * 4
    assert sorted(places[:4].tolist()) == [0, 1, 2, 3]


def test_draws_depend_on_seed_layer_and_batch():
    draws = [Drawn(*key).numbers(1000, 20).tolist() for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))]
    assert len({*map(tuple, draws)}) == 4
    assert Drawn(0, "a", 0).numbers(1000, 20).tolist() == draws[0]
