"""Real photographs' shapes without photographs: images of several sizes, none of a model's size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIZES = ((97, 131), (240, 180), (300, 301), (64, 64), (223, 518), (400, 265))


@pytest.fixture
def images() -> list[Image.Image]:
    """RGB images with structure at every scale, of other shapes than any model's."""
    made = []
    for seed, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        noisy = smooth + rng.normal(0, 20, smooth.shape)
        made.append(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))
    return made


@pytest.fixture
def data(images: list[Image.Image], tmp_path: Path) -> Path:
    """The images in class folders."""
    for number, image in enumerate(images):
        folder = tmp_path / "data" / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number}.png")
    return tmp_path / "data"
