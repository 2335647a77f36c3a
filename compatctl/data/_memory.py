"""The rehearsal memory: a few training images of each class, which the store keeps with the model.

One .npz of two arrays: ``items``, JSON that describes the images in order, and ``data``, their
bytes one after the other: a file's as they are, an array's row by row. So the digest of each is the
one that the training record has, the same images give the same bytes on every machine, and no
encoder's version matters. It holds ids, classes and images; no path.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.core.hash_order import hash_key
from compatctl.data._dataset import Dataset, Item, Source
from compatctl.data._pixels import MAX_PIXELS
from compatctl.errors import CompatError, InputError
from compatctl.files.npz import read_npz

MAX_MEMORY_ITEMS = 1 << 19
"""The most images of one memory."""

MAX_MEMORY_BYTES = 4 << 30
"""The most bytes that the images of one memory have together."""

MAX_IMAGE_BYTES = 3 * MAX_PIXELS
"""The most bytes of one image, encoded or not."""

MAX_DESCRIPTION = 1 << 27
"""The most bytes of the description of all items."""

_FORMAT = 1
_ENTRY = {"id", "label", "sha256", "bytes", "shape"}
_TIP = "lower rehearsal.per_class in the recipe, or rehearse smaller images"


def sample_per_class(ids: Sequence[str], labels: Sequence[str], per_class: int) -> tuple[int, ...]:
    """Rows of at most ``per_class`` items of each class: those whose ids hash lowest, ascending.

    Chosen again from what was chosen before and from new items it is the choice from all of them.
    """
    by_class: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for row, (one, label) in enumerate(zip(ids, labels, strict=True)):
        by_class[label].append((hash_key(one), row))
    return tuple(sorted(row for found in by_class.values() for _, row in sorted(found)[:per_class]))


def memory_bytes(items: Dataset) -> bytes:
    """The file that holds the images of ``items``; its bytes depend on nothing else.

    Raises:
        InputError: an image cannot be read, or they are more than the limits of this module.
    """
    if len(items) > MAX_MEMORY_ITEMS:
        raise InputError(
            f"{len(items)} images; a memory has at most {MAX_MEMORY_ITEMS} of them", tip=_TIP
        )
    entries: list[dict[str, Any]] = []
    parts: list[bytes] = []
    total = 0
    for row in sorted(range(len(items)), key=lambda row: (items.labels[row], items.ids[row])):
        source = items.original(row, MAX_IMAGE_BYTES)
        shape = None if isinstance(source, bytes) else source.shape
        data = source if isinstance(source, bytes) else source.tobytes()
        total += len(data)
        if len(data) > MAX_IMAGE_BYTES or total > MAX_MEMORY_BYTES:
            raise InputError(
                f"{len(items)} images have more than the {MAX_MEMORY_BYTES} bytes that a memory "
                f"may have, or {items.ids[row]} more than {MAX_IMAGE_BYTES}",
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


def read_memory(path: Path, *, error: type[CompatError] = InputError) -> Dataset:
    """What ``memory_bytes`` made, as training items; their images are decoded when they are read.

    Raises:
        CompatError: of the class ``error``: it cannot be read, is no memory, larger than the limits
            of this module, or an image has another digest than its entry says.
    """
    arrays = read_npz(path, max_bytes=MAX_MEMORY_BYTES + MAX_DESCRIPTION + (1 << 20), error=error)
    try:
        return _dataset(arrays)
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise error(
            f"{path}: not a rehearsal memory that can be read: {problem}",
            tip="restore the file from a backup, or finetune again",
        ) from None


def _dataset(arrays: dict[str, NDArray[Any]]) -> Dataset:
    columns = {name: (one.dtype, one.ndim) for name, one in arrays.items()}
    if columns != dict.fromkeys(("items", "data"), (np.dtype(np.uint8), 1)):
        raise ValueError(f"expected the bytes items and data, got {sorted(columns)}")
    if arrays["items"].nbytes > MAX_DESCRIPTION:
        raise ValueError(f"its description has more than {MAX_DESCRIPTION} bytes")
    told = json.loads(arrays["items"].tobytes())
    if not isinstance(told, dict) or told.keys() != {"format", "items"}:
        raise ValueError("its description is not known")
    if told["format"] != _FORMAT or not isinstance(told["items"], list):
        raise ValueError(f"format {str(told['format'])[:20]}; this version reads {_FORMAT}")
    entries = [_checked(one) for one in told["items"]]
    if len(entries) > MAX_MEMORY_ITEMS or len({one["id"] for one in entries}) < len(entries):
        raise ValueError("an id is there twice, or there are too many items")
    ends = [0, *accumulate(one["bytes"] for one in entries)]
    if ends[-1] != len(arrays["data"]):
        raise ValueError(f"its images have {len(arrays['data'])} bytes, not {ends[-1]}")
    places = list(pairwise(ends))
    return Dataset(
        items=tuple(Item(id=one["id"], label=one["label"], split="train") for one in entries),
        sources=tuple(
            _source(one, arrays["data"][start:stop])
            for one, (start, stop) in zip(entries, places, strict=True)
        ),
    )


def _checked(entry: Any) -> dict[str, Any]:
    """One item's description, each value of its type and in its limits."""
    if not isinstance(entry, dict) or entry.keys() != _ENTRY:
        raise ValueError(f"an item is {str(entry)[:80]}")
    texts = (entry["id"], entry["label"], entry["sha256"])
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"an item without an id, class or digest: {str(entry)[:80]}")
    size, shape = entry["bytes"], entry["shape"]
    if type(size) is not int or not 0 < size <= MAX_IMAGE_BYTES:
        raise ValueError(f"{entry['id'][:80]} has {str(size)[:20]} bytes")
    if shape is not None and not _is_shape(shape, size):
        raise ValueError(f"{entry['id'][:80]} has the impossible shape {str(shape)[:80]}")
    return entry


def _is_shape(shape: Any, size: int) -> bool:
    """Whether it is (H, W) or (H, W, 3) of as many bytes."""
    if not isinstance(shape, list) or not all(type(side) is int and side > 0 for side in shape):
        return False
    return (len(shape) == 2 or shape[2:] == [3]) and int(np.prod(shape, dtype=object)) == size


def _source(entry: dict[str, Any], data: NDArray[np.uint8]) -> Source:
    if hashlib.sha256(data.data).hexdigest() != entry["sha256"]:
        raise ValueError(f"{entry['id'][:80]} has another digest than its entry says")
    return data.tobytes() if entry["shape"] is None else data.reshape(entry["shape"])
