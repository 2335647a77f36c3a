"""HnswIndex: adding, searching, saving and loading, and what hnswlib itself does not check."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import hnswlib
import numpy as np
import pytest
from index_kit import build_index

from compatctl.errors import CompatError, DamagedError, InputError
from compatctl.index import AnnRecalls, HnswIndex, HnswParams, read_header

PARAMS = HnswParams(dim=16, M=8, ef_construction=60, ef_search=40)
N = 1500


def unit(n: int, seed: int = 0, dim: int = 16) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


ROWS = unit(N)
KEYS = np.arange(N, dtype=np.uint64) * 7 + 2**40
QUERIES = unit(200, seed=1)


def exact(queries: np.ndarray, k: int) -> np.ndarray:
    return KEYS[np.argsort(-(queries @ ROWS.T), axis=1, kind="stable")[:, :k]]


@pytest.fixture(scope="module")
def index() -> HnswIndex:
    """An index of 1,500 rows, which tests do not change."""
    return build_index(ROWS, KEYS, PARAMS)


@pytest.fixture(scope="module")
def saved(index: HnswIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of ``index``, which tests do not change."""
    path = tmp_path_factory.mktemp("index") / "a.hnsw"
    index.save(path)
    return path


def test_search_finds_the_nearest_rows(index: HnswIndex) -> None:
    """Keys and cosines equal those of an exact search for nearly every query."""
    keys, scores = index.search(QUERIES, 5, ef=200)
    assert (keys.shape, keys.dtype) == ((200, 5), np.uint64)
    assert (scores.shape, scores.dtype) == ((200, 5), np.float32)
    assert (keys == exact(QUERIES, 5)).mean() > 0.99
    assert (np.diff(scores, axis=1) <= 0).all()
    rows = index.vectors(keys[:, 0])
    np.testing.assert_allclose(scores[:, 0], (rows * QUERIES).sum(1), atol=1e-5)


def test_a_loaded_index_gives_the_results_of_the_saved_one(index: HnswIndex, saved: Path) -> None:
    """ef survives the file too: hnswlib itself would fall back to 10."""
    again = HnswIndex.load(saved, PARAMS, N)
    for ef in (None, 15):
        pairs = zip(index.search(QUERIES, 10, ef), again.search(QUERIES, 10, ef), strict=True)
        for saved_part, loaded_part in pairs:
            np.testing.assert_array_equal(saved_part, loaded_part)
    few = HnswIndex.load(saved, HnswParams(dim=16, M=8, ef_construction=60, ef_search=1), N)
    assert (few.search(QUERIES, 1)[0] != again.search(QUERIES, 1)[0]).any()


def test_rows_and_keys_are_returned_unchanged(index: HnswIndex, saved: Path) -> None:
    """Built or loaded, keys keep their order, and rows are equal to the bit."""
    order = np.random.default_rng(2).permutation(N)
    for tested in (index, HnswIndex.load(saved, PARAMS)):
        np.testing.assert_array_equal(tested.keys(), KEYS)
        np.testing.assert_array_equal(tested.vectors(), ROWS)
        np.testing.assert_array_equal(tested.vectors(KEYS[order]), ROWS[order])
        assert tested.vectors(KEYS[:0]).shape == (0, 16)
        with pytest.raises(InputError, match="no row under the key 3"):
            tested.vectors(np.array([KEYS[0], 3], np.uint64))


def test_one_thread_builds_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """The same rows give the same file; another seed gives another."""
    build_index(ROWS, KEYS, PARAMS).save(tmp_path / "b.hnsw")
    assert (tmp_path / "b.hnsw").read_bytes() == saved.read_bytes()
    other = HnswParams(dim=16, M=8, ef_construction=60, ef_search=40, seed=5)
    build_index(ROWS, KEYS, other).save(tmp_path / "c.hnsw")
    assert (tmp_path / "c.hnsw").read_bytes() != saved.read_bytes()


