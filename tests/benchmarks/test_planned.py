"""The study of recommended routes, on a handful of emoji."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.common import cases
from benchmarks.studies import planned
from compatctl.core.nearest import exact_search
from compatctl.data import load
from compatctl.migration.routes import Route
from compatctl.recipe import load_policy
from compatctl.samples import emoji_source, unpack_emoji

CASE = cases.Case(data="emoji", old="hash", new="larger", share=0.5)
UNSEEN = 30


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> planned.Trained:
    """Heads on a tiny network, against vectors that know nothing."""
    data = load(unpack_emoji(emoji_source(), tmp_path_factory.mktemp("emoji")))
    kept = {
        label
        for split, n in (("train", 40), ("validation", 12), ("test", UNSEEN - 12))
        for label in sorted({item.label for item in data.items if item.split == split})[:n]
    }
    data = data.take(i for i, label in enumerate(data.labels) if label in kept)
    key = (CASE.data, CASE.classes, CASE.rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cases.CNNS, "larger", {"width": 8, "features": 32})
        patch.setitem(cases.EPOCHS, "emoji", 2)
        work = tmp_path_factory.mktemp("work")
        shop = cases.Workshop(work=work, sets={key: (data, data.digest_all())})
        return planned.Trained.of(shop.inputs(CASE))


def test_planning_and_judging_classes_are_apart(trained: planned.Trained) -> None:
    """Each split has as many planning classes as asked, and no class on both sides."""
    labels = np.array([trained.inputs.data.labels[row] for row in trained.inputs.query_rows])
    drawn = planned.splits(trained.inputs, 10, 3)
    for planning in drawn:
        assert len(set(labels[planning])) == 10
        assert len(set(labels[~planning])) == UNSEEN - 10
        assert not set(labels[planning]) & set(labels[~planning])
    assert not np.array_equal(drawn[0], drawn[1])


def test_a_route_is_judged_on_the_queries_that_did_not_plan(trained: planned.Trained) -> None:
    """Its hit rate is that of a plain search by these queries alone."""
    inputs = trained.inputs
    (planning,) = planned.splits(inputs, 10, 1)
    judging = ~planning & inputs.truth.has_match()
    (route,) = (one for one in trained.routes(planning) if one.name == Route.FINETUNE)
    judged = trained.judge(route, judging, load_policy("default"))
    stored = inputs.reference.gallery_features
    first = exact_search(trained.tuned.queries[judging], stored, 1).rows[:, 0]
    right = inputs.truth.gallery_labels[first] == inputs.truth.query_labels[judging]
    assert judged.queries == judging.sum()
    assert judged.hit_rate == pytest.approx(right.mean())


def test_vectors_that_know_nothing_get_no_route_that_keeps_them(trained: planned.Trained) -> None:
    """A plan for a gallery of hashes recommends to keep it, to re-score it, or to re-embed it."""
    (planning,) = planned.splits(trained.inputs, 15, 1)
    chosen, _, _ = planned.split_outcome(trained, planning, load_policy("default"))
    assert chosen in {Route.KEEP, Route.LAZY, Route.REEMBED}
