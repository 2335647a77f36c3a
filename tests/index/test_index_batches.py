"""Adding in batches, prevalidated files, and the read-back after saving."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from index_kit import build_index

import compatctl
from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.index import HnswIndex, HnswParams, read_header
from compatctl.index.hnswlib.layout import StoredRows
from compatctl.index.rows import row_checksums

PARAMS = HnswParams(dim=8, M=4, ef_construction=20)
N = 600


def unit(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, 8)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ROWS = unit(N)
KEYS = np.random.default_rng(5).permutation(N).astype(np.uint64) + 2**60


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of 600 rows built at once, which tests do not change."""
    path = tmp_path_factory.mktemp("index") / "a.hnsw"
    build_index(ROWS, KEYS, PARAMS).save(path)
    return path


def in_batches(index: HnswIndex, rows: np.ndarray, keys: np.ndarray, size: int) -> HnswIndex:
    for start in range(0, len(rows), size):
        index.add(rows[start : start + size], keys[start : start + size])
    return index


@pytest.mark.parametrize(("size", "capacity"), [(7, N), (250, 2 * N), (600, 1), (1, 10)])
def test_batches_build_the_same_bytes(
    saved: Path, tmp_path: Path, size: int, capacity: int
) -> None:
    """Whatever the batches and the first capacity, one thread gives the same file."""
    index = in_batches(HnswIndex.create(PARAMS, capacity), ROWS, KEYS, size)
    np.testing.assert_array_equal(index.keys(), KEYS)
    np.testing.assert_array_equal(index.vectors(), ROWS)
    index.save(tmp_path / "b.hnsw")
    assert (tmp_path / "b.hnsw").read_bytes() == saved.read_bytes()


def test_batches_added_to_a_file_give_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """In one batch or many, reserved or not, prevalidated or not, the file is the same."""
    more, keys = unit(300, 1), np.arange(300, dtype=np.uint64)
    files = []
    for number, (size, reserve, prevalidated) in enumerate(
        [(300, 0, False), (50, 0, False), (50, 300, True), (50, 5000, True)]
    ):
        index = HnswIndex.load(saved, PARAMS, N, prevalidated=prevalidated)
        index.reserve(reserve)
        in_batches(index, more, keys, size).save(tmp_path / f"{number}.hnsw")
        files.append((tmp_path / f"{number}.hnsw").read_bytes())
        assert read_header(tmp_path / f"{number}.hnsw").capacity == N + 300
    assert len(set(files)) == 1