def test_an_index_built_by_threads_saves_and_loads(tmp_path: Path) -> None:
    """With threads the order in the file is arbitrary, but each key has its row."""
    build_index(ROWS, KEYS, PARAMS, threads=4).save(tmp_path / "t.hnsw")
    again = HnswIndex.load(tmp_path / "t.hnsw", PARAMS, N)
    np.testing.assert_array_equal(again.vectors(KEYS), ROWS)


def test_adding_does_not_change_the_file(saved: Path, tmp_path: Path) -> None:
    """New rows beyond the file's capacity are found like the old ones; the file stays."""
    before = saved.read_bytes()
    grown = HnswIndex.load(saved, PARAMS, N)
    more, keys = unit(300, seed=3), np.arange(300, dtype=np.uint64)
    grown.add(more, keys)
    assert len(grown) == N + 300
    assert (grown.search(more, 1, ef=100)[0][:, 0] == keys).mean() > 0.99
    assert (grown.search(ROWS, 1, ef=100)[0][:, 0] == KEYS).mean() > 0.99
    np.testing.assert_array_equal(grown.vectors(keys), more)
    assert saved.read_bytes() == before
    grown.save(tmp_path / "grown.hnsw")
    again = HnswIndex.load(tmp_path / "grown.hnsw", PARAMS, N + 300)
    np.testing.assert_array_equal(again.vectors(), np.vstack([ROWS, more]))


def test_the_callers_arrays_are_copied(tmp_path: Path) -> None:
    """Changing an array after it was added does not change what the index holds."""
    rows, keys = unit(50), np.arange(50, dtype=np.uint64)
    index = build_index(rows, keys, PARAMS)
    rows[:], keys[:] = 0, 0
    np.testing.assert_array_equal(index.vectors(), unit(50))
    index.keys()[:] = 0
    index.save(tmp_path / "a.hnsw")


def bad(row: int, value: float) -> np.ndarray:
    rows = unit(5)
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (bad(3, np.nan), "row 3 is not finite"),
        (bad(2, np.inf), "row 2 is not finite"),
        (bad(4, 0.0), "row 4 has the norm 0"),
        (bad(1, 1.0), "row 1 has the norm 4"),
        (unit(5) * 1.01, "row 0 has the norm 1.01"),
    ],
)
def test_bad_rows_are_refused_by_number_and_nothing_is_added(
    rows: np.ndarray, message: str
) -> None:
    """NaN, infinite, zero and non-unit rows and queries are refused by number."""
    index = build_index(unit(10, seed=4), np.arange(10), PARAMS)
    with pytest.raises(InputError, match=message):
        index.add(rows, np.arange(10, 15))
    assert len(index) == 10
    with pytest.raises(InputError, match=message.replace("row", "query")):
        index.search(rows, 1)
    with pytest.raises(InputError, match=message):
        build_index(rows, np.arange(5), PARAMS)


@pytest.mark.parametrize("shape", [(5, 15), (5, 17), (16,), (1, 5, 16)])
def test_wrong_shapes_are_refused(index: HnswIndex, shape: tuple[int, ...]) -> None:
    """Rows and queries of another dimension never reach hnswlib."""
    with pytest.raises(InputError, match=r"must be \(n, 16\)"):
        index.search(np.ones(shape, np.float32), 1)
    with pytest.raises(InputError, match=r"must be \(n, 16\)"):
        build_index(np.ones(shape, np.float32), np.arange(shape[0]), PARAMS)


@pytest.mark.parametrize(
    "keys", [[1, 1], [0, 5], [-1, 3], [0.5, 1.5], [7], [[7, 8]], ["a", "b"]], ids=str
)
def test_wrong_keys_are_refused(keys: list[object]) -> None:
    """Keys that exist already, duplicates, negative or fractional keys, and too few are refused."""
    index = build_index(unit(3), np.array([5, 6, 9]), PARAMS)
    with pytest.raises(InputError, match="key"):
        index.add(unit(2, seed=5), np.array(keys))
    assert index.keys().tolist() == [5, 6, 9]


