"""The routes' engine on features that are made up, so that what must come out is known."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from compatctl.commands.plan import _estimates
from compatctl.core.arrays import Rows
from compatctl.core.rescoring import KnownVectors
from compatctl.data import Dataset, Item
from compatctl.evaluation.adaptive_resampling import adaptive_verdict, sampling
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.migration import routes
from compatctl.migration.planning_gallery import PlanningGallery
from compatctl.migration.route_cost import RouteCost
from compatctl.migration.routes import Route, RouteInputs
from compatctl.migration.selection import (
    CrossFitSelector,
    Fold,
    RescoredResult,
    RouteResult,
    Variant,
    map_selection,
)
from compatctl.recipe import Recipe, load_policy
from compatctl.train import Features, Reference

RECIPE = """\
format: 1
backbone:
  factory: "tiny_backbone:build"
  input: {height: 32, width: 32, fit: stretch}
junction: {kind: linear}
objective: {lambda: 0.5, mu: 16.0, scale: 16.0}
optimiser: {epochs: 8, batch_size: 32, lr: 0.01}
"""
CLASSES, EACH, WIDTH, DIM = 40, 6, 48, 16
COST = RouteCost(old_ms=5.0, new_ms=20.0, rows=500, training=1000)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> RouteInputs:
    """Classes are directions; the old model sees them noisily, the new backbone well."""
    from tiny_backbone import build

    folder = tmp_path_factory.mktemp("routes")
    rng = np.random.default_rng(0)
    torch.save({"state_dict": build().state_dict()}, folder / "new.ckpt")
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = Recipe.load(folder / "recipe.yaml", ("tiny_backbone",))
    items, images = [], []
    for label in range(CLASSES):
        for at in range(EACH):
            split = "train" if label < 24 else "validation"
            role = "gallery" if at < 2 else "query"
            items.append(Item(id=f"{label}-{at}", label=str(label), split=split, role=role))
            images.append(np.full((2, 2, 3), len(images), np.uint8))
            images[-1][0, 0] = label
    data = Dataset(items=tuple(items), sources=tuple(images))
    truth = np.repeat(rng.standard_normal((CLASSES, 12)), EACH, axis=0)
    seen = truth + 0.45 * rng.standard_normal(truth.shape)
    old = _unit((truth + 0.8 * rng.standard_normal(truth.shape)) @ rng.standard_normal((12, DIM)))
    new = np.maximum(seen @ rng.standard_normal((12, WIDTH)), 0.0).astype(np.float32)
    base = Features.extract(recipe, folder / "new.ckpt", data, [0])
    known = replace(
        base,
        row_of={data.digest(row): row for row in range(len(data))},
        table=torch.from_numpy(_wide(new, base.table.shape[1])),
    )
    stored = [i for i, item in enumerate(items) if item.role == "gallery"]
    others = [i for i, item in enumerate(items) if item.role == "query"]
    reference = Reference.from_arrays(data, old, stored)
    queries = [i for i in others if items[i].split == "validation"]
    return RouteInputs(
        data=data,
        reference=reference,
        recipe=recipe,
        base=folder / "new.ckpt",
        features=known,
        query_rows=np.array(queries, np.int64),
        pair_share=1.0,
    )


def _wide(rows: np.ndarray, width: int) -> np.ndarray:
    wide = np.zeros((len(rows), width), np.float32)
    wide[:, : min(width, rows.shape[1])] = rows[:, :width]
    return wide


@pytest.fixture(scope="module")
def measured(inputs: RouteInputs) -> dict[str, RouteResult]:
    """Every route and the naive swap, by name."""
    return {result.name: result for result in _measure(inputs, _folds(inputs))}


@pytest.fixture(scope="module")
def heads(inputs: RouteInputs) -> list[Variant]:
    """The model without a gallery, with each head."""
    return routes.free_variants(inputs)


def _measure(inputs: RouteInputs, folds: list[Fold]) -> list[RouteResult]:
    free = routes.train_free_models(inputs, folds)
    stored = inputs.reference.gallery_features
    swapped = map_selection(free.heads, lambda head: replace(head, gallery=stored))
    return [*routes.measure_routes(inputs, free), free.selector.result("naive swap", swapped)]


def _routes(results: dict[str, RouteResult]) -> list[RouteResult]:
    """The results without the naive swap."""
    return [results[route] for route in Route]


def _folds(inputs: RouteInputs) -> list[Fold]:
    first = np.arange(len(inputs.query_rows)) % 8 < 4
    return [(first, ~first), (~first, first)]


def _right(inputs: RouteInputs, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """(Q,) whether the first answer has the query's label, by an explicit loop."""
    labels = [inputs.data.labels[row] for row in inputs.query_rows]
    named = inputs.reference.gallery_labels
    nearest = [named[int(np.argmax(gallery @ query))] for query in queries]
    return np.array([entry == label for entry, label in zip(nearest, labels, strict=True)])


