"""A backbone for tests: two convolutions with a fixed seed."""

from __future__ import annotations

import torch
from torch import nn


def build(width: int = 64) -> nn.Module:
    """float32 (N, 3, H, W) to (N, width, h, w)."""
    torch.manual_seed(11)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, width, 3, stride=2, padding=1),
        nn.ReLU(),
    )