def test_k_is_limited_to_the_number_of_rows() -> None:
    """A larger k gives all rows, nearest first, where hnswlib raises; k = 0 is refused."""
    index = build_index(unit(3), np.array([5, 6, 9]), PARAMS)
    keys, scores = index.search(unit(3), 10)
    assert keys.shape == scores.shape == (3, 3)
    assert keys[:, 0].tolist() == [5, 6, 9]
    assert index.search(unit(0), 2)[0].shape == (0, 2)
    with pytest.raises(InputError, match="k must"):
        index.search(unit(3), 0)
    with pytest.raises(InputError, match="at least one row"):
        HnswIndex.create(PARAMS, 0)


def test_search_is_exact_where_the_graph_cannot_reach_rows() -> None:
    """hnswlib finds fewer than k among many equal rows with a small M."""
    params = HnswParams(dim=16, M=2, ef_construction=2, ef_search=1)
    rows = np.vstack([np.repeat(unit(5), 300, axis=0), unit(50, seed=8)])
    index = build_index(rows, np.arange(len(rows)), params)
    raw = index._engine
    raw.set_ef(len(rows))
    with pytest.raises(RuntimeError):
        raw.knn_query(QUERIES, len(rows))
    keys, scores = index.search(QUERIES, len(rows))
    truth = np.argsort(-(QUERIES @ rows.T), axis=1, kind="stable")
    np.testing.assert_allclose(scores, np.take_along_axis(QUERIES @ rows.T, truth, 1), atol=1e-6)
    assert (np.sort(keys, axis=1) == np.arange(len(rows))).all()


@pytest.mark.parametrize("space", ["ip", "cosine", "l2"])
def test_files_written_by_hnswlib_load(space: str, tmp_path: Path) -> None:
    """A file in any of hnswlib's spaces gives the same neighbours and cosines."""
    raw = hnswlib.Index(space=space, dim=16)
    raw.init_index(2 * N, M=8, ef_construction=60)
    raw.add_items(ROWS * (3 if space == "cosine" else 1), KEYS)
    raw.save_index(str(tmp_path / "old.hnsw"))
    header = read_header(tmp_path / "old.hnsw")
    assert (header.dim, header.count, header.capacity) == (16, N, 2 * N)
    index = HnswIndex.load(tmp_path / "old.hnsw", HnswParams.from_header(header, space=space), N)
    keys, scores = index.search(QUERIES, 3, ef=300)
    assert (keys == exact(QUERIES, 3)).mean() > 0.99
    np.testing.assert_allclose(scores[:, 0], (QUERIES @ ROWS.T).max(1), atol=1e-3)
    index.add(unit(5, seed=6), np.arange(5))
    index.save(tmp_path / "new.hnsw")


def test_rows_marked_deleted_are_refused(tmp_path: Path) -> None:
    """A file with a deleted row is refused by the number of the row."""
    raw = hnswlib.Index(space="ip", dim=16)
    raw.init_index(N, M=8, ef_construction=60)
    raw.add_items(ROWS, KEYS, num_threads=1)
    raw.mark_deleted(int(KEYS[1234]))
    raw.save_index(str(tmp_path / "old.hnsw"))
    with pytest.raises(DamagedError, match=r"marked deleted \(row 1234\)"):
        HnswIndex.load(tmp_path / "old.hnsw", PARAMS, N)


def test_non_unit_rows_of_a_file_are_refused(tmp_path: Path) -> None:
    """A file whose rows are not of unit length is refused."""
    raw = hnswlib.Index(space="l2", dim=16)
    raw.init_index(N, M=8, ef_construction=60)
    raw.add_items(ROWS * 2, KEYS, num_threads=1)
    raw.save_index(str(tmp_path / "old.hnsw"))
    with pytest.raises(DamagedError, match="norm 2"):
        HnswIndex.load(tmp_path / "old.hnsw", HnswParams(dim=16, M=8, ef_construction=60))