def _galleries(inputs: RouteInputs) -> tuple[PlanningGallery, PlanningGallery]:
    """The plan has every image."""
    gallery = PlanningGallery.available(inputs)
    return gallery, gallery


def _hit_rate(inputs: RouteInputs, route: RouteResult) -> float:
    """hit@1, each part of the queries on the gallery that it searches."""
    right = sum(
        _right(inputs, route.queries, gallery)[part].sum() for part, gallery in route.searched
    )
    return right / len(route.queries)


def test_every_route_is_measured(inputs: RouteInputs, measured: dict[str, RouteResult]) -> None:
    """The better backbone wins where all is re-embedded; unit rows; galleries as they should be."""
    assert list(measured)[:2] == ["keep", "re-embed"]
    stored = inputs.reference.gallery_features
    for value in measured.values():
        assert np.allclose(np.linalg.norm(value.queries, axis=1), 1.0, atol=1e-4)
        assert sum(part.sum() for part, _ in value.searched) == len(value.queries)
        for _, gallery in value.searched:
            assert (value.rewritten == 0.0) == np.array_equal(gallery, stored)
        nearest = value.retrieval(inputs.truth, (1,), map_k=1)
        if value.name == "lazy":
            continue  # it ranks again: a test of its own has the loop
        assert nearest.hit_rate[1] == pytest.approx(_hit_rate(inputs, value))
    assert _hit_rate(inputs, measured["re-embed"]) > _hit_rate(inputs, measured["keep"]) + 0.1
    assert _hit_rate(inputs, measured["naive swap"]) < _hit_rate(inputs, measured["bridge"])
    assert _hit_rate(inputs, measured["fuse"]) > _hit_rate(inputs, measured["finetune"])
    assert measured["fuse"].variant.encoders == ("old", "new")


def test_lift_is_the_free_model_on_a_gallery_that_is_mapped_to_it(
    inputs: RouteInputs, measured: dict[str, RouteResult], heads: list[Variant]
) -> None:
    """Its queries are those that re-embedding has; its rows are made of the stored vectors."""
    lift, free = measured["lift"], measured["re-embed"]
    assert (lift.rewritten, lift.variant.encoders) == (1.0, ("new",))
    assert lift.variant.recipe == free.variant.recipe
    assert np.array_equal(lift.queries, free.queries)
    assert _hit_rate(inputs, lift) > _hit_rate(inputs, measured["naive swap"]) + 0.3
    stored = inputs.reference.gallery_features
    twice = replace(inputs.reference, gallery_features=stored[[0, *range(len(stored) - 1)]])
    for entry in islice(routes.lift_variants(replace(inputs, reference=twice), heads[0]), 25):
        assert np.array_equal(entry.queries, heads[0].queries)
        assert np.allclose(entry.gallery[0], entry.gallery[1], atol=1e-6)
        assert not np.allclose(entry.gallery[1], entry.gallery[2], atol=1e-3)


