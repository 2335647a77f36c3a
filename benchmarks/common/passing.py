"""Routes against the share of the gallery that passed the new model: what ``share_passed.py`` runs.

A gallery row is *passed* when the new model has embedded it. At a share of x the first x of the
rows, in some order, are passed: backfill writes them into the gallery, lazy re-scoring keeps the
free model's vectors of them beside it. Labelled training items may be gallery rows; they train
every route alike, are not counted in x, and are reported.

Shapes: ``Q`` test queries, ``G`` gallery rows, ``k`` candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.common.baselines import (
    TRAINED,
    procrustes,
    ridge_map,
    slerp_variants,
    train_baseline,
)
from benchmarks.common.judge import outcome
from benchmarks.common.whole import whole_queries, whole_without_gallery
from compatctl.core.arrays import Bools, Rows, Scores, Vectors
from compatctl.core.hash_order import hash_fraction, hash_order
from compatctl.core.nearest import Neighbours, exact_search
from compatctl.core.policy import Policy
from compatctl.core.resampling import estimate_ratio, hit_change
from compatctl.core.rescoring import MergeRule, fit_merge_rule, rescore
from compatctl.errors import InputError
from compatctl.migration.routes import (
    FreeModels,
    Route,
    RouteInputs,
    fused_variants,
    train_free_models,
    train_model,
)
from compatctl.migration.selection import Variant
from compatctl.recipe import Recipe, load_policy

SHARES = (0.0, 0.01, 0.05, 0.1, 0.25, 1.0)
K = 10
"""Candidates that lazy re-scoring scores again"""
FITTING = 100
"""Validation queries that the merge rule is fitted on"""
REPLICATES = 2000
WORTH = 0.03
"""An upgrade is worth the while from this gain on, were everything re-embedded."""
LAZY, LAZY_FUSED, ALONE = "lazy", "lazy, fused first", "passed rows alone"
WHOLE, WHOLE_FUSED = "finetune, whole network", "fuse, whole network"
WHOLE_FREE = "re-embedded, whole network"
WHOLE_NETWORK = (WHOLE, WHOLE_FUSED, WHOLE_FREE)
RANDOM, TRAFFIC, ASKED = "random", "traffic", "as queried"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One route with one share passed, on test queries; intervals have 95%, over classes."""

    route: str
    order: str
    """Of the rows that are passed; empty where none or all are"""
    passed: float
    """Share of the gallery, beside labelled training items"""
    hit_rate: float
    """hit@1"""
    gain: float
    """Over old queries on the stored gallery"""
    low: float
    high: float
    kept: float | None
    """Share of the gain of re-embedding everything; None where that is under ``WORTH``. A network
    that is trained whole is compared with the better of the two that are re-embedded"""
    flips: float
    """Share of queries that the old model answered and this does not"""
    touched: float | None
    """hit@1 of queries with a passed row of their class; None: there is no such query"""
    untouched: float | None
    """hit@1 of the others"""
    trained: float
    """Share of first answers that are rows of training classes, which are all wrong"""
    encoders: int
    """That a query runs"""
    setting: str
    gate: str | None
    """Outcome of the default policy, for a route that passes nothing and searches once"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One case with one seed."""

    case: str
    seed: int
    queries: int
    classes: int
    rows: int
    labelled: float
    """Share of the gallery that is labelled training items"""
    old: float
    """hit@1 of old queries on the stored gallery"""
    free: float
    """hit@1 of the free model, everything re-embedded"""
    lines: tuple[Line, ...]

    def line(self, route: str, passed: float, order: str = "") -> Line | None:
        """The line of a route and a share; None if there is none."""
        return next(
            (line for line in self.lines
             if line.route == route and line.order == order and abs(line.passed - passed) < 1e-9),
            None,
        )  # fmt: skip

    @property
    def worth(self) -> bool:
        """Whether the free model, everything re-embedded, is better by ``WORTH``."""
        return self.free - self.old >= WORTH


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """(Q,) first answers of test queries; ``place`` says which rows were passed for each."""

    route: str
    first: Rows
    """(Q,) gallery rows"""
    passed: float
    order: str = ""
    touched: Bools | None = None
    """(Q,) whether a row of the query's class was passed"""
    encoders: int = 1
    setting: str = ""
    gate: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Orders:
    """In which order rows are passed: (G,) places from 0, for each half of the test queries.

    ``traffic``: by how often the old queries of the other half have a row among their k nearest.
    """

    half: Bools
    """(Q,) which half"""
    random: Rows
    """(G,)"""
    traffic: tuple[Rows, Rows]
    """What the log of the other half says, for the queries outside and inside ``half``"""

    def places(self, order: str) -> list[tuple[Bools, Rows]]:
        """Which queries (Q,) see which order (G,)."""
        if order == RANDOM:
            return [(np.ones(len(self.half), bool), self.random)]
        return [(~self.half, self.traffic[0]), (self.half, self.traffic[1])]


