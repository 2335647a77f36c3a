"""The vector modality: models behind an API, whose vectors are all that there is of an item.

What such a model gives its items is one *space*, with a name. An encoder of this modality takes
vectors of a space and gives unit rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from onnx import TensorProto

from compatctl.core.arrays import Vectors
from compatctl.data import Content, ItemVectors, Role
from compatctl.encoder.inputs import EncoderInput
from compatctl.errors import InputError

VECTOR = "vector"
"""The name of the first input of vectors, and its kind in the metadata."""

MAX_SPACE = 256
"""The most characters of the name of a space."""

MAX_VECTOR = 65_536
"""The most dimensions of a space."""

_KEYS = {"kind", "name", "space", "dim"}


@dataclass(frozen=True, kw_only=True)
class VectorInput(EncoderInput):
    """Vectors (batch, dim) float32 of the space that is called ``space``, of any length above 0."""

    MODALITY = "vector"
    ELEMENT = TensorProto.FLOAT

    space: str
    dim: int

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """The input that ``to_json`` describes.

        Raises:
            InputError: an entry is missing, unknown or out of range.
        """
        name, space, dim = (entry.get(key) for key in ("name", "space", "dim"))
        if (
            set(entry) != _KEYS
            or not isinstance(name, str)
            or not (isinstance(space, str) and 0 < len(space) <= MAX_SPACE)
            or not (type(dim) is int and 0 < dim <= MAX_VECTOR)
        ):
            raise InputError(
                f"an input of vectors in its metadata must have {sorted(_KEYS)}, with a space of "
                f"1 to {MAX_SPACE} characters and 1 to {MAX_VECTOR} dimensions"
            )
        return cls(name=name, space=space, dim=dim)

    def to_json(self) -> dict[str, Any]:
        return {"kind": VECTOR, "name": self.name, "space": self.space, "dim": self.dim}

    @property
    def shape(self) -> tuple[int]:
        return (self.dim,)

    @property
    def item_bytes(self) -> int:
        return 4 * self.dim

    def prepare(self, content: Content, role: Role | None) -> tuple[Vectors, bool]:
        if not isinstance(content, ItemVectors):
            raise self.refuse_other(content)
        vector = content.take(self.space)
        if vector.shape != (self.dim,):
            raise InputError(
                f"its vector of {self.space!r} has {len(vector)} dimensions, expected {self.dim}",
                tip="name the table of the model that the encoder was made for",
            )
        return vector, False

    def samples(self, n: int) -> Vectors:
        """``n`` equal unit vectors (n, dim) float32."""
        return np.full((n, self.dim), self.dim**-0.5, np.float32)


def synthetic_vector(number: int, dim: int) -> Vectors:
    """A unit vector (dim,) float32, from integers only: the same everywhere."""
    position = np.arange(dim, dtype=np.int64)
    noise = ((position + 1) * 73856093) ^ ((number + 1) * 83492791 * (position % 13 + 1))
    vector = (noise % 2001).astype(np.float64) / 1000 - 1
    vector[number % dim] += 2
    unit: Vectors = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit
