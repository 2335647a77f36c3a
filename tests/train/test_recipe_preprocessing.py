"""A recipe trains on the pixels that an exported model sees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from compatctl.data import Preprocessing, from_files, prepare
from compatctl.errors import InputError
from compatctl.recipe import Augmentation, Backbone, Recipe
from compatctl.train import PixelSpec, input_spec, preprocessing
from compatctl.train.images import ImageReader
from compatctl.train.items import ItemRef

CASES = {
    "timm": Preprocessing(height=24, width=24, crop_share=0.875, crop_offset="round"),
    "transformers": Preprocessing(height=24, width=24, crop_share=0.8, crop_offset="floor"),
    "whole pixels": Preprocessing(height=24, width=24, crop_offset="round"),
    "border": Preprocessing(height=20, width=24, fit="pad", border=(3, 130, 255)),
    "stretch": Preprocessing(height=20, width=24, fit="stretch", resize="lanczos"),
    "default": Preprocessing(height=20, width=24),
}


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_keeps_every_entry_of_a_preprocessing(tmp_path: Path, case: str) -> None:
    """Written as YAML and read again, it makes the same pixels of an image of another shape."""
    expected = CASES[case]
    spec = input_spec(PixelSpec(preprocessing=expected, mean=(1.0, 2.0, 3.0), std=(9.0, 8.0, 7.0)))
    recipe = Recipe(backbone=Backbone(factory="timm:any", input=spec))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_json()))
    read = Recipe.load(tmp_path / "recipe.yaml").backbone.input
    assert (read, preprocessing(read)) == (spec, expected)
    noise = np.random.default_rng(0).integers(0, 256, (61, 97, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    data = from_files([tmp_path / "a.png"])
    with ImageReader(read, Augmentation()) as reader:
        (pixels,) = reader.batches([[ItemRef(dataset=data, row=0)]])
    assert np.array_equal(pixels[0], prepare(Image.fromarray(noise), expected))


def test_a_crop_share_with_another_fit_is_refused() -> None:
    """It would have no effect."""
    spec = input_spec(PixelSpec(preprocessing=CASES["timm"], mean=(0.0,) * 3, std=(1.0,) * 3))
    with pytest.raises(InputError, match="crop_share and crop_offset need the fit crop"):
        preprocessing(type(spec)(height=24, width=24, fit="stretch", crop_share=0.875))