def test_reserving_resizes_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With capacity reserved no batch resizes; without, it grows by more than a batch."""
    sizes: list[int] = []
    resize = HnswIndex._resize
    monkeypatch.setattr(
        HnswIndex, "_resize", lambda self, rows: (sizes.append(rows), resize(self, rows))
    )
    index = HnswIndex.load(saved, PARAMS)
    index.reserve(N)
    index.reserve(10)
    in_batches(index, unit(N, 1), np.arange(N, dtype=np.uint64), 20)
    assert sizes == [2 * N]
    sizes.clear()
    in_batches(HnswIndex.load(saved, PARAMS), unit(N, 1), np.arange(N, dtype=np.uint64), 1)
    assert len(sizes) < 20
    with pytest.raises(InputError, match="got -1"):
        index.reserve(-1)


def test_keys_of_the_file_and_of_earlier_batches_are_refused(saved: Path) -> None:
    """A key that exists stops a batch before any of its rows is added."""
    for index in (HnswIndex.load(saved, PARAMS, prevalidated=True), HnswIndex.create(PARAMS, N)):
        index.add(unit(3, 1), np.array([5, 2**64 - 1, 7], np.uint64))
        keys, before = index.keys(), len(index)
        for key in (5, 7, 2**64 - 1, int(keys[0]), int(keys[-1])):
            with pytest.raises(InputError, match=f"key {key} is there already"):
                index.add(unit(3, 2), np.array([10, key, 11], np.uint64))
        with pytest.raises(InputError, match="key 12 is there already, or twice"):
            index.add(unit(2, 2), np.array([12, 12]))
        assert len(index) == before == index._engine.get_current_count()
        index.add(unit(2, 2), np.array([10, 2**64 - 2], np.uint64))
        np.testing.assert_array_equal(index.vectors(index.keys()[-2:]), unit(2, 2))


def test_adding_to_a_prevalidated_file_reads_no_record(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a prevalidated file, adding and searching read no record of it."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the file's records were read")

    monkeypatch.setattr(StoredRows, "records", property(refuse))
    index = HnswIndex.load(saved, PARAMS, N, prevalidated=True)
    assert len(index) == N
    index.add(unit(50, 1), np.arange(50))
    assert len(index) == N + 50
    index.search(ROWS[:5], 3)
    with pytest.raises(AssertionError):
        HnswIndex.load(saved, PARAMS, N)


def test_a_prevalidated_index_behaves_the_same(saved: Path) -> None:
    """Keys, rows, results and errors of both ways to load are equal."""
    checked, other = (
        HnswIndex.load(saved, PARAMS, N, prevalidated=prevalidated)
        for prevalidated in (False, True)
    )
    for index in (checked, other):
        index.add(unit(20, 3), np.arange(20))
        np.testing.assert_array_equal(index.keys(), np.concatenate([KEYS, np.arange(20)]))
        np.testing.assert_array_equal(index.vectors(), np.vstack([ROWS, unit(20, 3)]))
        mixed = np.array([KEYS[3], 7, KEYS[0], 0], np.uint64)
        rows = np.stack([ROWS[3], unit(20, 3)[7], ROWS[0], unit(20, 3)[0]])
        np.testing.assert_array_equal(index.vectors(mixed), rows)
        with pytest.raises(InputError, match="no row under the key 20"):
            index.vectors(np.array([KEYS[3], 20, 7, 21], np.uint64))
    for a, b in zip(checked.search(ROWS, 5), other.search(ROWS, 5), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(DamagedError, match="count 600, expected 601"):
        HnswIndex.load(saved, PARAMS, N + 1, prevalidated=True)


def test_the_header_is_always_checked(saved: Path, tmp_path: Path) -> None:
    """It is checked for prevalidated files too; the capacity in the file is never used."""
    whole = saved.read_bytes()
    (tmp_path / "a").write_bytes(whole[:500])
    with pytest.raises(DamagedError, match="too few"):
        HnswIndex.load(tmp_path / "a", PARAMS, prevalidated=True)
    (tmp_path / "b").write_bytes(whole[:8] + (10**9).to_bytes(8, "little") + whole[16:])
    for prevalidated in (False, True):
        index = HnswIndex.load(tmp_path / "b", PARAMS, N, prevalidated=prevalidated)
        assert index._engine.get_max_elements() == N


def test_an_empty_index_finds_nothing_and_is_not_saved(tmp_path: Path) -> None:
    """It has no keys and no results; an index without capacity is refused."""
    index = HnswIndex.create(PARAMS, 10)
    assert (len(index), len(index.keys()), index.vectors().shape) == (0, 0, (0, 8))
    assert [part.shape for part in index.search(ROWS[:3], 5)] == [(3, 0), (3, 0)]
    index.add(ROWS[:0], KEYS[:0])
    with pytest.raises(InputError, match="at least one row"):
        index.save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="capacity of at least one row"):
        HnswIndex.create(PARAMS, 0)


def test_a_capacity_over_the_memory_is_an_error() -> None:
    """It is a CompatError, never a bare RuntimeError or MemoryError."""
    with pytest.raises(CompatError, match="hnswlib, making an index"):
        HnswIndex.create(PARAMS, 2**50)


def test_rows_of_other_types_are_converted() -> None:
    """float64 arrays and lists are added as float32."""
    wide = ROWS.astype(np.float64)
    index = build_index(wide, KEYS, PARAMS)
    np.testing.assert_array_equal(index.vectors(KEYS), ROWS)
    index.add(wide[:2].tolist(), np.array([1, 2]))  # type: ignore[arg-type]
    np.testing.assert_array_equal(index.vectors(np.array([1, 2])), ROWS[:2])


class Tampering:
    """An hnswlib engine whose saved files get some bytes changed."""

    def __init__(self, engine: Any, changes: list[tuple[int, bytes]]) -> None:
        self.engine, self.changes = engine, changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def save_index(self, path: str) -> None:
        self.engine.save_index(path)
        with Path(path).open("r+b") as file:
            for offset, data in self.changes:
                file.seek(offset)
                file.write(data)


SIZE = 8 * 4 + 4 + 32 + 8
NEW_ROW = unit(1, 9)[0].tobytes()


@pytest.mark.parametrize("row", [0, 350, N - 1, N, N + 20, N + 49])
@pytest.mark.parametrize("part", ["row", "word", "sign", "key"])
def test_the_read_back_detects_a_changed_row_or_key(
    saved: Path, tmp_path: Path, row: int, part: str
) -> None:
    """In rows of the old file and in added ones: another unit row, a word, a sign, or a key."""
    index = HnswIndex.load(saved, PARAMS, N)
    more = unit(50, 4)
    index.add(more, np.arange(50))
    offset = 96 + row * SIZE + 36
    same = np.vstack([ROWS, more])[row]
    data = {
        "row": NEW_ROW,
        "word": np.nextafter(same[:1], np.float32(2)).tobytes(),
        "sign": (-same[:1]).tobytes(),
        "key": (2**50).to_bytes(8, "little"),
    }[part]
    index._engine = Tampering(index._engine, [(offset + (32 if part == "key" else 0), data)])
    with pytest.raises(
        DamagedError, match=f"read back other {'keys' if part == 'key' else 'rows'}"
    ):
        index.save(tmp_path / "b.hnsw")


def test_the_read_back_detects_swapped_rows(tmp_path: Path) -> None:
    """Two rows under each other's keys have the same words in total, and other checksums."""
    index = build_index(ROWS, KEYS, PARAMS)
    rows = [(96 + offset * SIZE + 36, ROWS[5 - offset].tobytes()) for offset in (2, 3)]
    index._engine = Tampering(index._engine, rows)
    with pytest.raises(DamagedError, match="read back other rows"):
        index.save(tmp_path / "a")


