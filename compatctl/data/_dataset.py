"""Items, their splits, and the set of them."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Bytes, PerceptualHashes, Pixels, Rows
from compatctl.core.hash_order import hash_fraction
from compatctl.core.perceptual_hash import WIDTH
from compatctl.data._content import Content, ItemVectors, Modality
from compatctl.data._facts import ImageFacts
from compatctl.data._lazy import StoredImage
from compatctl.data._pixels import BAD_IMAGE_TIP, MAX_PIXELS, decode, from_array, look_of
from compatctl.errors import InputError
from compatctl.files import DIGEST_BYTES, absence
from compatctl.files.npz import open_regular
from compatctl.machine import processors
from compatctl.progress import counted

if TYPE_CHECKING:
    from PIL import Image

Split = Literal["train", "validation", "test"]
Role = Literal["query", "gallery"]
Source = Path | StoredImage | bytes | Pixels | str | ItemVectors
"""An image: its file, its place in a larger file, the bytes of an encoded file, or (H, W, 3) or
(H, W) pixels; a text; or vectors."""

_MISSING_TIP = (
    "look at the path: a relative one starts at the table's folder, of a query where you are; "
    "compatctl init --skip-bad leaves such items out, as others do"
)
MAX_STORED_BYTES = 3 * MAX_PIXELS
"""Most bytes of an encoded image in a larger file."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """The description of an image, a text or vectors; if no item has a ``role``, each is query and
    gallery item."""

    id: str
    label: str
    split: Split
    role: Role | None = None
    slices: dict[str, str] = field(default_factory=dict)
    """Column -> value, of further columns that are not empty"""


@dataclass(frozen=True, kw_only=True)
class SplitRule:
    """The split of items without one. It depends on the class, so test classes are unseen.

    ``train`` and ``validation`` are shares of the classes, the rest is test. ``hold_out_items`` is
    the share of training classes' items that become test items: seen class, unseen image.

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
        """The split of an item, by the sha1 of its label and, for held-out items, of its id."""
        fraction = hash_fraction(label)
        if fraction < self.train:
            return "test" if hash_fraction(item_id) < self.hold_out_items else "train"
        return "validation" if fraction < self.train + self.validation else "test"


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """N items and their images, which are read when they are needed; or their texts, or vectors.

    It remembers what was learnt of an image in one reading, its digest and its look, so that a
    command opens few files twice.
    """

    items: tuple[Item, ...]
    sources: tuple[Source, ...]

    def __post_init__(self) -> None:
        if len(self.items) != len(self.sources):
            raise ValueError(f"{len(self.items)} items with {len(self.sources)} sources")

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def modality(self) -> Modality:
        """What the items are: image, text or vector; image if there is none."""
        source = self.sources[0] if self.sources else b""
        if isinstance(source, str):
            return "text"
        return "vector" if isinstance(source, ItemVectors) else "image"

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """N item ids."""
        return tuple(item.id for item in self.items)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """N class labels."""
        return tuple(item.label for item in self.items)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Item id -> row; the last one of a repeated id. It takes 63 bytes an item."""
        return {item_id: row for row, item_id in enumerate(self.ids)}

    def filter(self, *, split: Split | None = None, role: Role | None = None) -> Dataset:
        """The items of a split and a role (None: of any), in the same order."""
        return self.take(
            i
            for i, item in enumerate(self.items)
            if split in {None, item.split} and role in {None, item.role}
        )

    @cached_property
    def _facts(self) -> ImageFacts:
        return ImageFacts.unknown(len(self))

    def without(self, is_excluded: Callable[[str], bool]) -> Dataset:
        """The items whose id is not excluded; this data set itself if none is."""
        rows = [row for row, item_id in enumerate(self.ids) if not is_excluded(item_id)]
        return self if len(rows) == len(self) else self.take(rows)

    def take(self, rows: Iterable[int] | NDArray[np.int64]) -> Dataset:
        """The items at ``rows``, in that order. Both data sets remember what either learns."""
        chosen = [int(row) for row in rows]
        taken = Dataset(
            items=tuple(self.items[row] for row in chosen),
            sources=tuple(self.sources[row] for row in chosen),
        )
        taken.__dict__["_facts"] = self._facts.take(chosen)
        return taken

    def portable(self, *, skip_bad: bool = False) -> Dataset:
        """The items as another process or machine can read them, when pickled.

        Paths are absolute. The bytes of an image in a larger file are read now. ``skip_bad``: one
        that cannot be read has no bytes, and does not decode there.

        Raises:
            InputError: an image in a larger file cannot be read.
        """
        return Dataset(
            items=self.items,
            sources=tuple(_portable(source, skip_bad=skip_bad) for source in self.sources),
        )

    def remember(self, rows: Rows, digests: Bytes) -> None:
        """Take the digests (n, 32) of the items at ``rows`` (n,), as another process read them."""
        self._facts.digests[self._facts.rows[rows]] = digests

    def with_ids(self, ids: Sequence[str]) -> Dataset:
        """The same images under other ids (N). Both data sets remember what either learns."""
        items = zip(self.items, ids, strict=True)
        renamed = Dataset(
            items=tuple(replace(item, id=item_id) for item, item_id in items), sources=self.sources
        )
        renamed.__dict__["_facts"] = self._facts
        return renamed

    def content(self, row: int) -> Content:
        """What an encoder's input prepares: the image as ``read`` gives it, the text, the vectors.

        Raises:
            InputError: as ``read``.
        """
        source = self.sources[row]
        return source if isinstance(source, str | ItemVectors) else self.read(row)

    def read(self, row: int) -> Image.Image:
        """The image of an item: RGB, upright, transparency on white.

        Raises:
            InputError: the item is no image, the file is missing, or it does not decode; the
                message names the item.
        """
        source = self.sources[row]
        if isinstance(source, str | ItemVectors):
            raise InputError(f"{self.items[row].id} is a {self.modality}, and no image")
        if isinstance(source, np.ndarray):
            return from_array(source)
        if isinstance(source, bytes):
            return decode(io.BytesIO(source), self.items[row].id)
        with self._opened(row, source) as file:
            return decode(file, self._name(row, source))

    def content_hashed(self, row: int, *, look: bool = False) -> tuple[Content, bytes]:
        """The content, and its digest (32 bytes); an image as ``read_hashed``, which raises too.

        For vectors the digest is zero: those of one model do not show whether an item changed.
        """
        source = self.sources[row]
        if isinstance(source, ItemVectors):
            return source, bytes(DIGEST_BYTES)
        if isinstance(source, str):
            return source, bytes.fromhex(self.digest(row))
        return self.read_hashed(row, look=look)

    def read_hashed(self, row: int, *, look: bool = False) -> tuple[Image.Image, bytes]:
        """The image, and the sha256 (32 bytes) of the very bytes that were decoded.

        Both come from one open file, so a file that is replaced cannot give the image of one and
        the digest of the other. The digest, and with ``look`` the look, is remembered.

        Raises:
            InputError: as ``read``; or the file changed since its digest was remembered.
        """
        source = self.sources[row]
        if isinstance(source, Path | StoredImage):
            with self._opened(row, source) as file:
                image = decode(file, self._name(row, source))
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").digest()
            self._remember(row, digest)
        else:
            image, digest = self.read(row), bytes.fromhex(self.digest(row))
        if look and not self._facts.look(row).any():
            self._facts.look(row)[:] = look_of(image)
        return image, digest

    def digest(self, row: int) -> str:
        """sha256 (hex) of the bytes of the image's file, or of its array, when first read; of a
        text in UTF-8; of an item's vectors in all spaces of the data.

        Raises:
            InputError: the file is missing or unreadable.
        """
        known, source = self._facts.digest(row), self.sources[row]
        if known.any():
            return known.tobytes().hex()
        if isinstance(source, Path | StoredImage):
            with self._opened(row, source) as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        else:
            digest = hashlib.sha256(_own_bytes(source)).digest()
        known[:] = np.frombuffer(digest, np.uint8)
        return digest.hex()

    def looks(self, rows: Sequence[int]) -> tuple[PerceptualHashes, Rows]:
        """Looks (n, 24) of the ``rows`` whose image decodes, and their positions (n,) in ``rows``.

        Threads read the images whose look is not known. Texts and vectors have no look.
        """
        if self.modality != "image":
            return np.zeros((0, WIDTH), np.uint8), np.zeros(0, np.int64)

        def learn(row: int) -> bool:
            try:
                return bool(self._facts.look(row).any() or self.read_hashed(row, look=True))
            except InputError:
                return False

        with ThreadPoolExecutor(processors(), thread_name_prefix="compatctl-look") as pool:
            learned = counted(pool.map(learn, rows), "looking for near copies", len(rows))
            known = np.array(list(learned), bool)
        positions = np.flatnonzero(known)
        looks = [self._facts.look(rows[int(position)]) for position in positions]
        return np.array(looks, np.uint8).reshape(-1, WIDTH), positions

    def original(self, row: int, max_bytes: int) -> bytes | Pixels | str:
        """The bytes of the image's file, or its array; or the text.

        Raises:
            InputError: the file is missing or unreadable, has more than ``max_bytes``, or changed
                since its digest was remembered; or the item has vectors, and no content.
        """
        source = self.sources[row]
        if isinstance(source, ItemVectors):
            raise InputError(f"{self.items[row].id} has vectors, and no content to keep")
        if not isinstance(source, Path | StoredImage):
            return source
        with self._opened(row, source) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InputError(f"{self._name(row, source)}: has more than {max_bytes} bytes")
        self._remember(row, hashlib.sha256(data).digest())
        return data

    def digest_all(self) -> str:
        """sha256 (hex) over the descriptions and images of all items, in any order."""
        lines = sorted(
            json.dumps([i.id, i.label, i.split, i.role, i.slices, self.digest(row)], sort_keys=True)
            for row, i in enumerate(counted(self.items, "reading every item", len(self)))
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def readable(self) -> tuple[Dataset, tuple[str, ...]]:
        """The items whose image decodes, and the ids of the others. Reads every image."""
        keep, bad = [], []
        for row, item in enumerate(counted(self.items, "reading every item", len(self))):
            try:
                self.content_hashed(row)
            except InputError:
                bad.append(item.id)
            else:
                keep.append(row)
        return (self.take(keep) if bad else self), tuple(bad)

    def _remember(self, row: int, digest: bytes) -> None:
        """Remember a digest, or raise InputError if it is not the one that is known."""
        known = self._facts.digest(row)
        if known.any() and known.tobytes() != digest:
            raise InputError(
                f"the image of {self.items[row].id} changed while the command ran",
                tip="run it again when nothing writes to the data",
            )
        known[:] = np.frombuffer(digest, np.uint8)

    @contextmanager
    def _opened(
        self, row: int, source: Path | StoredImage
    ) -> Iterator[io.BufferedReader | io.BytesIO]:
        if isinstance(source, StoredImage):
            yield source.open(MAX_STORED_BYTES)
            return
        try:
            with open_regular(source) as file:
                yield file
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            name = self._name(row, source)
            tip = _tip_of(source, error)
            raise InputError(f"{name}: cannot be read: {reason}", tip=tip) from error

    def _name(self, row: int, source: Path | StoredImage) -> str:
        name = self.items[row].id
        return name if str(source).endswith(name) else f"{name} ({source})"


def _own_bytes(source: bytes | Pixels | str | ItemVectors) -> bytes:
    """The bytes of an item that is not in a file of its own."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, np.ndarray):
        return source.tobytes()
    return source.encode("utf-8") if isinstance(source, str) else source.to_bytes()


def merge_items(*parts: Dataset) -> Dataset:
    """The items of all data sets, each id once, from the first data set that has it."""
    parts = parts[::-1]
    merged = Dataset(
        items=tuple(item for part in parts for item in part.items),
        sources=tuple(source for part in parts for source in part.sources),
    )
    merged.__dict__["_facts"] = ImageFacts.joined([part._facts for part in parts])
    return merged.take(merged.row_of.values())


def _tip_of(path: Path, error: Exception) -> str:
    """What to do about an image file that cannot be opened."""
    if not isinstance(error, FileNotFoundError):
        return BAD_IMAGE_TIP
    if "\\" in str(path):
        return "write paths with / between folders and names"
    if any(part != part.strip().strip("\"'") for part in path.parts):
        return f"a path is taken as it is written, with blanks and quotes: {str(path)!r}"
    return absence(path) or _MISSING_TIP


def _portable(source: Source, *, skip_bad: bool) -> Source:
    """A source that does not depend on this process."""
    if isinstance(source, Path):
        return source.absolute()
    if not isinstance(source, StoredImage):
        return source
    try:
        return source.read(MAX_STORED_BYTES)
    except InputError:
        if not skip_bad:
            raise
        return b""
