"""Small networks that the tests share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from exporter.models.resnet import build_random
from exporter.models.source import LoadedModel, SourceOptions, load_model
from exporter.models.variants import cifar_blueprint

SMALL = "cifar_resnet8_b"


def small(seed: int = 0) -> LoadedModel:
    """ResNet-8 with projections and random weights: every kind of layer, in a tenth of a second."""
    return load_model(SMALL, SourceOptions(weights="random", seed=seed))


def save_small(folder: Path, classes: int = 10) -> Path:
    """A checkpoint of such a network."""
    path = folder / "small.pth"
    torch.save({"state_dict": build_random(cifar_blueprint(8, option="B", num_classes=classes)).state_dict()}, path)
    return path


class PreActivation(nn.Module):
    """BatchNorm before the convolution: nothing here may be folded but the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = torch.relu(self.stem(x))
        x = x + self.conv(torch.relu(self.norm(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]
