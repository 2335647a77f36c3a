"""Re-scoring a search: its budget and time limit, its cache, and images that are not at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from free_kit import with_free
from PIL import Image
from shop_kit import write_encoder

from compatctl.core.nearest import exact_search
from compatctl.data import Dataset, Item
from compatctl.deployment.rescoring import Rescorer
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.manifest import Catalog, Rescoring

N, QUERIES = 30, 6
SETTINGS = Rescoring(candidates=5, passes=5, max_ms=None, weight=0.5, slope=0.3, intercept=0.1)


class Kept:
    """A cache of free vectors in memory."""

    def __init__(self, *, broken: bool = False) -> None:
        self.vectors: dict[str, np.ndarray] = {}
        self.broken = broken

    def lookup(self, ids: Sequence[str], images: object = None) -> tuple[np.ndarray, np.ndarray]:
        """As the store's cache."""
        found = np.array([item in self.vectors for item in ids], bool)
        empty = np.zeros(32, np.float32)
        return np.array([self.vectors.get(item, empty) for item in ids]), found

    def append(self, ids: Sequence[str], vectors: np.ndarray, images: object = None) -> int:
        """As the store's cache."""
        if self.broken:
            raise InputError("the store cannot be written to")
        self.vectors |= dict(zip(ids, vectors, strict=True))
        return len(ids)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Its free vectors rank otherwise than its embedding."""
    folder = tmp_path_factory.mktemp("encoder")
    first = write_encoder(folder / "first.onnx", noise=1.0)
    free = write_encoder(folder / "free.onnx", noise=0.0, seed=3)
    return Encoder.load(with_free(folder / "both.onnx", first, free))


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Gallery items g0 .. g29, then queries."""
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, (20, 20, 3), np.uint8) for _ in range(N + QUERIES))
    items = tuple(
        Item(id=f"g{i}" if i < N else f"q{i}", label="", split="test") for i in range(N + QUERIES)
    )
    return Dataset(items=items, sources=images)


class Search:
    """The first stage of every query, and a rescorer of its answers."""

    def __init__(self, encoder: Encoder, data: Dataset) -> None:
        every = encoder.embed(data, free=True)
        assert every.free is not None
        self.free, self.queries = every.free[:N], every.free[N:]
        self.first = exact_search(every.features[N:], every.features[:N], 8)
        self.catalog = Catalog(
            ids=tuple(f"g{i}" for i in range(N)),
            labels=("",) * N,
            keys=np.arange(N, dtype=np.uint64),
            model_of=np.zeros(N, np.int32),
            models=("0" * 64,),
            digests=every.digests[:N],
        )
        self.rescorer = Rescorer(
            encoder=encoder, catalog=self.catalog, settings=SETTINGS, data=data
        )

    def expected(self, known: list[set[int]], k: int = 5) -> list[list[int]]:
        """The order by a loop, where each query knows these rows."""
        orders = []
        for query, rows, scores, own in zip(
            self.queries, self.first.rows, self.first.scores, known, strict=True
        ):
            scored = [
                float(query @ self.free[row]) + 0.5 * score if row in own else 0.1 + 0.3 * score
                for row, score in zip(rows[:k].tolist(), scores[:k].tolist(), strict=True)
            ]
            order = np.argsort(-np.array(scored), kind="stable")
            orders.append([*rows[:k][order].tolist(), *rows[k:].tolist()])
        return orders


@pytest.fixture
def search(encoder: Encoder, data: Dataset) -> Search:
    """The search of the queries."""
    return Search(encoder, data)


def test_all_candidates_are_embedded_and_ranked_again(search: Search) -> None:
    """The order is that of a loop, each image is embedded once, and cosines stay the first ones."""
    result = search.rescorer(search.first, search.queries)
    every = [set(rows[:5].tolist()) for rows in search.first.rows]
    assert result.nearest.rows.tolist() == search.expected(every)
    assert result.nearest.rows.tolist() != search.first.rows.tolist()
    assert result.passed == len(set.union(*every))
    assert result.known[:, :5].all()
    assert not result.known[:, 5:].any()
    for query in range(QUERIES):
        pairs = zip(result.nearest.rows[query], result.nearest.scores[query], strict=True)
        cosines = dict(zip(search.first.rows[query], search.first.scores[query], strict=True))
        assert all(cosines[row] == score for row, score in pairs)


