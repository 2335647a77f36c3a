"""The image modality: what an encoder takes as input, and images made for tests of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from onnx import TensorProto

from compatctl.core.arrays import Pixels
from compatctl.data import WHITE, Content, ItemVectors, Preprocessing, Role, prepare
from compatctl.encoder.inputs import EncoderInput
from compatctl.errors import InputError

IMAGE = "image"
"""The name of the first input of images."""

SYNTHETIC_SIZES = ((96, 128), (131, 97), (64, 64), (240, 180))
"""Height and width of synthetic images: not those of any model, so that they must be resized."""

_KEYS = {"name", "height", "width", "resize", "fit"}
_OPTIONAL = {"crop_share": 1.0, "crop_offset": None, "border": WHITE}
"""Entry -> its value where it is not written."""


@dataclass(frozen=True, kw_only=True)
class ImageInput(EncoderInput):
    """Pixels (batch, H, W, 3) uint8, and the preprocessing that makes them."""

    MODALITY = "image"
    ELEMENT = TensorProto.UINT8

    preprocessing: Preprocessing

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """The input that ``to_json`` describes.

        Raises:
            InputError: an entry is missing, unknown or out of range.
        """
        if not _KEYS <= set(entry) <= _KEYS | set(_OPTIONAL) or type(entry["name"]) is not str:
            raise InputError(f"an input in its metadata must have {sorted(_KEYS)}")
        size = {key: value for key, value in entry.items() if key != "name"}
        if isinstance(size.get("border"), list):
            size["border"] = tuple(size["border"])
        return cls(name=entry["name"], preprocessing=Preprocessing(**size))

    def to_json(self) -> dict[str, Any]:
        entries = asdict(self.preprocessing)
        written = {
            key: entry
            for key, entry in entries.items()
            if key not in _OPTIONAL or entry != _OPTIONAL[key]
        }
        return {"name": self.name, **written}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, 3), of one image."""
        return self.preprocessing.height, self.preprocessing.width, 3

    @property
    def item_bytes(self) -> int:
        return math.prod(self.shape)

    def prepare(self, content: Content, role: Role | None) -> tuple[Pixels, bool]:
        if isinstance(content, str | ItemVectors):
            raise self.refuse_other(content)
        return prepare(content, self.preprocessing), False

    def samples(self, n: int) -> Pixels:
        """``n`` grey images (n, H, W, 3) uint8."""
        return np.full((n, *self.shape), 128, np.uint8)


def synthetic_image(number: int, height: int, width: int) -> Pixels:
    """Ramps, a chequered field and noise (H, W, 3), from integers only: the same everywhere."""
    y, x = np.indices((height, width), np.int64)
    ramps = (x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height))
    field = ((x // 7 + y // 5 + number) % 2) * 90
    noise = ((x * 73856093) ^ (y * 19349663) ^ ((number + 1) * 83492791)) % 64
    patterns = [field if channel == number % 3 else noise for channel in range(3)]
    planes = [(ramp + pattern) % 256 for ramp, pattern in zip(ramps, patterns, strict=True)]
    return np.stack(planes, axis=-1).astype(np.uint8)
