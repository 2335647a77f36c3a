"""A convolutional network for 32 x 32 images in colour: the small and the larger CNN."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class Cnn(nn.Module):
    """float32 (N, 3, 32, 32) to (N, features)."""

    def __init__(self, width: int, features: int, *, pool: bool = True) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width, 4 * width]
        self.body = nn.Sequential(*(_block(*pair, pool=pool) for pair in pairwise(sizes)))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(4 * width * 2 * 2, features), nn.BatchNorm1d(features)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, features) of (N, 3, 32, 32)."""
        out: Tensor = self.head(self.body(images))
        return out


def _block(inputs: int, outputs: int, *, pool: bool) -> nn.Module:
    """Half the side: by pooling, or by a stride, which takes a third of the time."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=1 if pool else 2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        *([nn.MaxPool2d(2)] if pool else []),
    )


def build(width: int, features: int, *, pool: bool = True) -> nn.Module:
    """The network with random weights, drawn by torch's global generator."""
    return Cnn(width, features, pool=pool)
