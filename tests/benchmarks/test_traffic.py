"""The simulated traffic of lazy re-scoring, against plain loops and the law's own figures."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.common import traffic_docs as docs
from benchmarks.common import traffic_model as model
from benchmarks.studies import traffic

SETTING = model.Setting(rows=1_200, exponent=1.0, together=False, k=5, listed=9)
COUNTS = [7, 100, 2_500]


@pytest.fixture
def gallery() -> model.Gallery:
    """Rows of three clusters."""
    return model.make_gallery(SETTING, np.random.default_rng(0))


def _replayed(gallery: model.Gallery, count: int, seed: int) -> np.ndarray:
    """The queries that a simulation with this seed serves."""
    return np.concatenate([*gallery.stream(count, np.random.default_rng(seed))])


def test_targets_follow_the_law_and_rows_are_the_target_and_its_neighbours(
    gallery: model.Gallery,
) -> None:
    """Rank r has a probability of 1/r over the harmonic number; no query touches a row twice."""
    touched = gallery.queries(200_000, np.random.default_rng(1))
    asked = np.bincount(touched[:, 0], minlength=SETTING.rows)[gallery.by_rank] / len(touched)
    weights = 1 / np.arange(1, SETTING.rows + 1)
    assert asked[:20] == pytest.approx(weights[:20] / weights.sum(), abs=0.003)
    assert all(len(set(rows)) == SETTING.k for rows in touched[:500].tolist())
    for target, *others in touched[:500]:
        assert set(others) <= set(gallery.neighbours[target])
        assert all(other // model.CLUSTER == target // model.CLUSTER for other in others)


def test_popular_rows_lie_together_or_are_scattered(gallery: model.Gallery) -> None:
    """Together, the most popular rows fill the first cluster; scattered, they are in all."""
    together = model.make_gallery(
        model.Setting(rows=1_200, exponent=1.0, together=True), np.random.default_rng(0)
    )
    assert set(together.by_rank[:500] // model.CLUSTER) == {0}
    assert set(gallery.by_rank[:500] // model.CLUSTER) == {0, 1, 2}


def test_a_cache_that_fills_without_limit_is_that_of_a_loop(
    gallery: model.Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows passed, warm queries and the time of the tenth are counted query by query."""
    monkeypatch.setattr(model, "CHUNK", 300)
    filling = model.serve_all(gallery, COUNTS, np.random.default_rng(2))
    cached: set[int] = set()
    warm, tenth, states = 0, None, []
    for at, rows in enumerate(_replayed(gallery, COUNTS[-1], 2).tolist(), start=1):
        warm += cached.issuperset(rows)
        cached.update(rows)
        if tenth is None and len(cached) >= SETTING.rows // 10:
            tenth = at
        if at in COUNTS:
            states.append((at, len(cached) / SETTING.rows, warm / at))
    assert [(state.queries, state.passed) for state in filling.states] == [s[:2] for s in states]
    assert [state.warm for state in filling.states] == pytest.approx([s[2] for s in states])
    assert filling.tenth == tenth


def test_a_budget_limits_the_passes_of_a_query(gallery: model.Gallery) -> None:
    """With as much as a query has rows nothing is lost; with less, less is passed and kept."""
    by_budget = {
        budget: model.serve_within(gallery, budget, COUNTS, np.random.default_rng(3))
        for budget in (1, 3, SETTING.k)
    }
    for states in by_budget.values():
        assert [state.queries for state in states] == COUNTS
        assert all(state.warm <= state.kept for state in states)
    assert all(state.kept == 1.0 for state in by_budget[SETTING.k])
    assert by_budget[1][0].passed <= 7 / SETTING.rows
    last = [states[-1] for states in by_budget.values()]
    assert sorted(last, key=lambda state: (state.passed, state.kept)) == last


def test_a_budget_of_all_rows_fills_as_serving_all_does(gallery: model.Gallery) -> None:
    """The two ways to serve agree within chance."""
    all_rows = model.serve_all(gallery, COUNTS, np.random.default_rng(4)).states[-1]
    within = model.serve_within(gallery, SETTING.k, COUNTS, np.random.default_rng(5))[-1]
    assert within.passed == pytest.approx(all_rows.passed, abs=0.03)
    assert within.warm == pytest.approx(all_rows.warm, abs=0.03)


def test_what_a_log_warms_is_measured_on_later_queries(gallery: model.Gallery) -> None:
    """The most touched rows are cached; kept and missing are those of a loop; all cached keeps
    all, and no cache holds more targets than the ceiling, but by chance."""
    rng = np.random.default_rng(6)
    states = model.warmed(gallery, (0.1, 0.5, 1.0), 3_000, 2_000, rng)
    queries = np.random.default_rng(6)
    log, later = gallery.queries(3_000, queries), gallery.queries(2_000, queries)
    order = np.argsort(-np.bincount(log.ravel(), minlength=SETTING.rows), kind="stable")
    cached = set(order[: SETTING.rows // 10].tolist())
    missing = [len(set(rows) - cached) for rows in later.tolist()]
    assert states[0].kept == pytest.approx(np.mean([lost == 0 for lost in missing]))
    assert states[0].missing == pytest.approx(np.mean(missing))
    assert all(state.kept <= state.target <= state.ceiling + 0.03 for state in states)
    assert (states[-1].kept, states[-1].missing) == (1.0, 0.0)
    assert states[-1].ceiling == pytest.approx(1.0)


def test_page_and_figure_show_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables have as many cells in a row as in their head; the figure is well-formed."""
    monkeypatch.setattr(traffic, "LATER", 500)
    monkeypatch.setattr(traffic, "COUNTS", (1_000, 10_000))
    monkeypatch.setattr(docs, "TABLE_QUERIES", (1_000, 10_000))
    simulation = traffic.simulate([1_000, 2_000], [0.6, 1.0])
    width = 0
    text = docs.page(simulation, "traffic.svg")
    for before, line in zip(["", *text.splitlines()], text.splitlines(), strict=False):
        assert len(line) <= 100 or line.startswith("|")
        if line.startswith("|"):
            width = width if before.startswith("|") else line.count("|")
            assert line.count("|") == width
    root = ElementTree.fromstring(docs.figure(simulation))
    lines = [*root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert len(lines) == 2 * (2 * 2 + 1 + 1)
    assert len(docs.summary(simulation)) == 2
