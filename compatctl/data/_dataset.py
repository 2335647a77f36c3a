"""Items, their splits, and the set of them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Pixels
from compatctl.core.hash_order import hash_fraction
from compatctl.data._pixels import BAD_IMAGE_TIP, decode, from_array
from compatctl.errors import InputError
from compatctl.files.npz import open_regular

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "validation", "test"]
Role = Literal["query", "gallery"]
Source = Path | bytes | Pixels
"""Where an image is: its file, the bytes of an encoded file, or (H, W, 3) or (H, W) pixels."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image's description; ``role`` is None where the data does not say who searches whom."""

    id: str
    label: str
    split: Split
    role: Role | None = None
    slices: dict[str, str] = field(default_factory=dict)
    """Column name -> value, of every further column that has one"""


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """Which split an item without one is of, by its class alone, so that classes are unseen.

    ``train`` and ``validation`` are shares of the classes, the rest is test; ``hold_out_items`` is
    the share of the training classes' items that become test items (seen class, unseen image).

    Raises:
        InputError: a share outside 0 .. 1, or ``train + validation`` over 1.
    """

    train: float = 0.6
    validation: float = 0.1
    hold_out_items: float = 0.0

    def __post_init__(self) -> None:
        for name in ("train", "validation", "hold_out_items"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise InputError(f"split: {name} is a share, 0 .. 1; got {share!r}")
        if self.train + self.validation > 1.0 + 1e-9:
            total = self.train + self.validation
            raise InputError(f"split: train + validation must be at most 1, got {total:g}")

    def split_of(self, label: str, item_id: str) -> Split:
        """The split of one item, from the sha1 of its label and, for held-out items, of its id."""
        at = hash_fraction(label)
        if at < self.train:
            return "test" if hash_fraction(item_id) < self.hold_out_items else "train"
        return "validation" if at < self.train + self.validation else "test"


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """N items, and where each one's image is: a file, a file's bytes, or an (H, W, 3) or (H, W)
    uint8 array."""

    items: tuple[Item, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.sources):
            raise ValueError(f"{len(self.items)} items with {len(self.sources)} sources")

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """N ids."""
        return tuple(item.id for item in self.items)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """N labels."""
        return tuple(item.label for item in self.items)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row; the last one of a repeated id. It takes 63 bytes an item."""
        return {item_id: row for row, item_id in enumerate(self.ids)}

    def filter(self, *, split: Split | None = None, role: Role | None = None) -> Dataset:
        """The items of that split and that role, in the same order; None asks for any."""
        return self.take(
            i
            for i, item in enumerate(self.items)
            if split in {None, item.split} and role in {None, item.role}
        )

    def take(self, rows: Iterable[int] | NDArray[np.int64]) -> Dataset:
        """The items at ``rows``, in that order. No image is copied or read."""
        chosen = [int(row) for row in rows]
        return Dataset(
            items=tuple(self.items[row] for row in chosen),
            sources=tuple(self.sources[row] for row in chosen),
        )

    def read(self, row: int) -> Image.Image:
        """The image of one item: RGB, upright, transparency on white.

        Raises:
            InputError: the file is missing or does not decode; the message names the item.
        """
        source = self.sources[row]
        if isinstance(source, np.ndarray):
            return from_array(source)
        if isinstance(source, bytes):
            return decode(io.BytesIO(source), self.items[row].id)
        name = self._name(row, source)
        try:
            with open_regular(source) as file:
                return decode(file, name)
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error

    def read_hashed(self, row: int) -> tuple[Image.Image, bytes]:
        """``read``, and the sha256 (32 bytes) of what was read: ``digest``, from the same open
        file, so that no exchange in between can part the two.

        Raises:
            InputError: as ``read``.
        """
        source = self.sources[row]
        if not isinstance(source, Path):
            return self.read(row), bytes.fromhex(self.digest(row))
        name = self._name(row, source)
        try:
            with open_regular(source) as file:
                image = decode(file, name)
                file.seek(0)
                return image, hashlib.file_digest(file, "sha256").digest()
        except (OSError, ValueError) as error:
            raise _unreadable(name, error) from error

    def digest(self, row: int) -> str:
        """sha256 (hex) of the image file's bytes, or of the array's.

        Raises:
            InputError: the file is missing or must not be read.
        """
        source = self.sources[row]
        if isinstance(source, np.ndarray):
            return hashlib.sha256(source.tobytes()).hexdigest()
        if isinstance(source, bytes):
            return hashlib.sha256(source).hexdigest()
        try:
            with open_regular(source) as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            raise _unreadable(self._name(row, source), error) from error

    def original(self, row: int, max_bytes: int) -> bytes | Pixels:
        """The bytes of the image's file, of which ``digest`` is, or its array.

        Raises:
            InputError: the file is missing, must not be read, or has more than ``max_bytes``.
        """
        source = self.sources[row]
        if not isinstance(source, Path):
            return source
        try:
            with open_regular(source) as file:
                data = file.read(max_bytes + 1)
        except (OSError, ValueError) as error:
            raise _unreadable(self._name(row, source), error) from error
        if len(data) > max_bytes:
            raise InputError(f"{self._name(row, source)}: has more than {max_bytes} bytes")
        return data

    def digest_all(self) -> str:
        """sha256 (hex) over every item's description and image, whatever their order."""
        lines = sorted(
            json.dumps([i.id, i.label, i.split, i.role, i.slices, self.digest(row)], sort_keys=True)
            for row, i in enumerate(self.items)
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def readable(self) -> tuple[Dataset, tuple[str, ...]]:
        """The items whose image decodes, and the ids of the others; every image is read once."""
        keep, bad = [], []
        for row, item in enumerate(self.items):
            try:
                self.read(row)
            except InputError:
                bad.append(item.id)
            else:
                keep.append(row)
        return (self.take(keep) if bad else self), tuple(bad)

    def _name(self, row: int, source: Path) -> str:
        name = self.items[row].id
        return name if str(source).endswith(name) else f"{name} ({source})"


def _unreadable(name: str, error: Exception) -> InputError:
    reason = error.strerror if isinstance(error, OSError) else error
    return InputError(f"{name}: cannot be read: {reason}", tip=BAD_IMAGE_TIP)