def test_the_image_of_a_query_is_in_no_pair(inputs: RouteInputs) -> None:
    """Neither as a query nor under another id; every other training and gallery item is."""
    data = inputs.data
    held = set(inputs.query_rows.tolist())
    wanted = [i for i, item in enumerate(data.items)
              if i not in held and (item.split == "train" or item.role == "gallery")]  # fmt: skip
    assert inputs.pair_rows.tolist() == wanted
    sources = list(data.sources)
    sources[wanted[3]] = sources[inputs.query_rows[0]]
    twin = replace(inputs, data=replace(data, sources=tuple(sources)))
    assert twin.pair_rows.tolist() == wanted[:3] + wanted[4:]


def test_the_mlp_and_its_epoch_are_chosen_by_the_queries_that_choose(
    inputs: RouteInputs, measured: dict[str, RouteResult], heads: list[Variant]
) -> None:
    """A loop over every map finds the same ones, which here are epochs of the mlp."""
    for name, options in (("bridge", routes.bridge_variants), ("lift", routes.lift_variants)):
        for at, (choosing, judged) in enumerate(_folds(inputs)):
            right = [_right(inputs, head.queries, head.gallery)[choosing].sum() for head in heads]
            tried = list(options(inputs, heads[int(np.argmax(right))]))
            kinds = [variant.setting.split(",")[0] for variant in tried]
            assert set(kinds) == {"orthogonal", "ridge", "low-rank", "mlp"}
            right = [
                _right(inputs, variant.queries, variant.gallery)[choosing].sum()
                for variant in tried
            ]
            best = tried[int(np.argmax(right))]
            assert best.setting.startswith("mlp, epoch ")
            assert np.array_equal(measured[name].queries[judged], best.queries[judged])
            assert np.array_equal(measured[name].searched[at][1], best.gallery)


def test_no_route_depends_on_the_queries_it_is_measured_with(
    inputs: RouteInputs, measured: dict[str, RouteResult]
) -> None:
    """With other labels for the judged half, and without the other fold, all is as it was."""
    for at, (choosing, judged) in enumerate(_folds(inputs)):
        rng, items = np.random.default_rng(1), list(inputs.data.items)
        rows = inputs.query_rows[judged]
        for row, label in zip(rows, rng.permutation([items[i].label for i in rows]), strict=True):
            items[row] = replace(items[row], label=str(label))
        other = replace(inputs, data=replace(inputs.data, items=tuple(items)))
        assert (other.truth.query_labels != inputs.truth.query_labels)[judged].any()
        for entry in _measure(other, [(choosing, judged)]):
            before = measured[entry.name]
            assert np.array_equal(entry.queries[judged], before.queries[judged]), entry.name
            assert np.array_equal(entry.searched[0][1], before.searched[at][1]), entry.name


def test_measured_queries_do_not_choose(inputs: RouteInputs) -> None:
    """Other labels for one half of the queries change what is chosen for the other half only."""
    first, second = _folds(inputs)[0]
    old, stored = inputs.old_queries.queries, inputs.reference.gallery_features
    rng = np.random.default_rng(1)
    options = [
        Variant(queries=old, gallery=stored, setting="a"),
        Variant(queries=_unit(old + rng.standard_normal(old.shape)), gallery=stored, setting="b"),
    ]
    selector = CrossFitSelector(truth=inputs.truth, folds=((first, second),))
    plain = selector.result("x", selector.select(options))
    assert plain.variant.setting == "a"
    assert np.array_equal(plain.queries[second], old[second])
    labels = inputs.truth.query_labels.copy()
    labels[second] = rng.permutation(labels[second])
    other = replace(selector, truth=replace(inputs.truth, query_labels=labels))
    again = other.result("x", other.select(options))
    assert np.array_equal(again.queries[second], plain.queries[second])
    wrong = inputs.truth.query_labels.copy()
    nearest = np.argmax(options[1].queries @ stored.T, axis=1)
    wrong[first] = inputs.truth.gallery_labels[nearest[first]]
    turned = replace(selector, truth=replace(inputs.truth, query_labels=wrong))
    assert turned.result("x", turned.select(options)).variant.setting == "b"


