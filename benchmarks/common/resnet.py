"""ResNet-18 in torch alone, for images of 32 pixels.

Sources: He et al. (CVPR 2016, arXiv 1512.03385); the widths and the first layer (7 x 7, stride 2,
then pooling, also on 32 pixels) are those of repository miccunifi/iamcl2r,
``src/iamcl2r/models/resnet.py``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

FEATURES = 512


class Block(nn.Module):
    """Two convolutions and what went in, added."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.past: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.past = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        """(N, outputs, h, w) of (N, inputs, H, W)."""
        out: Tensor = functional.relu(self.body(images) + self.past(images))
        return out


def build() -> nn.Module:
    """(N, 3, 32, 32) to (N, 512), with random weights by torch's global generator."""
    blocks = [Block(*sizes) for sizes in (
        (64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1),
        (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1),
    )]  # fmt: skip
    network = nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