@pytest.mark.parametrize(
    ("params", "count", "message"),
    [
        (HnswParams(dim=15, M=8, ef_construction=60), N, "dim 16, expected 15"),
        (HnswParams(dim=32, M=8, ef_construction=60), N, "dim 16, expected 32"),
        (HnswParams(dim=16, M=9, ef_construction=60), N, "M 8, expected 9"),
        (HnswParams(dim=16, M=8, ef_construction=61), N, "ef_construction 60, expected 61"),
        (PARAMS, N - 1, f"count {N}, expected {N - 1}"),
    ],
)
def test_a_file_with_other_parameters_is_refused(
    saved: Path, params: HnswParams, count: int, message: str
) -> None:
    """Another dimension, M, ef_construction or count is refused before hnswlib opens the file."""
    with pytest.raises(DamagedError, match=message):
        HnswIndex.load(saved, params, count)


@pytest.mark.parametrize("keep", [0, 50, 96, 5000, -1, -4, -100])
def test_a_truncated_or_extended_file_is_refused(saved: Path, tmp_path: Path, keep: int) -> None:
    """A file truncated anywhere, or with bytes appended, is refused before hnswlib opens it."""
    path = tmp_path / "a.hnsw"
    whole = saved.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(DamagedError, match=r"a\.hnsw"):
        HnswIndex.load(path, PARAMS, N)
    path.write_bytes(whole + b"\0\0\0\0")
    with pytest.raises(DamagedError, match="end 4 bytes"):
        HnswIndex.load(path, PARAMS, N)


def test_files_that_are_not_indexes_are_refused(tmp_path: Path) -> None:
    """Text, zeros and a missing file are refused by path."""
    path = tmp_path / "a.hnsw"
    for data in (b"hello " * 100, b"\0" * 5000, b"\xff" * 5000):
        path.write_bytes(data)
        with pytest.raises(DamagedError, match="not an intact hnswlib index"):
            read_header(path)
    with pytest.raises(InputError, match="missing"):
        read_header(tmp_path / "missing.hnsw")