def test_each_fold_continues_from_its_own_choice(inputs: RouteInputs) -> None:
    """A second choice starts from what the same queries chose first, not from the other half's."""
    (first, second), stored = _folds(inputs)[0], inputs.reference.gallery_features
    selector = CrossFitSelector(truth=inputs.truth, folds=tuple(_folds(inputs)))
    old = inputs.old_queries.queries
    lost = _unit(np.random.default_rng(2).standard_normal(old.shape))
    halves = [
        Variant(queries=np.where(part[:, None], old, lost), gallery=stored, setting=name)
        for part, name in ((first, "first"), (second, "second"))
    ]
    chosen = selector.select(halves)
    assert [entry.setting for entry in chosen[:2]] == ["first", "second"]
    seen: list[str] = []

    def then(one: Variant) -> list[Variant]:
        seen.append(one.setting)
        return [replace(one, queries=lost), replace(one, setting=f"{one.setting}, again")]

    after = selector.refine(chosen, then)
    assert sorted(seen) == ["first", "second"]
    assert [entry.setting for entry in after[:2]] == ["first, again", "second, again"]
    outcome = selector.result("x", after)
    assert np.array_equal(outcome.queries[second], halves[0].queries[second])
    assert np.array_equal(outcome.queries[first], halves[1].queries[first])


def test_a_backfill_uses_the_route_with_the_higher_hit_rate(
    inputs: RouteInputs, measured: dict[str, RouteResult]
) -> None:
    """Its queries are those of fuse or of finetune, its new rows what that model makes of items."""
    stored, tuned = inputs.reference.gallery_features, measured["finetune"]
    quarter, whole = (measured[f"backfill {share}"] for share in ("25%", "100%"))
    assert quarter.variant.setting == whole.variant.setting
    by_name = {
        "of finetune": tuned,
        f"of fuse, {measured['fuse'].variant.setting}": measured["fuse"],
    }
    assert whole.variant.encoders == by_name[whole.variant.setting].variant.encoders
    assert tuned.variant.item_features is not None
    weights = np.linspace(0.1, 1.0, 10)  # the last is finetune
    mixed = [_unit((1 - w) * stored + w * tuned.variant.item_features) for w in weights]
    for at, (part, gallery) in enumerate(whole.searched):
        (weight,) = [i for i, entry in enumerate(mixed) if np.allclose(entry, gallery, atol=1e-6)]
        queries = _unit((1 - weights[weight]) * inputs.old_queries.queries
                        + weights[weight] * tuned.queries)  # fmt: skip
        assert np.allclose(whole.queries[part], queries[part], atol=1e-6)
        changed = (quarter.searched[at][1] != stored).any(axis=1)
        assert changed.sum() == round(0.25 * len(stored))
        assert np.array_equal(quarter.searched[at][1][changed], gallery[changed])


def test_a_backfill_uses_finetune_where_fusing_gains_nothing(inputs: RouteInputs) -> None:
    """Equal on the queries that choose, the route with one encoder is taken; worse, too."""
    selector = CrossFitSelector(truth=inputs.truth, folds=tuple(_folds(inputs)))
    old, stored = inputs.old_queries.queries, inputs.reference.gallery_features
    tuned = Variant(queries=old, gallery=stored, item_features=stored[::-1])
    lost = _unit(np.random.default_rng(2).standard_normal(old.shape))
    for queries in (old, lost):
        fuse = replace(tuned, queries=queries, setting="weight 0.5", encoders=("old", "new"))
        best = selector.refine(
            selector.fixed(fuse), lambda one: routes.backfill_variants(tuned, one)
        )
        assert {line.setting for line in best} == {"of finetune"}
        assert {line.encoders for line in best} == {("new",)}
    fuse = replace(tuned, setting="weight 0.5")
    worse = replace(tuned, queries=lost)
    best = selector.refine(selector.fixed(fuse), lambda one: routes.backfill_variants(worse, one))
    assert {line.setting for line in best} == {"of fuse, weight 0.5"}


