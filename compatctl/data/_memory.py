"""The rehearsal memory: a few training items of each class, kept in the store with the model.

It is an .npz with two arrays: ``items``, JSON that describes images or texts in order, and
``data``, their bytes one after the other. A file's bytes are copied, so the digests are those of
the training record, and the same items give the same memory on every machine. It holds no path.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Pixels
from compatctl.core.hash_order import hash_key
from compatctl.data._dataset import Dataset, Item, Source
from compatctl.data._pixels import MAX_PIXELS
from compatctl.errors import CompatError, InputError
from compatctl.files.npz import read_npz

MAX_MEMORY_ITEMS = 1 << 19
"""Most images of a memory."""

MAX_MEMORY_BYTES = 4 << 30
"""Most bytes of all images of a memory."""

MAX_IMAGE_BYTES = 3 * MAX_PIXELS
"""Most bytes of one image, encoded or not."""

MAX_DESCRIPTION = 1 << 27
"""Most bytes of the description of all items."""

_FORMAT = 1
_TEXT = "text"
"""In place of a shape: the bytes are a text in UTF-8."""

_ENTRY = {"id", "label", "sha256", "bytes", "shape"}
_TIP = "lower rehearsal.per_class in the recipe, or rehearse smaller images"


def sample_per_class(ids: Sequence[str], labels: Sequence[str], per_class: int) -> tuple[int, ...]:
    """Rows of at most ``per_class`` items of each class, ascending: those whose ids hash lowest.

    A sample of an earlier sample and new items is the sample of all items.
    """
    by_class: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for row, (item_id, label) in enumerate(zip(ids, labels, strict=True)):
        by_class[label].append((hash_key(item_id), row))
    samples = (sorted(hashed)[:per_class] for hashed in by_class.values())
    return tuple(sorted(row for sample in samples for _, row in sample))


def memory_bytes(items: Dataset) -> bytes:
    """The memory of ``items``; no bytes without items. Equal items in any order give equal bytes.

    Raises:
        InputError: an image is unreadable or changed since it was hashed, or a limit is exceeded.
    """
    if not len(items):
        return b""
    if len(items) > MAX_MEMORY_ITEMS:
        raise InputError(
            f"{len(items)} images; a memory has at most {MAX_MEMORY_ITEMS} of them", tip=_TIP
        )
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    total = 0
    for row in sorted(range(len(items)), key=lambda row: (items.labels[row], items.ids[row])):
        source = items.original(row, MAX_IMAGE_BYTES)
        data, shape = _described(source)
        total += len(data)
        if len(data) > MAX_IMAGE_BYTES or total > MAX_MEMORY_BYTES:
            raise InputError(
                f"{len(items)} images have more than the {MAX_MEMORY_BYTES} bytes that a memory "
                f"may have, or {items.ids[row]} has more than {MAX_IMAGE_BYTES}",
                tip=_TIP,
            )
        entries.append(
            {
                "id": items.ids[row],
                "label": items.labels[row],
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "shape": shape,
            }
        )
        parts.append(data)
    text = json.dumps({"format": _FORMAT, "items": entries}, sort_keys=True).encode()
    if len(text) > MAX_DESCRIPTION:
        raise InputError(f"the ids of {len(items)} images are too long to describe", tip=_TIP)
    file = io.BytesIO()
    images = np.frombuffer(b"".join(parts), np.uint8)
    np.savez(file, items=np.frombuffer(text, np.uint8), data=images)
    return file.getvalue()


def _described(source: bytes | Pixels | str) -> tuple[bytes, tuple[int, ...] | str | None]:
    """The bytes of an item, and what they are: of an array of a shape, a text, or a file (None)."""
    if isinstance(source, str):
        return source.encode("utf-8"), _TEXT
    return (source, None) if isinstance(source, bytes) else (source.tobytes(), source.shape)


def read_memory(path: Path, *, error: type[CompatError] = InputError) -> Dataset:
    """The items of a memory, as training items.

    Raises:
        CompatError: of the class ``error``: the file is unreadable, no memory, or over a limit; or
            the digest of an image differs from its entry.
    """
    arrays = read_npz(path, max_bytes=MAX_MEMORY_BYTES + MAX_DESCRIPTION + (1 << 20), error=error)
    try:
        return _dataset(arrays)
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise error(
            f"{path}: not a readable rehearsal memory: {problem}",
            tip="restore the file from a backup, or finetune again",
        ) from None


def _dataset(arrays: dict[str, NDArray[Any]]) -> Dataset:
    types = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    if types != dict.fromkeys(("items", "data"), (np.dtype(np.uint8), 1)):
        raise ValueError(f"expected the bytes items and data, got {sorted(types)}")
    if arrays["items"].nbytes > MAX_DESCRIPTION:
        raise ValueError(f"its description has more than {MAX_DESCRIPTION} bytes")
    content = json.loads(arrays["items"].tobytes())
    if not isinstance(content, dict) or content.keys() != {"format", "items"}:
        raise ValueError("its description is not known")
    if content["format"] != _FORMAT or not isinstance(content["items"], list):
        raise ValueError(f"format {str(content['format'])[:20]}; this version reads {_FORMAT}")
    entries = [_checked(entry) for entry in content["items"]]
    if len(entries) > MAX_MEMORY_ITEMS or len({entry["id"] for entry in entries}) < len(entries):
        raise ValueError("an id is there twice, or there are too many items")
    ends = [0, *accumulate(entry["bytes"] for entry in entries)]
    if ends[-1] != len(arrays["data"]):
        raise ValueError(f"its images have {len(arrays['data'])} bytes, not {ends[-1]}")
    return Dataset(
        items=tuple(Item(id=entry["id"], label=entry["label"], split="train") for entry in entries),
        sources=tuple(
            _source(entry, arrays["data"][end - entry["bytes"] : end])
            for entry, end in zip(entries, ends[1:], strict=True)
        ),
    )


def _checked(entry: Any) -> dict[str, Any]:
    """An item's description, after a check of every type and limit."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise ValueError(f"an item is {str(entry)[:80]}")
    texts = (entry["id"], entry["label"], entry["sha256"])
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"an item without an id, class or digest: {str(entry)[:80]}")
    size, shape = entry["bytes"], entry["shape"]
    if type(size) is not int or not 0 < size <= MAX_IMAGE_BYTES:
        raise ValueError(f"{entry['id'][:80]} has {str(size)[:20]} bytes")
    if shape not in (None, _TEXT) and not _is_shape(shape, size):
        raise ValueError(f"{entry['id'][:80]} has the impossible shape {str(shape)[:80]}")
    return entry


def _is_shape(shape: Any, size: int) -> bool:
    """Whether it is the shape (H, W) or (H, W, 3) of an array of ``size`` bytes."""
    if not isinstance(shape, list) or not all(type(side) is int and side > 0 for side in shape):
        return False
    return (len(shape) == 2 or shape[2:] == [3]) and int(np.prod(shape, dtype=object)) == size


def _source(entry: dict[str, Any], data: NDArray[np.uint8]) -> Source:
    if hashlib.sha256(data.data).hexdigest() != entry["sha256"]:
        raise ValueError(f"the digest of {entry['id'][:80]} differs from its entry")
    if entry["shape"] == _TEXT:
        return data.tobytes().decode("utf-8")
    return data.tobytes() if entry["shape"] is None else data.reshape(entry["shape"])