@dataclass(frozen=True, kw_only=True, eq=False)
class Exam:
    """Test queries and what is right."""

    inputs: RouteInputs
    test: Bools
    """(all queries,) those that are judged"""
    orders: Orders
    policy: Policy

    @classmethod
    def of(cls, inputs: RouteInputs) -> Exam:
        """Queries of test classes; the two halves go by the hash of the id."""
        split = np.array([inputs.data.items[int(row)].split for row in inputs.query_rows])
        test: Bools = (split == "test") & inputs.truth.has_match()
        ids = [inputs.data.ids[int(row)] for row in inputs.query_rows[test]]
        half = np.array([hash_fraction(item) < 0.5 for item in ids], bool)
        gallery = inputs.reference.gallery_features
        names = {item: place for place, item in enumerate(hash_order(inputs.reference.gallery_ids))}
        random = np.array([names[item] for item in inputs.reference.gallery_ids], np.int64)
        near = exact_search(inputs.old_queries.queries[test], gallery, K).rows
        logs = (_by_touch(near[half], random), _by_touch(near[~half], random))
        orders = Orders(half=half, random=random, traffic=logs)
        return cls(inputs=inputs, test=test, orders=orders, policy=load_policy("default"))

    @property
    def labels(self) -> Rows:
        """(Q,) classes of the test queries."""
        return self.inputs.truth.query_labels[self.test]

    def passed(self, places: Rows, share: float) -> Bools:
        """(G,) the first ``share`` of the rows."""
        return places < round(share * len(places))

    def touched(self, passed: Bools) -> Bools:
        """(Q,) queries with a passed row of their class."""
        return np.isin(self.labels, self.inputs.truth.gallery_labels[passed])

    def search(self, variant: Variant, gallery: Vectors) -> Rows:
        """(Q,) first answers of the variant's test queries."""
        return exact_search(variant.queries[self.test], gallery, 1).rows[:, 0]


def _by_touch(near: Rows, random: Rows) -> Rows:
    """(G,) places: most often among ``near`` (n, k) first, ties in random order."""
    counts = np.bincount(near.ravel(), minlength=len(random))
    places = np.empty_like(random)
    places[np.lexsort((random, -counts))] = np.arange(len(random))
    return places


def fixed(exam: Exam, route: str, variant: Variant) -> Answers:
    """A route that passes nothing."""
    stored = exam.inputs.reference.gallery_features
    return Answers(
        route=route,
        first=exam.search(variant, stored),
        passed=0.0,
        encoders=len(variant.encoders),
        setting=variant.setting,
        gate=outcome(exam.inputs, replace(variant, gallery=stored), exam.test, exam.policy),
    )


def backfill(
    exam: Exam, route: str, variant: Variant, orders: Sequence[str], shares: Sequence[float]
) -> Iterator[Answers]:
    """The model on the stored gallery, of which it re-embeds the rows that are passed."""
    assert variant.item_features is not None
    stored = exam.inputs.reference.gallery_features
    yield fixed(exam, route, variant)
    for order, share in _passing(orders, shares):
        first = np.zeros(len(exam.labels), np.int64)
        touched = np.zeros(len(exam.labels), bool)
        for seen, places in exam.orders.places(order or RANDOM):
            passed = exam.passed(places, share)
            gallery = np.where(passed[:, None], variant.item_features, stored)
            first[seen] = exact_search(variant.queries[exam.test][seen], gallery, 1).rows[:, 0]
            touched[seen] = exam.touched(passed)[seen]
        yield Answers(route=route, first=first, passed=share, order=order, touched=touched,
                      encoders=len(variant.encoders), setting=variant.setting)  # fmt: skip