def test_the_gate_judges_lift_by_each_model_on_its_own_gallery(
    inputs: RouteInputs, measured: dict[str, RouteResult]
) -> None:
    """Rows and queries of a space of their own pass if they find all; the same rows mixed up fail;
    with the old model's rows and queries there is nothing to tell."""
    truth = inputs.truth
    ours = np.eye(CLASSES, dtype=np.float32)
    everyone = np.ones(len(inputs.query_rows), bool)
    gallery = ours[truth.gallery_labels]
    keep, lift = measured["keep"], measured["lift"]
    policy = replace(load_policy("default"), min_queries=60, min_classes=16)
    for queries, searched, verdict in (
        (ours[truth.query_labels], gallery, "pass"),
        (ours[truth.query_labels], np.roll(gallery, 1, axis=1), "fail"),
        (keep.queries, inputs.reference.gallery_features, "inconclusive"),
    ):
        tried = replace(lift, queries=queries, searched=((everyone, searched),))
        results = _routes({**measured, "lift": tried})
        estimates = _estimates(inputs, _galleries(inputs), results, policy, COST)
        assert {estimate.name: estimate.verdict for estimate in estimates}["lift"] == verdict


def test_the_level_allows_for_every_route_that_is_judged(
    inputs: RouteInputs, measured: dict[str, RouteResult]
) -> None:
    """Seven are judged, lift among them: without it, the same intervals take six sevenths."""
    policy = load_policy("default")
    results, gallery = _routes(measured), _galleries(inputs)
    seven = {entry.name: entry for entry in _estimates(inputs, gallery, results, policy, COST)}
    judged = ["finetune", "fuse", "lazy", "bridge", "bridge + fuse", "re-embed", "lift"]
    assert {value.name for value in seven.values() if value.verdict} == set(judged)
    others = [result for result in results if result.name != "lift"]
    six = _estimates(inputs, gallery, others, replace(policy, alpha=6 / 7 * policy.alpha), COST)
    for estimate in six:
        now = seven[estimate.name]
        assert (estimate.low, estimate.high) == pytest.approx((now.low, now.high))
        assert estimate.verdict == now.verdict


def test_the_recipe_of_a_route_is_a_file_that_trains_it(
    measured: dict[str, RouteResult], tmp_path: Path
) -> None:
    """What plan prints for a route reads back as the recipe that the route was measured with."""
    recipes = {
        name: entry.variant.recipe for name, entry in measured.items() if entry.variant.recipe
    }
    assert set(recipes) == set(measured) - {"keep"}
    path = tmp_path / "recipe.yaml"
    for name, recipe in recipes.items():
        path.write_text(json.dumps(recipe.to_json()), encoding="utf-8")
        assert Recipe.load(path, recipe.backbone.factories) == recipe, name
    assert recipes["finetune"] != recipes["lift"]


