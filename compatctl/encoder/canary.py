"""Canaries: a few images and a model's embeddings of them when the store got it.

The same file can give other embeddings with another ONNX Runtime, processor or pillow. A gallery of
one and queries of the other are two models in one index, and the files do not show it. So the
images are embedded again and compared before anything is served.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Vectors
from compatctl.data import Dataset, Item, ItemVectors, Source
from compatctl.encoder.runtime import Encoder
from compatctl.encoder.synthetic import synthetic_item
from compatctl.errors import DamagedError, InputError
from compatctl.files.npz import read_npz
from compatctl.pauses import pause

LIMIT = 1e-3
"""The largest L2 distance between the unit rows of then and now; a cosine of 0.9999995."""

ITEMS = 4
"""How many items a canary has."""

_MAX_BYTES = 64 << 20
_VECTOR = re.compile(r"vector_(\d+)_(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, eq=False)
class Canary:
    """``items``: n images (H, W, 3) uint8, texts, or vectors; ``rows`` (n, D) float32: their
    embeddings; ``runtime``: the versions of the libraries, for people; ``free`` (n, D_free)
    float32: their free vectors, if the model gives them."""

    items: tuple[Source, ...]
    rows: Vectors
    runtime: str
    free: Vectors | None = None

    @classmethod
    def from_encoder(cls, encoder: Encoder) -> Self:
        """The canary of an encoder as it embeds here and now.

        Raises:
            InputError: the encoder does not give finite unit rows.
        """
        items = tuple(synthetic_item(encoder.inputs, number) for number in range(ITEMS))
        rows, free = _embed(encoder, items)
        return cls(items=items, rows=rows, runtime=_runtime(), free=free)

    def write(self, path: Path) -> None:
        """Write an npz to a new file."""
        arrays: dict[str, Any] = {}
        for number, item in enumerate(self.items):
            arrays |= _arrays_of(number, item)
        if self.free is not None:
            arrays["free"] = self.free
        with path.open("xb") as file:
            np.savez(file, rows=self.rows, runtime=np.array(self.runtime), **arrays)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote.

        Raises:
            DamagedError: it is not a canary.
        """
        arrays = read_npz(path, max_bytes=_MAX_BYTES, error=DamagedError)
        rows, runtime = arrays.pop("rows", np.zeros(0)), arrays.pop("runtime", None)
        free = arrays.pop("free", None)
        items = _items_of(arrays)
        valid = (
            items is not None
            and len(items) > 0
            and _are_rows(rows, len(items))
            and (free is None or _are_rows(free, len(items)))
            and runtime is not None
        )
        if not valid or items is None:
            tip = "restore the file from a backup"
            raise DamagedError(f"{path} is not a model's canary", tip=tip)
        return cls(items=items, rows=rows, runtime=str(runtime), free=free)

    def difference(self, encoder: Encoder) -> float:
        """The largest L2 distance between the stored rows, free ones included, and those of
        ``encoder`` now, with the items embedded together and each alone.

        Raises:
            InputError: the encoder has another dimension, or gives rows that are not finite and
                unit.
        """
        dim, free_dim = self.rows.shape[1], None if self.free is None else self.free.shape[1]
        if encoder.dim != dim:
            raise InputError(f"{encoder.name} has {encoder.dim} dimensions; its canary has {dim}")
        if encoder.free_dim != free_dim:
            raise InputError(
                f"{encoder.name} has free vectors of {encoder.free_dim} dimensions; its canary has "
                f"{free_dim}"
            )
        batch = _embed(encoder, self.items)
        pause()
        alone = zip(*(_embed(encoder, (item,)) for item in self.items), strict=True)
        now = [*batch, *(np.concatenate(rows) if rows[0] is not None else None for rows in alone)]
        pairs = zip((self.rows, self.free) * 2, now, strict=True)
        return max(_distance(a, b) for a, b in pairs if a is not None and b is not None)

    def check_unchanged(self, encoder: Encoder) -> None:
        """Refuse to serve with an encoder that gives other embeddings than it once did.

        Raises:
            InputError: they differ by more than ``LIMIT``; the message has the difference.
        """
        difference = self.difference(encoder)
        if not difference <= LIMIT:
            raise InputError(
                f"{encoder.name} gives other vectors here than when the store got it: its canary "
                f"differs by {difference:.3g}, the limit is {LIMIT:g} "
                f"(then {self.runtime}; now {_runtime()})",
                tip="use the earlier libraries; or measure the cost (compatctl verify) and deploy "
                "the model again",
            )


def _are_rows(array: Vectors, n: int) -> bool:
    return array.dtype == np.float32 and array.ndim == 2 and len(array) == n


def _distance(first: Vectors, second: Vectors) -> float:
    return float(np.linalg.norm(first - second, axis=1).max())


def _arrays_of(number: int, item: Source) -> dict[str, NDArray[Any]]:
    """The arrays that a canary's file has of an item."""
    if isinstance(item, str):
        return {f"text_{number}": np.array(item)}
    if isinstance(item, ItemVectors):
        return {f"vector_{number}_{space}": item.take(space) for space in item.spaces}
    return {f"image_{number}": np.asarray(item)}


def _items_of(arrays: dict[str, NDArray[Any]]) -> tuple[Source, ...] | None:
    """The items that ``_arrays_of`` described; None if the arrays are others."""
    items: dict[int, Any] = {}
    for name, array in arrays.items():
        kind, _, number = name.partition("_")
        image = array.dtype == np.uint8 and array.size and array.shape[2:] == (3,)
        if kind == "image" and number.isdecimal() and image:
            items[int(number)] = array
        elif kind == "text" and number.isdecimal() and array.dtype.kind == "U":
            items[int(number)] = str(array)
        elif (match := _VECTOR.fullmatch(name)) and array.dtype == np.float32 and array.ndim == 1:
            items.setdefault(int(match[1]), {})[match[2]] = array
        else:
            return None
    kinds = {type(item) for item in items.values()}
    if len(kinds) != 1 or sorted(items) != [*range(len(items))]:
        return None
    ordered = [items[number] for number in range(len(items))]
    return tuple(ItemVectors.single(item) if isinstance(item, dict) else item for item in ordered)


def _embed(encoder: Encoder, sources: tuple[Source, ...]) -> tuple[Vectors, Vectors | None]:
    """Rows (n, D) and maybe free ones; nothing is said of texts that are cut off."""
    ids = [f"canary {number}" for number in range(len(sources))]
    items = tuple(Item(id=item_id, label="", split="test", role="query") for item_id in ids)
    data = Dataset(items=items, sources=sources)
    prepared = [encoder.prepare(data.content(row), "query")[0] for row in range(len(data))]
    outputs, size = tuple(encoder.dims), encoder.largest_batch
    batches = [prepared[start : start + size] for start in range(0, len(prepared), size)]
    parts = zip(*(encoder.unchecked_rows(outputs, batch) for batch in batches), strict=True)
    rows = [np.concatenate(part) for part in parts]
    encoder.check_unit(outputs, rows, ids)
    return rows[0], rows[1] if encoder.has_free else None


def _runtime() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "pillow"))
