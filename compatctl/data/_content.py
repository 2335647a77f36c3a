"""What an item is: an image, a text, or vectors of spaces."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Modality = Literal["image", "text", "vector"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpaceVectors:
    """The vectors of items in one space: what one model gives them.

    Attributes:
        table: (n, D) float32.
        rows: (N,) the table's row of each of N items; -1: the item has none.
    """

    table: Vectors
    rows: Rows


@dataclass(frozen=True, slots=True, eq=False)
class ItemVectors:
    """The vectors of the item at ``position`` of N, in each space by the space's name."""

    spaces: Mapping[str, SpaceVectors]
    position: int

    def take(self, space: str) -> Vectors:
        """The vector (D,) float32 in a space.

        Raises:
            InputError: there is no such space, or no vector of this item in it.
        """
        found = self.spaces.get(space)
        if found is None:
            named = ", ".join(self.spaces) or "none"
            raise InputError(
                f"there are no vectors of {space!r}; the data has those of: {named}",
                tip=f"name their table: --vectors {space}=FILE",
            )
        row = int(found.rows[self.position])
        if row < 0:
            raise InputError(f"there is no vector of {space!r}")
        vector: Vectors = found.table[row]
        return vector

    def has(self, spaces: Collection[str]) -> bool:
        """Whether the item has a vector in each of these spaces of the data."""
        found = (self.spaces.get(space) for space in spaces)
        return all(space is None or space.rows[self.position] >= 0 for space in found)

    def to_bytes(self) -> bytes:
        """The item's vectors in all spaces, in the order of their names."""
        parts = [
            f"{space}\n".encode() + found.table[row].tobytes()
            for space, found in sorted(self.spaces.items())
            if (row := int(found.rows[self.position])) >= 0
        ]
        return b"".join(parts)

    @classmethod
    def single(cls, vectors: Mapping[str, Vectors]) -> ItemVectors:
        """One item with the vector (D,) of each space."""
        rows = np.zeros(1, np.int64)
        return cls(
            {
                space: SpaceVectors(table=np.asarray(vector, np.float32)[None], rows=rows)
                for space, vector in vectors.items()
            },
            0,
        )


Content: TypeAlias = "Image.Image | str | ItemVectors"
"""An item as an encoder's input prepares it: an RGB image, a text, or vectors."""