def lazy(
    exam: Exam, route: str, first: Variant, free: Variant, shares: Sequence[float]
) -> Iterator[Answers]:
    """The first model's k nearest rows, ranked again by the free model's vectors of those passed.

    The merge rule is the product's (``core.rescoring``), fitted on ``FITTING`` validation queries,
    whose rows pass for it. The last answers are those of queries that pass what they need. There
    are no answers where no rule can be fitted.
    """
    rule = _fitted(exam, first, free)
    if rule is None:
        return
    stored, test = exam.inputs.reference.gallery_features, exam.test
    near = exact_search(first.queries[test], stored, K)
    cosine = _cosines(free.queries[test], near.rows, free)
    setting = f"weight {rule.weight}" + (f", {first.setting} of fuse" if first.setting else "")
    for order, share in _passing((RANDOM, TRAFFIC), shares):
        answers = np.zeros(len(near.rows), np.int64)
        touched = np.zeros(len(near.rows), bool)
        for seen, places in exam.orders.places(order or RANDOM):
            passed = exam.passed(places, share)
            answers[seen] = _rescored(near, cosine, passed, rule)[seen]
            touched[seen] = exam.touched(passed)[seen]
        yield Answers(route=route, first=answers, passed=share, order=order, touched=touched,
                      encoders=len(first.encoders), setting=setting)  # fmt: skip
    passed = np.zeros(len(stored), bool)
    passed[near.rows.ravel()] = True
    yield Answers(
        route=route, first=_rescored(near, cosine, passed, rule), passed=float(passed.mean()),
        order=ASKED, touched=exam.touched(passed), encoders=len(first.encoders), setting=setting,
    )  # fmt: skip


def _fitted(exam: Exam, first: Variant, free: Variant) -> MergeRule | None:
    """The merge rule; None: too few right answers to fit one."""
    inputs = exam.inputs
    (chosen,) = np.nonzero(~exam.test & inputs.truth.has_match())
    order = hash_order([inputs.data.ids[int(row)] for row in inputs.query_rows[chosen]])[:FITTING]
    kept = set(order)
    chosen = chosen[[inputs.data.ids[int(row)] in kept for row in inputs.query_rows[chosen]]]
    near = exact_search(first.queries[chosen], inputs.reference.gallery_features, K)
    right = inputs.truth.gallery_labels[near.rows] == inputs.truth.query_labels[chosen, None]
    try:
        return fit_merge_rule(
            near.scores, _cosines(free.queries[chosen], near.rows, free), right
        ).rule
    except InputError:
        return None


def _cosines(queries: Vectors, rows: Rows, free: Variant) -> Scores:
    """(n, k) the free model's cosines of queries (n, D) with rows (n, k)."""
    cosines: Scores = np.einsum("qd,qkd->qk", queries, free.gallery[rows])
    return cosines


def _rescored(near: Neighbours, cosine: Scores, passed: Bools, rule: MergeRule) -> Rows:
    """(Q,) first answers where the rows of ``passed`` (G,) have a free vector."""
    free = np.where(passed[near.rows], cosine, np.float32(np.nan))
    first: Rows = rescore(near, free, rule).of(near).rows[:, 0]
    return first


def alone(exam: Exam, free: Variant, shares: Sequence[float]) -> Iterator[Answers]:
    """The free model on nothing but the rows that were passed."""
    for order, share in _passing((RANDOM, TRAFFIC), shares):
        first = np.zeros(len(exam.labels), np.int64)
        touched = np.zeros(len(exam.labels), bool)
        for seen, places in exam.orders.places(order or RANDOM):
            passed = exam.passed(places, share)
            (rows,) = np.nonzero(passed)
            near = exact_search(free.queries[exam.test][seen], free.gallery[rows], 1).rows[:, 0]
            first[seen] = rows[near]
            touched[seen] = exam.touched(passed)[seen]
        yield Answers(route=ALONE, first=first, passed=share, order=order, touched=touched,
                      setting=free.setting)  # fmt: skip


def _passing(orders: Sequence[str], shares: Sequence[float]) -> list[tuple[str, float]]:
    """Order and share of what is passed; all rows have no order."""
    some = [(order, share) for order in orders for share in shares if 0.0 < share < 1.0]
    return [*some, *([("", 1.0)] if 1.0 in shares else [])]


def measure(
    inputs: RouteInputs, shares: Sequence[float] = SHARES, whole: Recipe | None = None
) -> list[Line]:
    """Every route and baseline; ``keep`` is the first line, everything re-embedded the last.

    ``whole``: a recipe that trains the backbone, too; it passes nothing here.

    Raises:
        InputError: see ``train.train``.
    """
    exam = Exam.of(inputs)
    everyone = np.ones(len(exam.test), bool)
    free = train_free_models(inputs, [(~exam.test, everyone)])
    answers = [*_routes(exam, free, shares), *_baselines(exam, free, shares)]
    if whole is not None:
        answers += _whole_network(exam, free, whole)
    answers += alone(exam, free.heads[-1], shares)
    return lines(exam, answers)