def test_saving_never_overwrites_and_never_fails_silently(index: HnswIndex, tmp_path: Path) -> None:
    """An existing file and a missing folder are refused, where hnswlib overwrites or succeeds."""
    (tmp_path / "a").write_bytes(b"kept")
    with pytest.raises(InputError, match="exists"):
        index.save(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"kept"
    with pytest.raises(InputError, match="no such folder"):
        index.save(tmp_path / "missing" / "a")
    with pytest.raises(InputError, match="exists"):
        index.save(Path("/dev/full"))


@pytest.mark.parametrize(
    "wrong",
    [{"dim": 0}, {"M": 1}, {"M": 10001}, {"ef_search": 0}, {"seed": -1}, {"space": "dot"}],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    """Values that hnswlib would clamp or divide by are refused by name."""
    with pytest.raises(InputError, match=next(iter(wrong))):
        HnswParams(**{"dim": 16, **wrong})  # type: ignore[arg-type]


def test_ef_is_doubled_until_the_target_is_reached(index: HnswIndex) -> None:
    """The chosen ef is the first that reaches the target, and its recall is that of a count."""
    truth = exact(QUERIES, 10)
    tuned = AnnRecalls(index, QUERIES, truth, 10).tune(0.99)
    assert tuned.sweep[0][0] == 10
    assert all(recall < 0.99 for _, recall in tuned.sweep[:-1])
    ef, recall = tuned.sweep[-1]
    assert tuned.ef == ef
    assert recall >= 0.99
    keys = index.search(QUERIES, 10, tuned.ef)[0]
    hits = [len(set(a) & set(b)) for a, b in zip(keys.tolist(), truth.tolist(), strict=True)]
    assert recall == pytest.approx(np.mean(hits) / 10)


def test_a_sweep_can_start_at_an_ef_that_is_too_small(index: HnswIndex) -> None:
    """It goes on from there by doublings; k is the least ef."""
    truth = exact(QUERIES, 10)
    whole = dict(AnnRecalls(index, QUERIES, truth, 10).tune(1.1).sweep)
    later = AnnRecalls(index, QUERIES, truth, 10).tune(1.1, start=20).sweep
    assert [ef for ef, _ in later] == [ef for ef in whole if ef >= 20]
    assert dict(later).items() <= whole.items()
    assert AnnRecalls(index, QUERIES, truth, 10).tune(0.5, start=3).sweep[0][0] == 10


def test_queries_that_are_found_are_not_searched_again(index: HnswIndex, saved: Path) -> None:
    """At every ef of a sweep the recall of each query is that of a search of all, and the searches
    become smaller."""
    searched: list[int] = []

    class Counting(HnswIndex):
        """The same index, which counts queries."""

        def search(self, queries: np.ndarray, *args: Any, **kwargs: Any) -> Any:
            searched.append(len(queries))
            return super().search(queries, *args, **kwargs)

    truth = exact(QUERIES, 10)
    counting = Counting.load(saved, PARAMS, N)
    recalls = AnnRecalls(counting, QUERIES, truth, 10)
    efs = [ef for ef, _ in recalls.tune(1.1).sweep]
    for ef in efs:
        alone = AnnRecalls(index, QUERIES, truth, 10).per_query(ef)
        np.testing.assert_array_equal(recalls.per_query(ef), alone)
    assert len(searched) == len(efs)
    assert searched[0] == len(QUERIES)
    assert searched == sorted(searched, reverse=True)
    assert searched[-1] < len(QUERIES) / 4


def test_an_unreachable_target_gives_the_best_ef(index: HnswIndex) -> None:
    """The sweep ends at the number of rows, and the ef with the best recall is chosen."""
    tuned = AnnRecalls(index, QUERIES[:20], exact(QUERIES[:20], 10), 10).tune(1.1)
    assert tuned.sweep[-1][0] == N
    recalls = dict(tuned.sweep)
    assert 1.1 > recalls[tuned.ef] == max(recalls.values()) > 0.99
    with pytest.raises(InputError, match="queries"):
        AnnRecalls(index, QUERIES[:0], exact(QUERIES[:0], 10), 10)


def test_ties_do_not_cost_recall() -> None:
    """Finding another equal row than the exact search is not a miss."""
    rows = np.repeat(unit(40), 5, axis=0)
    index = build_index(rows, np.arange(200), PARAMS)
    last = (np.arange(40) * 5 + 4)[:, None]
    assert AnnRecalls(index, unit(40), last, 1).mean(200) == 1.0


def test_progress_counts_rows() -> None:
    """Adding in batches reports rows added and the total, ending with all."""
    calls: list[tuple[int, int]] = []
    build_index(
        unit(5000, dim=4), np.arange(5000), HnswParams(dim=4, M=4, ef_construction=10),
        lambda stage, count, total: calls.append((count, total)),
    )  # fmt: skip
    assert calls == [(done, 5000) for done in (0, 1024, 2048, 3072, 4096, 5000)]


def test_a_loaded_index_survives_the_deletion_of_its_file(saved: Path, tmp_path: Path) -> None:
    """Rows and results stay the same after the file is deleted."""
    path = Path(shutil.copy(saved, tmp_path / "b.hnsw"))
    index = HnswIndex.load(path, PARAMS, N)
    path.unlink()
    np.testing.assert_array_equal(index.vectors(), ROWS)
    assert (index.search(ROWS, 1, ef=100)[0][:, 0] == KEYS).mean() > 0.99


def test_a_name_that_the_file_system_refuses_is_an_error(index: HnswIndex, tmp_path: Path) -> None:
    """It is a CompatError, not an OSError."""
    with pytest.raises(CompatError, match="name too long"):
        index.save(tmp_path / ("x" * 300))