def test_the_one_time_cost_counts_every_embedded_item(measured: dict[str, RouteResult]) -> None:
    """Each item that is embedded counts by the encoders that do it: training items always, gallery
    items as pairs or where they are re-embedded, and the old model's for items not stored."""
    cost = replace(COST, encoded=200, paired=0.6, trained=0.5)
    overhead = {
        name: cost.one_time_s(entry) - 2 * entry.variant.seconds
        for name, entry in measured.items()
        if name in set(Route)
    }
    training, old = 1000 * 20 / 1000, 200 * 5 / 1000
    assert overhead["finetune"] == pytest.approx(training + old)
    assert overhead["fuse"] == pytest.approx(training + old)
    assert overhead["lazy"] == pytest.approx(training + old)
    assert cost.query_ms(measured["lazy"]) == 11 * cost.query_ms(measured["finetune"])
    assert overhead["bridge"] == overhead["lift"] == pytest.approx(training + 300 * 0.02 + old)
    assert overhead["re-embed"] == pytest.approx(training + 500 * 0.02)
    both = 250 * (20 + 5) / 1000
    assert overhead["backfill 50%"] == pytest.approx(training + old + both)
    assert cost.passes(measured["lift"]) == 1300
    assert cost.passes(measured["finetune"]) == 1000
    assert cost.passes(measured["re-embed"]) == 1500
    assert [cost.gallery_passed(measured[name]) for name in Route] == [
        *(0.0, 1.0, 0.0, 0.0, 0.0, 0.6, 0.6, 0.6, 0.25, 0.5, 0.75, 1.0)
    ]
    assert COST.rewritten_bytes(measured["lift"]) == 500 * DIM * 4
    assert COST.rewritten_bytes(measured["backfill 25%"]) == 125 * DIM * 4
    assert COST.rewritten_bytes(measured["fuse"]) == 0


def test_lazy_ranks_the_first_ten_of_finetune_again(
    inputs: RouteInputs, heads: list[Variant], measured: dict[str, RouteResult]
) -> None:
    """By an explicit loop: of ten candidates the one with the largest free cosine and half of the
    first one; with only some queries, the same."""
    own, tuned, lazy = heads[0], measured["finetune"], measured["lazy"]
    gallery = lazy.searched[0][1]
    labels = [inputs.data.labels[row] for row in inputs.query_rows]
    right = []
    for query, free, label in zip(tuned.queries, own.queries, labels, strict=True):
        first = gallery @ query
        ten = sorted(range(len(gallery)), key=lambda row: -first[row])[:10]
        best = max(ten, key=lambda row: own.gallery[row] @ free + 0.5 * first[row])
        right.append(inputs.reference.gallery_labels[best] == label)
    found = lazy.retrieval(inputs.truth, (1,), map_k=1)
    assert found.hit1.tolist() == right
    some = np.arange(len(right)) % 3 == 0
    part = lazy.select_queries(some).retrieval(inputs.truth.select_queries(some), (1,), map_k=1)
    assert part.hit1.tolist() == found.hit1[some].tolist()
    policy = load_policy("default")
    group = lazy.compare(inputs.truth, inputs.old_queries.queries, gallery, policy)
    assert group.evidence.new_old.hit1.tolist() == right
    assert group.evidence.warm.hit1.tolist() == right


