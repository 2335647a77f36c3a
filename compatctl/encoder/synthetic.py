"""Made items of any modality: the same on every machine, for canaries and tests of an encoder."""

from __future__ import annotations

from collections.abc import Sequence

from compatctl.core.arrays import Vectors
from compatctl.data import ItemVectors
from compatctl.data import Source as ItemSource
from compatctl.encoder.images import SYNTHETIC_SIZES, synthetic_image
from compatctl.encoder.inputs import EncoderInput
from compatctl.encoder.texts import synthetic_text
from compatctl.encoder.vectors import VectorInput, synthetic_vector


def synthetic_item(inputs: Sequence[EncoderInput], number: int) -> ItemSource:
    """Item ``number`` of an encoder with these inputs: (H, W, 3) pixels, a text, or vectors of
    every space that the inputs take."""
    if inputs[0].MODALITY == "text":
        return synthetic_text(number)
    if inputs[0].MODALITY == "image":
        return synthetic_image(number, *SYNTHETIC_SIZES[number % len(SYNTHETIC_SIZES)])
    vectors: dict[str, Vectors] = {
        source.space: synthetic_vector(number, source.dim)
        for source in inputs
        if isinstance(source, VectorInput)
    }
    return ItemVectors.single(vectors)
