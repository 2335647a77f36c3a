"""Items, the split by class, and the data set that reads an item's image."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from compatctl.data.images import decode
from compatctl.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "validation", "test"]
Role = Literal["query", "gallery"]
SPLITS = ("train", "validation", "test")
ROLES = ("query", "gallery")


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One image: unique ``id``, class ``label``, what it serves for, and its slice columns."""

    id: str
    label: str
    split: Split
    role: Role | None = None
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Shares of the CLASSES that train and that choose settings; the others test.

    A class goes where the sha1 of its label says, so that no run and no machine differs.
    ``hold_out_items``: share of the items of training classes that test too, by the sha1 of the id:
    classes that were seen in training, on images that were not.
    """

    train: float = 0.6
    validation: float = 0.1
    hold_out_items: float = 0.0

    def split_of(self, label: str, item_id: str) -> Split:
        """The split of an item."""
        at = _fraction(label)
        if at < self.train:
            return "test" if _fraction(item_id) < self.hold_out_items else "train"
        return "validation" if at < self.train + self.validation else "test"


def _fraction(text: str) -> float:
    """The first 8 bytes of the text's sha1 as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha1(text.encode("utf-8")).digest()[:8], "big") / 2.0**64


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Items and where their images are: ``paths``, or the rows of ``pixels``.

    ``pixels`` is (M, H, W, 3) or (M, H, W) uint8; ``rows`` (N,) maps an item to its row.
    """

    items: tuple[Item, ...]
    paths: tuple[Path, ...] | None = None
    pixels: NDArray[np.uint8] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The items' ids."""
        return tuple(item.id for item in self.items)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The items' classes."""
        return tuple(item.label for item in self.items)

    def where(self, *, split: Split | None = None, role: Role | None = None) -> Dataset:
        """The items of a split and of a role, in their order."""
        keep = [
            row
            for row, item in enumerate(self.items)
            if (split is None or item.split == split) and (role is None or item.role == role)
        ]
        return self.take(keep)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> Dataset:
        """The items of these rows (n,), in the order given."""
        chosen = [int(row) for row in rows]
        return Dataset(
            items=tuple(self.items[row] for row in chosen),
            paths=None if self.paths is None else tuple(self.paths[row] for row in chosen),
            pixels=self.pixels,
            rows=None if self.rows is None else self.rows[chosen],
        )

    def read(self, row: int) -> Image.Image:
        """The item's RGB image.

        Raises:
            InputError: the file is missing or does not decode; the message names the item.
        """
        if self.pixels is not None and self.rows is not None:
            from PIL import Image

            return Image.fromarray(self.pixels[self.rows[row]]).convert("RGB")
        return decode(self._bytes(row), f"item {self.items[row].id!r}")

    def digest(self, row: int) -> str:
        """sha256 (hex) of the item's file, or of its pixels.

        Raises:
            InputError: the file cannot be read.
        """
        if self.pixels is not None and self.rows is not None:
            pixels = self.pixels[self.rows[row]]
            return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        return hashlib.sha256(self._bytes(row)).hexdigest()

    def readable(self) -> tuple[Dataset, tuple[str, ...]]:
        """The items whose image decodes, and the ids of the others: one pass over every image."""
        keep, bad = [], []
        for row, item in enumerate(self.items):
            try:
                self.read(row)
            except InputError:
                bad.append(item.id)
            else:
                keep.append(row)
        return (self.take(keep) if bad else self), tuple(bad)

    def mapped(self, change: Callable[[Item], Item]) -> Dataset:
        """The same images with changed items."""
        return replace(self, items=tuple(change(item) for item in self.items))

    def _bytes(self, row: int) -> bytes:
        if self.paths is None:
            raise InputError(f"item {self.items[row].id!r} has no image")
        try:
            return self.paths[row].read_bytes()
        except OSError as error:
            raise InputError(
                f"item {self.items[row].id!r}: {self.paths[row]}: {error.strerror}",
                tip="paths in a table are relative to the table's folder",
            ) from None
