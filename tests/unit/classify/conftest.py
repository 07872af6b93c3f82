from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from classify.synthetic import write_shapes


class TinyNet(nn.Module):
    """Two convolutions with the state that a resumed training could get wrong: BatchNorm statistics and dropout."""

    def __init__(self, num_classes=6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, images):
        features = torch.relu(self.bn1(self.conv1(images)))
        features = torch.relu(self.bn2(self.conv2(features)))
        return self.fc(self.dropout(features.amax((2, 3))))


class Pairs(Dataset):
    """(image, label) pairs held in memory."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], self.labels[i]


@pytest.fixture
def tiny_net():
    """Build a tiny classifier, with the same weights every time."""

    def build(num_classes=6):
        torch.manual_seed(0)
        return TinyNet(num_classes)

    return build


@pytest.fixture
def pairs():
    return Pairs


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """An image folder of 36 + 12 generated pictures, 32 pixels square."""
    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(folder, 36, 12, 32, seed=0)
    return folder
