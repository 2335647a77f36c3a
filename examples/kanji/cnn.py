"""A small convolutional network for 32 x 32 grey images: the backbone of all three models."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Cnn(nn.Module):
    """float32 (N, 3, 32, 32) to (N, features); only the first channel is read."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        sizes = [1, width, 2 * width, 4 * width, 4 * width]
        self.body = nn.Sequential(*(block(*pair) for pair in pairwise(sizes)))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * width * 2 * 2, features), nn.BatchNorm1d(features)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, features) of (N, 3, 32, 32)."""
        out: Tensor = self.head(self.body(images[:, :1]))
        return out


def block(inputs: int, outputs: int) -> nn.Module:
    """Convolution, normalization, ReLU, and pooling to half the side."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


def build(width: int = 32, features: int = 256) -> nn.Module:
    """The network with random weights, drawn by torch's global generator."""
    return Cnn(width, features)
