"""Free vectors in a store: counted, checked, and erased with their items."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from shop_kit import Shop

from compatctl.deployment.free_vectors import delete_strangers, side_file_problems
from compatctl.files import Lock
from compatctl.store import Store, side_bytes
from compatctl.store.side_file import SideFile

FREE_DIM = 12


def unit(n: int, seed: int = 0) -> np.ndarray:
    """Random unit rows (n, FREE_DIM)."""
    rows = np.random.default_rng(seed).standard_normal((n, FREE_DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def store_of(shop: Shop) -> Store:
    return Store.open(shop.path("store"))


def side_of(store: Store) -> SideFile:
    return SideFile.open(store.path, store.manifest.query_model, FREE_DIM)


def fill(store: Store, n: int) -> SideFile:
    """Append vectors of the first n rows of the gallery."""
    side, catalog = side_of(store), store.catalog()
    assert side.append(catalog.ids[:n], unit(n), catalog.digests[:n]) == n
    return side


def holding(root: Path, vectors: np.ndarray) -> list[str]:
    """The names of files below ``root`` that hold one of the vectors as float16."""
    halves = [row.astype(np.float16).tobytes() for row in vectors]
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path.name for path in files if any(half in path.read_bytes() for half in halves)]


def test_status_counts_the_vectors_of_the_query_model(shop: Shop) -> None:
    """status gives their number, share of the gallery and bytes; nothing without a side file, as
    in a copy of a store that leaves it out."""
    store = store_of(shop)
    assert shop.run("status").json["free_vectors"] is None
    rows = len(store.catalog())
    fill(store, 7)
    assert shop.run("status").json["free_vectors"] == {
        "count": 7,
        "share": 7 / rows,
        "bytes": side_bytes(7, FREE_DIM),
        "advice": "",
    }
    assert shop.run("check").code == 0
    shutil.rmtree(store.path / "side")
    assert shop.run("status").json["free_vectors"] is None
    assert shop.run("check").code == 0
    assert not side_of(store).lookup(store.catalog().ids)[1].any()


def test_remove_erases_the_vectors_of_removed_items(shop: Shop) -> None:
    """No file holds them afterwards, a torn tail included; the others are served as before; who
    opened the store before appends none of them; check finds no trace."""
    store, n = store_of(shop), 20
    catalog = store.catalog()
    side = fill(store, n)
    data = side.path.read_bytes()
    side.path.write_bytes(data + data[-40:])
    gone = list(catalog.ids[4:7])
    planned = shop.run("remove", *gone, "--dry-run").json
    assert (planned["free_vectors"], side.path.read_bytes()) == (3, data + data[-40:])
    assert shop.run("remove", *gone).json["free_vectors"] == 3
    assert holding(store.path, unit(n)[4:7]) == []
    expected = [row not in {4, 5, 6} for row in range(n)]
    assert side.lookup(catalog.ids[:n], catalog.digests[:n])[1].tolist() == expected
    assert side.append(gone, unit(3), catalog.digests[4:7]) == 0
    assert shop.run("check").json["problems"] == []
    assert shop.run("remove", *gone).json["free_vectors"] == 0


def test_an_unfinished_removal_is_found_and_finished(shop: Shop) -> None:
    """If an erased item's vector is put back, check says so, and gc deletes it."""
    store = store_of(shop)
    side = fill(store, 5)
    before, item = side.path.read_bytes(), store.catalog().ids[2]
    assert shop.run("remove", item).code == 0
    side.path.write_bytes(before)
    checked = shop.run("check")
    assert checked.code == 5
    assert "1 vectors of items in no kept gallery" in checked.json["problems"][0]
    assert shop.run("check", "--gc").code == 0
    assert holding(store.path, unit(5)[2:3]) == []
    assert shop.run("check").code == 0
    assert side_of(store_of(shop)).count == 4


@pytest.mark.parametrize("at", [20, 64 + 40])
def test_check_finds_damage_and_gc_deletes_it(shop: Shop, at: int) -> None:
    """A flipped byte in the header or in a record is exit code 5; gc deletes the file or the
    record, and the store is whole again."""
    store = store_of(shop)
    side = fill(store, 5)
    data = bytearray(side.path.read_bytes())
    data[at] ^= 4
    side.path.write_bytes(data)
    checked = shop.run("check")
    assert checked.code == 5
    assert side.path.name in checked.json["problems"][0]
    assert shop.run("check", "--gc").code == 0
    assert shop.run("check").code == 0
    assert side_of(store).count == (0 if at < 64 else 4)


def test_the_side_file_of_a_restored_model_is_used_again(shop: Shop) -> None:
    """deploy starts with an empty side file and keeps the earlier model's; rollback finds it."""
    store = store_of(shop)
    fill(store, 5)
    forced = shop.run("deploy", "--model", shop.path("new.onnx"), "--force", "--reason", "drill")
    assert forced.code == 0, forced.stderr
    assert side_of(store_of(shop)).count == 0
    assert shop.run("check", "--gc").code == 0
    assert shop.run("rollback").code == 0
    assert side_of(store_of(shop)).count == 5


def test_nothing_is_rewritten_without_need(shop: Shop) -> None:
    """gc of a store whose vectors are all of its gallery leaves the file as it is, and a writer
    that holds the lock is waited for."""
    store = store_of(shop)
    side = fill(store, 5)
    inode = side.path.stat().st_ino
    assert delete_strangers(store) == 0
    assert side.path.stat().st_ino == inode
    assert side_file_problems(store, erased=True) == []
    with Lock(side.path.parent / "LOCK"):
        assert side_of(store).lookup(store.catalog().ids[:5])[1].all()