def test_lazy_searches_rows_without_an_image(
    inputs: RouteInputs, heads: list[Variant], measured: dict[str, RouteResult]
) -> None:
    """By an explicit loop over ten candidates in the whole gallery: one whose image is there or can
    be embedded has its free cosine, another one the score that is expected at its first cosine."""
    own, lazy = heads[0], measured["lazy"]
    assert isinstance(lazy, RescoredResult)
    n, rng = len(own.gallery), np.random.default_rng(3)
    order = rng.permutation(n)
    at_hand, can, asked = order[: n // 3], {*order[n // 3 : n // 2].tolist()}, []
    plan = replace(
        lazy,
        free_gallery=own.gallery[at_hand],
        searched=tuple((part, gallery[at_hand]) for part, gallery in lazy.searched),
    )

    def embed(rows: Rows) -> KnownVectors:
        asked.extend(rows.tolist())
        there = np.array([row for row in rows if row in can], np.int64)
        return KnownVectors.none(own.gallery.shape[1]).with_rows(there, own.gallery[there])

    stored = lazy.searched[0][1]
    whole = PlanningGallery(truth=inputs.truth, stored=stored, at_hand=at_hand)
    whole = whole.with_lazy([plan], embed)
    tried = whole.tries(plan)
    assert isinstance(tried, RescoredResult)
    known = {*at_hand.tolist()} | (can & {*asked})
    tens = [np.argsort(-(stored @ query), kind="stable")[:10] for query in lazy.queries]
    assert {*asked} == {row for ten in tens for row in ten.tolist()} - {*at_hand.tolist()}
    assert whole.embedded == len(can & {*asked})
    pairs = [
        (stored[row] @ query, own.gallery[row] @ free + 0.5 * (stored[row] @ query))
        for query, free, ten in zip(lazy.queries, own.queries, tens, strict=True)
        for row in ten.tolist()
        if row in known
    ]
    slope, intercept = np.polyfit(*np.array(pairs, np.float64).T, 1)
    right = []
    for query, free, ten, label in zip(
        lazy.queries, own.queries, tens, inputs.truth.query_labels, strict=True
    ):
        scores = [
            own.gallery[row] @ free + 0.5 * (stored[row] @ query)
            if row in known
            else intercept + max(0.0, slope) * (stored[row] @ query)
            for row in ten.tolist()
        ]
        right.append(bool(inputs.truth.gallery_labels[ten[int(np.argmax(scores))]] == label))
    assert whole.retrieval(tried).hit1.tolist() == right
    share = np.mean([row in known for ten in tens for row in ten.tolist()])
    assert tried.share_known(inputs.truth) == pytest.approx(share)
    assert 0.4 < share < 1.0


def test_re_embedding_without_a_gain_is_seldom_recommended(
    inputs: RouteInputs, measured: dict[str, RouteResult]
) -> None:
    """Old and new queries that are right with the same chance: the gate, at the divided level,
    passes re-embedding in no more than its share of 100 plans, and chance."""
    truth, rng, passed = inputs.truth, np.random.default_rng(2), 0
    policy = replace(load_policy("default"), min_queries=60, min_classes=16)
    strict = replace(policy, alpha=policy.alpha / 7, replicates=999)
    rows = np.eye(CLASSES, dtype=np.float32)
    gallery, everyone = rows[truth.gallery_labels], np.ones(len(truth.query_labels), bool)
    for _ in range(100):
        chance = rng.uniform(0.0, 1.0, CLASSES)[truth.query_labels]
        old, new = (
            rows[np.where(rng.random(len(chance)) < chance, truth.query_labels, 0)]
            for _ in range(2)
        )
        tried = replace(measured["re-embed"], queries=new, searched=((everyone, gallery),))
        group = tried.compare(truth, old, gallery, strict)
        draws = sampling(strict, 0, 0, 0)
        passed += adaptive_verdict(strict, [group], [], [], draws).outcome == "pass"
    assert passed <= 3


def test_items_that_share_a_column_are_ignored_in_every_route(inputs: RouteInputs) -> None:
    """Queries that have nothing left to find are not counted, and no ignored item is an answer."""
    items = tuple(
        replace(item, slices={"day": str(row % 3)}) for row, item in enumerate(inputs.data.items)
    )
    data = replace(inputs.data, items=items)
    inputs = replace(inputs, data=data, ignore_same=("day",))
    stored = [data.items[row] for row in inputs.gallery_rows]
    nearest = retrieval(
        inputs.truth,
        inputs.old_queries.queries,
        inputs.reference.gallery_features,
        (1,),
        map_k=1,
    )
    has_match = inputs.truth.has_match()
    scores = inputs.old_queries.queries @ inputs.reference.gallery_features.T
    for at, row in enumerate(inputs.query_rows):
        entry = data.items[row]
        left = [
            g
            for g, other in enumerate(stored)
            if other.label != entry.label or other.slices["day"] != entry.slices["day"]
        ]
        assert has_match[at] == any(stored[g].label == entry.label for g in left)
        first = max(left, key=lambda g, at=at: scores[at, g])
        assert nearest.hit1[at] == (stored[first].label == entry.label)
    assert np.array_equal(nearest.has_match, has_match)