def test_a_budget_of_passes_takes_the_nearest_first(search: Search) -> None:
    """With 2 passes each query adds its two nearest unknown rows to what earlier queries know."""
    search.rescorer.settings = replace(SETTINGS, passes=2)
    result = search.rescorer(search.first, search.queries)
    embedded: set[int] = set()
    for rows in search.first.rows:
        embedded |= set([row for row in rows[:5].tolist() if row not in embedded][:2])
    assert result.passed == len(embedded)
    known = [set(rows[:5].tolist()) & embedded for rows in search.first.rows]
    assert result.nearest.rows.tolist() == search.expected(known)
    touched = len(np.unique(search.first.rows[:, :5]))
    assert result.over_budget == touched - len(embedded)


def test_the_room_of_the_project_ends_the_passes(search: Search) -> None:
    """With room for 3 rows the first 3 of all queries are embedded, and the others are counted."""
    search.rescorer.room = lambda: 3
    result = search.rescorer(search.first, search.queries)
    every = list(dict.fromkeys(search.first.rows[:, :5].ravel().tolist()))
    assert result.passed == 3
    assert result.at_limit == len(every) - 3
    assert result.over_budget == 0
    known = [set(every[:3]) & set(rows[:5].tolist()) for rows in search.first.rows]
    assert result.nearest.rows.tolist() == search.expected(known)


def test_no_passes_leave_the_order_of_the_first_stage(search: Search) -> None:
    """Nothing is embedded, and nothing is marked as re-scored."""
    search.rescorer.settings = replace(SETTINGS, passes=0)
    result = search.rescorer(search.first, search.queries)
    assert result.nearest.rows.tolist() == search.first.rows.tolist()
    assert (result.passed, result.known.any()) == (0, False)


def test_the_time_limit_stops_a_query(search: Search) -> None:
    """With a clock of 10 ms a look and 25 ms a query, each embeds two images; with 0 ms none."""
    ticks = iter(range(10_000))
    search.rescorer.clock = lambda: next(ticks) * 0.010
    search.rescorer.settings = replace(SETTINGS, max_ms=25.0)
    result = search.rescorer(search.first, search.queries)
    assert 0 < result.passed <= 2 * QUERIES
    search.rescorer.settings = replace(SETTINGS, max_ms=0.0)
    assert search.rescorer(search.first, search.queries).passed == 0


def test_kept_vectors_are_not_embedded_again(search: Search) -> None:
    """The second search passes nothing and gives the same order, even with no pass and no data."""
    cache = Kept()
    search.rescorer.cache = cache
    first = search.rescorer(search.first, search.queries)
    assert first.kept
    assert len(cache.vectors) == first.passed
    search.rescorer.settings = replace(SETTINGS, passes=0)
    search.rescorer.data = None
    second = search.rescorer(search.first, search.queries)
    assert (second.passed, second.cached, second.missing) == (0, first.passed, 0)
    assert second.nearest.rows.tolist() == first.nearest.rows.tolist()


def test_a_cache_that_cannot_be_written_to_costs_only_the_next_search(search: Search) -> None:
    """The answers are the same; the result says that nothing was kept."""
    expected = search.rescorer(search.first, search.queries).nearest.rows
    search.rescorer.cache = Kept(broken=True)
    result = search.rescorer(search.first, search.queries)
    assert not result.kept
    np.testing.assert_array_equal(result.nearest.rows, expected)


def test_images_that_are_missing_bad_or_changed_are_not_used(
    search: Search, data: Dataset, tmp_path: Path
) -> None:
    """A row without an image, one that does not decode, and one with another image are unknown."""
    gone, bad, changed = search.first.rows[0, :3].tolist()
    (tmp_path / "bad.png").write_bytes(b"no image")
    Image.new("RGB", (20, 20), (9, 9, 9)).save(tmp_path / "other.png")
    sources = list(data.sources)
    sources[bad], sources[changed] = tmp_path / "bad.png", tmp_path / "other.png"
    kept = [row for row in range(len(data)) if row != gone]
    search.rescorer.data = Dataset(items=data.items, sources=tuple(sources)).take(kept)
    result = search.rescorer(search.first, search.queries)
    known = [set(rows[:5].tolist()) - {gone, bad, changed} for rows in search.first.rows]
    assert result.nearest.rows.tolist() == search.expected(known)
    assert (result.missing, result.over_budget) == (3, 0)