@given(
    st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=12),
    st.data(),
)
def test_a_checksum_is_the_weighted_sum_and_changes_with_any_word(
    words: list[int], data: st.DataObject
) -> None:
    """Against exact integers; a change of one word always changes the checksum."""
    row = np.array([words], np.uint32).view(np.float32)
    weights = [
        int(row_checksums(unit_word[None].view(np.float32))[0])
        for unit_word in np.eye(len(words), dtype=np.uint32)
    ]
    assert all(weight % 2 for weight in weights)
    total = sum(word * weight for word, weight in zip(words, weights, strict=True))
    assert int(row_checksums(row)[0]) == total % 2**64
    offset = data.draw(st.integers(0, len(words) - 1))
    other = data.draw(st.integers(0, 2**32 - 1))
    assume(other != words[offset])
    changed = np.array([[*words[:offset], other, *words[offset + 1 :]]], np.uint32).view(np.float32)
    assert row_checksums(changed)[0] != row_checksums(row)[0]


def test_checksums_do_not_depend_on_blocks() -> None:
    """Many rows at once have the checksums of each alone."""
    rows = unit(5000, 3)
    single = np.concatenate([row_checksums(rows[i : i + 1]) for i in range(0, 5000, 37)])
    np.testing.assert_array_equal(row_checksums(rows)[::37], single)


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from compatctl.index import HnswIndex, HnswParams
from compatctl.index.hnswlib.checks import check_layout, check_written
from compatctl.index.hnswlib.layout import StoredRows

def peak():  # ru_maxrss would begin at the parent's
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

path = Path(sys.argv[1])
few = HnswIndex.create(HnswParams(dim=512), 16)
few.add(np.eye(16, 512, dtype=np.float32), np.arange(16))
few.save(path.with_name("few"))
before = peak()
stored = StoredRows.open(path)
check_layout(stored)
check_written(path, stored, np.zeros(0, np.uint64), np.zeros(0, np.uint64))
stored.rows(stored.find(stored.keys[::8]))
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; pages are given back")
def test_reading_a_file_does_not_load_it_into_memory(tmp_path: Path) -> None:
    """Checks, the read-back and scattered rows of a file need less memory than half of it."""
    rows = np.random.default_rng(0).standard_normal((24_000, 512), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    params = HnswParams(dim=512, M=2, ef_construction=2)
    path = tmp_path / "a.hnsw"
    build_index(rows, np.arange(len(rows)), params, threads=2).save(path)
    package = str(Path(compatctl.__file__).parent.parent)
    process = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert int(process.stdout) < path.stat().st_size / 2
