import pytest
import refit_speed
from torch import nn
from torchvision.models import vgg


class Narrow(nn.Module):
    """A VGG-16 of 8 channels."""

    def __init__(self):
        super().__init__()
        self.features = vgg.make_layers([8 if isinstance(width, int) else width for width in vgg.cfgs["D"]])
        self.classifier = nn.Sequential(nn.Flatten(1), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, images):
        return self.classifier(self.features(images))


@pytest.mark.parametrize("method", refit_speed.METHODS)
def test_every_convolution_but_the_last_is_timed(method, monkeypatch):
    monkeypatch.setattr(refit_speed.models, "vgg16", Narrow)
    monkeypatch.setattr(refit_speed.torch, "set_num_threads", lambda num: None)
    found = refit_speed.measured(refit_speed.Task(method, images=60, positions=2, side=32, threads=1))
    convolutions = [name for name, layer in Narrow().named_modules() if isinstance(layer, nn.Conv2d)]
    assert list(found["layer_seconds"]) == convolutions[:-1]
    assert found["rows"] == 120
    assert 0 < sum(found["layer_seconds"].values()) <= found["seconds"]
    assert found["cpu_seconds"] > 0
    assert found["peak_gib"] > 0


def test_row_of_the_table_rounds_what_was_measured():
    found = {"method": "lasso", "rows": 5000, "seconds": 99.6, "cpu_seconds": 150.2, "peak_gib": 2.34}
    assert refit_speed.row(found) == ["lasso", "5000", "100", "150", "2.3"]