def _routes(exam: Exam, free: FreeModels, shares: Sequence[float]) -> Iterator[Answers]:
    inputs, both = exam.inputs, (RANDOM, TRAFFIC)
    old, stored = inputs.old_queries, inputs.reference.gallery_features
    tuned = replace(train_model(inputs, inputs.recipe, inputs.reference), gallery=stored)
    fused = free.selector.select(fused_variants(old, tuned))[-1]
    yield fixed(exam, Route.KEEP, old)
    yield from backfill(exam, Route.FINETUNE, tuned, both, shares)
    yield from backfill(exam, Route.FUSE, fused, both, shares)
    yield from lazy(exam, LAZY, tuned, free.heads[-1], shares)
    yield from lazy(exam, LAZY_FUSED, fused, free.heads[-1], shares)


def _whole_network(exam: Exam, free: FreeModels, recipe: Recipe) -> Iterator[Answers]:
    stored = exam.inputs.reference.gallery_features
    tuned = Variant(queries=whole_queries(exam.inputs, recipe), gallery=stored)
    yield fixed(exam, WHOLE, tuned)
    fused = free.selector.select(fused_variants(exam.inputs.old_queries, tuned))[-1]
    yield fixed(exam, WHOLE_FUSED, fused)
    queries, gallery = whole_without_gallery(exam.inputs, recipe)
    first = exam.search(replace(tuned, queries=queries), gallery)
    yield Answers(route=WHOLE_FREE, first=first, passed=1.0)


def _baselines(exam: Exam, free: FreeModels, shares: Sequence[float]) -> Iterator[Answers]:
    inputs = exam.inputs
    swapped = replace(free.heads[-1], gallery=inputs.reference.gallery_features)
    yield fixed(exam, "naive swap", swapped)
    mapped = procrustes(inputs, free)
    interpolated = free.selector.refine(
        mapped, lambda variant: slerp_variants(inputs.old_queries, variant)
    )
    for name, selection in (
        ("procrustes", mapped), ("ridge", ridge_map(inputs, free)), ("SLERP", interpolated),
    ):  # fmt: skip
        yield from backfill(exam, name, selection[-1], (RANDOM,), shares)
    for method in TRAINED:
        yield from backfill(exam, method, train_baseline(inputs, method), (RANDOM,), shares)


def lines(exam: Exam, answers: Sequence[Answers]) -> list[Line]:
    """Hit rates and gains, query by query; the first answers are the old model's, the last the free
    model's on everything."""
    gallery = exam.inputs.truth.gallery_labels
    trained = {item.label for item in exam.inputs.data.items if item.split == "train"}
    of_training = np.array([label in trained for label in exam.inputs.reference.gallery_labels])
    classes = exam.inputs.truth.classes[exam.test]
    old = gallery[answers[0].first] == exam.labels
    worth, worth_whole = _worth(exam, answers)
    found = []
    for each in answers:
        right = gallery[each.first] == exam.labels
        change = hit_change(classes, old, right)
        estimate = estimate_ratio(change, REPLICATES, np.random.default_rng(0))
        low, high = estimate.interval(0.95)
        gain = float(right.mean() - old.mean())
        ceiling = worth_whole if each.route in WHOLE_NETWORK else worth
        found.append(
            Line(
                route=each.route,
                order=each.order,
                passed=each.passed,
                hit_rate=float(right.mean()),
                gain=gain,
                low=low,
                high=high,
                kept=gain / ceiling if worth >= WORTH else None,
                flips=float((old & ~right).mean()),
                touched=_mean(right, each.touched),
                untouched=_mean(right, None if each.touched is None else ~each.touched),
                trained=float(of_training[each.first].mean()),
                encoders=each.encoders,
                setting=each.setting,
                gate=each.gate,
            )
        )
    return found


def _worth(exam: Exam, answers: Sequence[Answers]) -> tuple[float, float]:
    """The gain of the free model, the last; and of the better one, trained whole or not."""
    gallery = exam.inputs.truth.gallery_labels
    old, *others = (
        float((gallery[each.first] == exam.labels).mean())
        for each in (answers[0], answers[-1], *(a for a in answers if a.route == WHOLE_FREE))
    )
    return others[0] - old, max(others) - old


def _mean(right: Bools, rows: Bools | None) -> float | None:
    """None: there are no such queries."""
    return float(right[rows].mean()) if rows is not None and rows.any() else None
