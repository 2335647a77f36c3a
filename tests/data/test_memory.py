"""The rehearsal memory's file: the same images give the same bytes, and damage gives an error."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compatctl.data import (
    Dataset,
    Item,
    memory_bytes,
    merge_items,
    read_memory,
    sample_per_class,
)
from compatctl.errors import DamagedError, InputError


def _items(*ids: str, label: str = "x") -> tuple[Item, ...]:
    return tuple(Item(id=item_id, label=label, split="train") for item_id in ids)


def _mixed(folder: Path) -> Dataset:
    """A file, a file's bytes, an array in colour and one in grey."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (5, 4, 3), np.uint8)
    Image.fromarray(colour).save(folder / "a.png")
    jpeg = io.BytesIO()
    Image.fromarray(colour).save(jpeg, "jpeg")
    sources = (folder / "a.png", jpeg.getvalue(), colour, colour[..., 0])
    return Dataset(items=_items("file", "bytes ä", "pixels\0", "grey\udcff"), sources=sources)


def _written(data: Dataset, path: Path) -> Path:
    path.write_bytes(memory_bytes(data))
    return path


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Every form of image comes back with its id, class, digest and pixels, also a second time."""
    data = _mixed(tmp_path)
    again = read_memory(_written(data, tmp_path / "m.npz"))
    assert sorted(again.ids) == sorted(data.ids)
    for row, item_id in enumerate(data.ids):
        row_again = again.ids.index(item_id)
        assert again.items[row_again] == data.items[row]
        assert again.digest(row_again) == data.digest(row)
        assert np.array_equal(np.asarray(again.read(row_again)), np.asarray(data.read(row)))
    assert memory_bytes(again) == memory_bytes(data)
    assert str(tmp_path).encode() not in memory_bytes(data)


def test_the_bytes_depend_on_the_items_alone(tmp_path: Path) -> None:
    """Another order of the same items gives the same file; one changed pixel another."""
    data = _mixed(tmp_path)
    assert memory_bytes(data.take([3, 1, 0, 2])) == memory_bytes(data)
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    changed = Dataset(items=data.items, sources=data.sources)
    assert memory_bytes(changed) != memory_bytes(changed.take([1, 2, 3]))
    assert memory_bytes(changed) != memory_bytes(_mixed(tmp_path))


def test_a_file_that_changed_since_it_was_hashed_is_not_remembered(tmp_path: Path) -> None:
    """The memory holds the images that were trained on, or there is an error."""
    data = _mixed(tmp_path)
    data.take([0]).digest(0)
    Image.new("RGB", (5, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="image of file changed while"):
        memory_bytes(data)


@pytest.mark.parametrize("per_class", [1, 3, 50])
def test_a_sample_of_samples_is_the_sample_of_all(per_class: int) -> None:
    """Sampling step by step keeps the same items as sampling all at once."""
    rng = np.random.default_rng(3)
    ids = [f"item {i}" for i in range(200)]
    labels = [f"class {i}" for i in rng.integers(0, 9, 200)]
    held: list[int] = []
    for part in np.array_split(np.arange(200), 7):
        held += part.tolist()
        kept = sample_per_class([ids[i] for i in held], [labels[i] for i in held], per_class)
        held = [held[i] for i in kept]
    by_hash = sorted(range(200), key=lambda i: hashlib.sha256(ids[i].encode()).hexdigest())
    slow = {i for label in set(labels)
            for i in [j for j in by_hash if labels[j] == label][:per_class]}  # fmt: skip
    assert set(held) == slow


def test_merged_items_are_those_of_the_first_data_set() -> None:
    """Of two data sets that share an id, the item and image of the first are taken."""
    first, second = (np.full((2, 2), value, np.uint8) for value in (1, 2))
    merged = merge_items(
        Dataset(items=_items("a", label="new"), sources=(first,)),
        Dataset(items=_items("a", "b", label="old"), sources=(second, second)),
    )
    by_id = {item.id: (item.label, source) for item, source in zip(
        merged.items, merged.sources, strict=True)}  # fmt: skip
    assert {key: label for key, (label, _) in by_id.items()} == {"a": "new", "b": "old"}
    assert by_id["a"][1] is first


def _spoilt(target: Path, /, **changes: Any) -> Path:
    """A memory of one grey image of 2 x 3, some entries of its description changed."""
    pixels = np.arange(6, dtype=np.uint8)
    entry = {
        "id": "a",
        "label": "x",
        "sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "bytes": 6,
        "shape": [2, 3],
        **changes,
    }
    text = json.dumps({"format": 1, "items": [entry]}).encode()
    np.savez(target, items=np.frombuffer(text, np.uint8), data=pixels)
    return target


def test_an_intact_memory_is_read(tmp_path: Path) -> None:
    """The memory that the next tests damage can be read before."""
    loaded = read_memory(_spoilt(tmp_path / "m.npz"))
    assert (loaded.ids, loaded.labels, loaded.read(0).size) == (("a",), ("x",), (3, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": 3},
        {"label": " "},
        {"sha256": "0" * 64},
        {"sha256": None},
        {"bytes": 5},
        {"bytes": 0},
        {"bytes": 1 << 62},
        {"bytes": 6.0},
        {"shape": [3, 3]},
        {"shape": [2, 3, 1]},
        {"shape": [-2, -3]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": [6]},
        {"shape": "2x3"},
        {"path": "/somewhere"},
    ],
)
def test_a_description_that_contradicts_the_images_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """An entry of a wrong type, size, shape or digest, or one too many: an error, no image."""
    path = _spoilt(tmp_path / "m.npz", **changes)
    with pytest.raises(DamagedError, match=r"m\.npz"):
        read_memory(path, error=DamagedError)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff", b'{"format": 2, "items": []}', b"[" * 100_000]
)
def test_a_malformed_description_is_refused(tmp_path: Path, text: bytes) -> None:
    """No JSON, another format or endless nesting is an error that names the file."""
    data = np.zeros(0, np.uint8)
    np.savez(tmp_path / "m.npz", items=np.frombuffer(text, np.uint8), data=data)
    with pytest.raises(InputError, match=r"m\.npz"):
        read_memory(tmp_path / "m.npz")


def test_other_arrays_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    """A table of features is no memory, and neither is one in which an id has two images."""
    np.savez(tmp_path / "f.npz", items=np.zeros(3, np.uint8), data=np.zeros((2, 2), np.uint8))
    with pytest.raises(InputError, match="expected the bytes"):
        read_memory(tmp_path / "f.npz")
    twice = Dataset(items=_items("a", "a"), sources=(np.ones((1, 1), np.uint8),) * 2)
    with pytest.raises(InputError, match="twice"):
        read_memory(_written(twice, tmp_path / "m.npz"))


def test_an_image_that_does_not_decode_is_named_when_it_is_read(tmp_path: Path) -> None:
    """The memory takes a file's bytes as they are; reading the image says which one is bad."""
    data = Dataset(items=_items("bad"), sources=(b"no image",))
    loaded = read_memory(_written(data, tmp_path / "m.npz"))
    with pytest.raises(InputError, match="bad: does not decode"):
        loaded.read(0)


def test_the_limits_hold_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many images, too many bytes and too large a file are errors with a tip."""
    from compatctl.data import _memory

    data = _mixed(tmp_path)
    for name, limit in (
        ("MAX_MEMORY_ITEMS", 3),
        ("MAX_MEMORY_BYTES", 100),
        ("MAX_IMAGE_BYTES", 50),
        ("MAX_DESCRIPTION", 99),
    ):
        with monkeypatch.context() as lower:
            lower.setattr(_memory, name, limit)
            with pytest.raises(InputError):
                memory_bytes(data)
