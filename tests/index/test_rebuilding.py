"""Indexes built from the rows of a file, against indexes built of the expected rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from index_kit import build_index

from compatctl.errors import DamagedError, InputError
from compatctl.index import (
    AnnRecalls,
    HnswIndex,
    HnswParams,
    build_mapped,
    build_replaced,
    build_with_replacements,
    build_without,
    read_keys,
)

FEATURES = Path(__file__).parent.parent / "fixtures" / "features" / "kanji.npz"
N = 1200


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


with np.load(FEATURES) as read:
    OLD, OTHER = _unit(read["lite0"][:N]), _unit(read["lite2"][:N])
NEW = _unit(OLD + OTHER)
KEYS = np.random.default_rng(3).permutation(N).astype(np.uint64) + 2**60
PARAMS = HnswParams(dim=OLD.shape[1], M=8, ef_construction=50)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the old rows, which tests do not change."""
    path = tmp_path_factory.mktemp("index") / "old.hnsw"
    build_index(OLD, KEYS, PARAMS).save(path)
    return path


@pytest.fixture
def half() -> np.ndarray:
    """The positions of half of the rows, unordered."""
    return np.random.default_rng(4).permutation(N)[: N // 2]


def test_replacing_rows_gives_the_file_of_an_index_of_the_new_rows(
    saved: Path, tmp_path: Path, half: np.ndarray
) -> None:
    """Keys, rows and bytes are equal, for keys in any order, and the old file stays."""
    before = saved.read_bytes()
    index = build_with_replacements(
        saved, PARAMS, N, keys=KEYS[half], rows_at=lambda positions: NEW[half][positions]
    )
    mixed = OLD.copy()
    mixed[half] = NEW[half]
    np.testing.assert_array_equal(index.keys(), KEYS)
    np.testing.assert_array_equal(index.vectors(KEYS), mixed)
    index.save(tmp_path / "a.hnsw")
    build_index(mixed, KEYS, PARAMS).save(tmp_path / "b.hnsw")
    assert (tmp_path / "a.hnsw").read_bytes() == (tmp_path / "b.hnsw").read_bytes()
    assert saved.read_bytes() == before


def test_a_rebuilt_index_finds_more_than_one_updated_in_place(
    saved: Path, half: np.ndarray
) -> None:
    """ANN recall@10 of new queries at a small ef, against hnswlib's own update of the same rows."""
    index = build_with_replacements(
        saved, PARAMS, N, keys=KEYS[half], rows_at=lambda positions: NEW[half][positions]
    )
    updated = HnswIndex.load(saved, PARAMS, N)
    updated._engine.add_items(NEW[half], KEYS[half], num_threads=1)
    mixed = OLD.copy()
    mixed[half] = NEW[half]
    exact = KEYS[np.argsort(-(NEW @ mixed.T), axis=1, kind="stable")[:, :10]]
    in_place, _ = updated.search(NEW, 10, 16, threads=1)
    hits = np.mean(
        [len({*a} & {*b}) for a, b in zip(in_place.tolist(), exact.tolist(), strict=True)]
    )
    assert AnnRecalls(index, NEW, exact, 10).mean(16) > hits / 10


def test_mapped_rows_keep_their_keys(saved: Path, tmp_path: Path) -> None:
    """Mapped to fewer dimensions, rows, keys and bytes are those of an index of the mapped rows."""
    cut = np.random.default_rng(5).standard_normal((OLD.shape[1], 40)).astype(np.float32)
    index = build_mapped(saved, PARAMS, N, adapter=lambda rows: _unit(rows @ cut), dim=40)
    expected = np.concatenate([_unit(row[None] @ cut) for row in OLD])
    np.testing.assert_array_equal(index.keys(), KEYS)
    np.testing.assert_allclose(index.vectors(KEYS), expected, atol=1e-6)
    index.save(tmp_path / "a.hnsw")
    params = HnswParams(dim=40, M=PARAMS.M, ef_construction=PARAMS.ef_construction)
    build_index(index.vectors(KEYS), KEYS, params).save(tmp_path / "b.hnsw")
    assert (tmp_path / "a.hnsw").read_bytes() == (tmp_path / "b.hnsw").read_bytes()
    with pytest.raises(InputError, match="norm"):
        build_mapped(saved, PARAMS, N, adapter=lambda rows: rows @ cut, dim=40)
    with pytest.raises(DamagedError):
        build_mapped(saved, PARAMS, N - 1, adapter=lambda rows: _unit(rows @ cut), dim=40)


def test_every_row_may_be_replaced_by_one_of_another_dimension(saved: Path, tmp_path: Path) -> None:
    """Keys and their order stay; bytes are those of an index of the new rows; other keys are
    refused."""
    cut = np.random.default_rng(6).standard_normal((OLD.shape[1], 40)).astype(np.float32)
    new, order = _unit(OTHER @ cut), np.random.default_rng(7).permutation(N)
    index = build_replaced(
        saved, PARAMS, N, keys=KEYS[order], rows_at=lambda rows: new[order][rows], dim=40
    )
    np.testing.assert_array_equal(index.keys(), KEYS)
    np.testing.assert_array_equal(index.vectors(KEYS), new)
    index.save(tmp_path / "a.hnsw")
    params = HnswParams(dim=40, M=PARAMS.M, ef_construction=PARAMS.ef_construction)
    build_index(new, KEYS, params).save(tmp_path / "b.hnsw")
    assert (tmp_path / "a.hnsw").read_bytes() == (tmp_path / "b.hnsw").read_bytes()
    for keys in (KEYS[:-1], np.append(KEYS[:-1], np.uint64(5))):
        with pytest.raises(InputError):
            build_replaced(saved, PARAMS, N, keys=keys, rows_at=lambda rows: new[rows], dim=40)


def test_replacing_no_row_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    """Without keys the rebuilt file has the bytes of the old one."""
    none = np.zeros(0, np.uint64)
    build_with_replacements(
        saved, PARAMS, N, keys=none, rows_at=lambda positions: NEW[positions]
    ).save(tmp_path / "a.hnsw")
    assert (tmp_path / "a.hnsw").read_bytes() == saved.read_bytes()


def test_invalid_replacements_are_refused(saved: Path, tmp_path: Path) -> None:
    """A missing or duplicate key, a row that is not of unit length, a damaged file."""

    def rows(positions: np.ndarray) -> np.ndarray:
        return NEW[positions]

    with pytest.raises(InputError, match="no row under the key 7"):
        build_with_replacements(
            saved, PARAMS, N, keys=np.array([KEYS[0], 7], np.uint64), rows_at=rows
        )
    with pytest.raises(InputError, match="replaced twice"):
        build_with_replacements(saved, PARAMS, N, keys=KEYS[[0, 1, 0]], rows_at=rows)
    with pytest.raises(InputError, match="norm"):
        build_with_replacements(
            saved, PARAMS, N, keys=KEYS[:3], rows_at=lambda positions: 2 * NEW[positions]
        )
    with pytest.raises(DamagedError):
        build_with_replacements(saved, PARAMS, N + 1, keys=KEYS[:3], rows_at=rows)
    cut = tmp_path / "cut.hnsw"
    cut.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(DamagedError):
        build_with_replacements(cut, PARAMS, N, keys=KEYS[:3], rows_at=rows)


def test_removed_rows_leave_no_trace(saved: Path, tmp_path: Path, half: np.ndarray) -> None:
    """The file is that of an index of the other rows and contains no removed row."""
    index = build_without(saved, PARAMS, N, keys=KEYS[half])
    stay = np.setdiff1d(np.arange(N), half)
    index.save(tmp_path / "a.hnsw")
    build_index(OLD[stay], KEYS[stay], PARAMS).save(tmp_path / "b.hnsw")
    data = (tmp_path / "a.hnsw").read_bytes()
    assert data == (tmp_path / "b.hnsw").read_bytes()
    assert not any(OLD[row].tobytes() in data for row in half[:20])
    with pytest.raises(InputError, match="no row would stay"):
        build_without(saved, PARAMS, N, keys=KEYS)
    with pytest.raises(InputError, match="no row under the key 7"):
        build_without(saved, PARAMS, N, keys=np.array([7], np.uint64))
    with pytest.raises(InputError, match="removed twice"):
        build_without(saved, PARAMS, N, keys=KEYS[[0, 0]])


def test_the_keys_of_a_file_are_read_in_the_order_of_its_rows(saved: Path) -> None:
    """``read_keys`` gives what was written, without loading the index."""
    np.testing.assert_array_equal(read_keys(saved, PARAMS, N), KEYS)
