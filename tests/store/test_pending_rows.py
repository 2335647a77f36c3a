"""Vectors of an unfinished step: kept by item and image, never of a removed item, never damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from index_kit import build_index
from store_kit import AT, PARAMS, begin, images, names, unit_rows

from compatctl.errors import InputError
from compatctl.manifest import Erasures
from compatctl.store import Store, check, gc, pending_count, pending_path, sweep
from compatctl.store.pending_rows import PendingRows

MODEL, OTHER = "ab" * 32, "cd" * 32
DIM = 6


def unit(n: int, seed: int = 0) -> np.ndarray:
    """Random unit rows (n, DIM)."""
    rows = np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return begin(tmp_path / "store")


def test_what_is_appended_is_found_bit_by_bit(store: Store) -> None:
    """By the same object and by one that is opened later; of another image, item, model or
    dimension nothing is; a second vector of an item takes the place of the first."""
    pending = PendingRows.open(store.path, MODEL, DIM)
    assert (len(pending), PendingRows.existing(store.path, MODEL)) == (0, None)
    pending.append(names(10), unit(10), images(10))
    pending.append(names(5, 8), unit(5, 1), images(5, 1))
    for opened in (pending, PendingRows.existing(store.path, MODEL)):
        assert opened is not None
        assert (len(opened), opened.dim) == (13, DIM)
        vectors, found = opened.lookup(names(13), np.vstack([images(10)[:8], images(5, 1)]))
        assert found.all()
        np.testing.assert_array_equal(vectors, np.vstack([unit(10)[:8], unit(5, 1)]))
        assert not opened.lookup(names(3), images(3, 7))[1].any()
        assert opened.holds(names(15)).tolist() == [True] * 13 + [False] * 2
    assert len(PendingRows.open(store.path, OTHER, DIM)) == 0
    assert len(PendingRows.open(store.path, MODEL, DIM + 1)) == 0
    with pytest.raises(InputError, match="must be"):
        pending.append(names(2), unit(3), images(2))
    with pytest.raises(InputError):
        pending.append(names(1), unit(1) * 2, images(1))


def test_a_file_that_is_cut_anywhere_has_its_whole_records(store: Store) -> None:
    """As a killed process leaves it; what is appended then lies behind the last whole record."""
    pending, path = PendingRows.open(store.path, MODEL, DIM), pending_path(store.path, MODEL)
    pending.append(names(4), unit(4), images(4))
    whole = path.read_bytes()
    record = (len(whole) - 64) // 4
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        cut = PendingRows.open(store.path, MODEL, DIM)
        count = max(0, (length - 64) // record)
        assert pending_count(store.path, MODEL) == count
        assert cut.lookup(names(4), images(4))[1].tolist() == [i < count for i in range(4)]
        cut.append(names(1, 9), unit(1, 3), images(1, 3))
        again = PendingRows.open(store.path, MODEL, DIM)
        assert again.lookup(names(1, 9), images(1, 3))[1].all()
        assert len(again) == count + 1


def test_a_changed_byte_of_a_record_makes_it_not_found(store: Store) -> None:
    """Every byte of the second record in turn; the others stay."""
    pending, path = PendingRows.open(store.path, MODEL, DIM), pending_path(store.path, MODEL)
    pending.append(names(3), unit(3), images(3))
    whole = bytearray(path.read_bytes())
    record = (len(whole) - 64) // 3
    for at in range(64 + record, 64 + 2 * record):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        opened = PendingRows.open(store.path, MODEL, DIM)
        assert opened.lookup(names(3), images(3))[1].tolist() == [True, False, True], at


def test_gc_deletes_it(store: Store) -> None:
    """check lists the file as unreferenced, gc deletes it, and a writer that had it open begins a
    new one."""
    pending = PendingRows.open(store.path, MODEL, DIM)
    pending.append(names(4), unit(4), images(4))
    name = str(pending.path.relative_to(store.path))
    assert check(store.path).unreferenced == (name,)
    assert gc(store, created_at=AT).deleted == (name,)
    assert not pending.path.exists()
    pending.append(names(2, 4), unit(2), images(2))
    opened = PendingRows.open(store.path, MODEL, DIM)
    assert opened.holds(names(6)).tolist() == [False] * 4 + [True] * 2


def test_a_removed_item_is_not_kept(store: Store) -> None:
    """A process that had the file open before a removal appends no vector of a removed item."""
    pending = PendingRows.open(store.path, MODEL, DIM)
    pending.append(names(4), unit(4), images(4))
    current = store.manifest
    erased = Erasures.empty().extended(["item-1"])
    catalog = store.catalog()
    with store.transaction(current, operation="remove") as tx:
        kept = catalog.drop_rows(np.array([1]))
        index = build_index(unit_rows(20)[catalog.keys != 1], kept.keys, PARAMS)
        tx.commit(
            operation="remove",
            created_at=AT,
            index=replace(current.index, count=19, sha256=tx.put("indexes", index.save)),
            catalog=tx.put("catalogs", kept.write),
            models=(replace(current.models[0], rows=19),),
            oldest_gallery=2,
            erasures=tx.put("erasures", erased.write),
        )
        assert sweep(store.path).ok
    assert not pending.path.exists()
    pending.append(names(4), unit(4), images(4))
    assert unit(4)[1].tobytes() not in pending.path.read_bytes()
    opened = PendingRows.open(store.path, MODEL, DIM)
    assert opened.holds(names(4)).tolist() == [True, False, True, True]
