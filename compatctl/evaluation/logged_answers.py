"""Judge the answers of two models that a service logged, by labels or by judgments such as clicks.

Only what was answered is judged: neither embeds anything, and nothing is said of the compatibility
of the models, only of the answers that people got and would have got.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Bools, Codes, Floats, Rows
from compatctl.core.gate import Measurement, Verdict, judge
from compatctl.core.nearest import Neighbours
from compatctl.core.policy import Policy
from compatctl.core.resampling import Ratio, estimate_ratios, hit_change, query_ratio
from compatctl.core.retrieval import Retrieval, evaluate, evaluate_judged
from compatctl.data import ComparedLog, Dataset, Judgments
from compatctl.errors import InputError
from compatctl.manifest import Catalog, is_digest

GROUP = "logged queries"


@dataclass(frozen=True, kw_only=True)
class LogResult:
    """The verdict on logged answers.

    Attributes:
        verdict: by the policy's limits of gains and flips; the gate of ``verify`` has more checks.
        policy: its name.
        judged_by: labels or judgments.
        k: answers of each query that both models have.
        queries: distinct queries that both answered.
        judged: of these, queries that have something relevant in the gallery.
        unknown: of these, queries whose candidate answered with what nobody judged or saw.
        current, candidate: digests of the models.
        lines, alone, failed, repeated, others: as ``ComparedLog``.
        gone: answers whose item is no longer in the gallery.
        served: whether ``current`` was ever a query model of the store.
        unmeasured: measures of the policy that need more answers than were logged.
    """

    verdict: Verdict
    policy: str
    judged_by: str
    k: int
    queries: int
    judged: int
    unknown: int
    current: str
    candidate: str
    lines: int
    alone: int
    failed: int
    repeated: int
    others: int
    gone: int
    served: bool
    unmeasured: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user must know."""
        found = {
            f"{self.queries - self.judged} of {self.queries} queries have nothing relevant in the "
            "gallery, as far as the judgments or labels say, and are in no mean": self.queries
            > self.judged,
            f"{self.unknown} queries have answers of the candidate that nobody judged or saw: they "
            "count as wrong for a pass, and as right for a failure": self.unknown,
            f"{self.failed} lines say that the candidate failed": self.failed,
            f"{self.others} lines are of other models": self.others,
            f"{self.gone} answers are of items that are no longer in the gallery": self.gone,
            f"{self.current[:12]} was never a query model of this store: the log may be of another "
            "one": not self.served,
            f"more answers are needed for {', '.join(self.unmeasured)}": self.unmeasured,
        }
        return tuple(text for text, holds in found.items() if holds)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answers:
    """Rows (Q, k) of the gallery that each model answered with, -1 where an item is gone; ``own``
    (Q,): the row that is the query itself, -1: none."""

    current: Rows
    candidate: Rows
    own: Rows
    gone: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judged:
    """Both models' retrieval, the unit (Q,) of each query, and (Q, k) what is unknown of the
    candidate's answers."""

    old: Retrieval
    new: Retrieval
    units: Codes
    unit: str
    unknown: Bools


def judge_log(
    log: ComparedLog,
    catalog: Catalog,
    policy: Policy,
    *,
    data: Dataset | None,
    judgments: Judgments | None,
    seed: int,
    served: bool,
) -> LogResult:
    """Compare both models' answers, query by query.

    With ``judgments`` an answer is right if it is judged relevant to the query's id. Of the
    candidate's answers, those that the query model did not give and nobody judged are unknown: they
    count as wrong for a pass and as right for a failure. Without, ``data`` has the label of a query
    by its id or by the sha256 of its content, and the gallery's labels are the catalogue's. A query
    is no answer to itself. ``served``: as in the result.

    Raises:
        InputError: no query has something relevant, or fewer answers were logged than the policy's
            hit rate needs.
    """
    items = _items_of(log, data)
    answers, k = _rows(
        log, catalog, {} if data is None else {q: data.ids[r] for q, r in items.items()}
    )
    if k < policy.hit_at:
        raise InputError(
            f"the log has {k} answers of each query; hit@{policy.hit_at} of the policy needs "
            f"{policy.hit_at}",
            tip="ask the service for more answers: /v1/search?k=10",
        )
    ks = [at for at in _ks(policy) if at <= k]
    if judgments is not None:
        judged = _by_judgments(log, catalog, answers, judgments, ks)
    else:
        labels = {} if data is None else {query: data.labels[row] for query, row in items.items()}
        judged = _by_labels(log, catalog, answers, labels, ks)
    if not judged.old.n_with_match:
        raise InputError(
            f"none of the {len(log.queries)} logged queries has something relevant in the gallery",
            tip="give judgments of the logged queries' ids with --qrels, or data whose ids or "
            "content are those of the queries",
        )
    measurements, unmeasured = _measurements(policy, judged, k, seed)
    counts = ("lines", "alone", "failed", "repeated", "others")
    return LogResult(
        verdict=judge(policy, measurements),
        policy=policy.name,
        judged_by="labels" if judgments is None else "judgments",
        k=k,
        queries=len(log.queries),
        judged=judged.old.n_with_match,
        unknown=int((judged.unknown.any(axis=1) & judged.old.has_match).sum()),
        current=log.current,
        candidate=log.candidate,
        gone=answers.gone,
        served=served,
        unmeasured=unmeasured,
        **{name: getattr(log, name) for name in counts},
    )


def _ks(policy: Policy) -> list[int]:
    names = (policy.hit_at, policy.wide_hit_at, policy.ndcg_at, policy.mrr_at, policy.recall_at)
    return sorted({1, *names})


def _rows(log: ComparedLog, catalog: Catalog, item_of: Mapping[str, str]) -> tuple[_Answers, int]:
    """The answers as rows, without a query's own item, and how many all queries have; ``item_of``:
    the item of the data that a query is, where it is none of that id."""
    sides: list[list[list[int]]] = [[], []]
    gone, own = 0, []
    for logged in log.queries:
        itself = item_of.get(logged.query, logged.query)
        own.append(catalog.row_of.get(itself, -1))
        for side, ids in zip(sides, (logged.current, logged.candidate), strict=True):
            rows = [catalog.row_of.get(item, -1) for item in ids if item != itself]
            gone += rows.count(-1)
            side.append(rows)
    k = min((len(rows) for side in sides for rows in side), default=0)
    current, candidate = (
        np.array([rows[:k] for rows in side], np.int64).reshape(len(side), k) for side in sides
    )
    return _Answers(current=current, candidate=candidate, own=np.array(own, np.int64), gone=gone), k


def _neighbours(rows: Rows) -> Neighbours:
    """Rows in their order; the log's scores decide nothing here."""
    scores = np.broadcast_to(-np.arange(rows.shape[1], dtype=np.float32), rows.shape)
    return Neighbours(rows=rows, scores=scores)


def _by_judgments(
    log: ComparedLog, catalog: Catalog, answers: _Answers, judgments: Judgments, ks: Sequence[int]
) -> _Judged:
    place = {logged.query: number for number, logged in enumerate(log.queries)}
    known = [
        (place[judgments.query_ids[query]], catalog.row_of[judgments.item_ids[item]], grade)
        for query, item, grade in zip(
            judgments.query.tolist(), judgments.item.tolist(), judgments.grades, strict=True
        )
        if judgments.query_ids[query] in place
        and judgments.item_ids[item] in catalog.row_of
        and judgments.query_ids[query] != judgments.item_ids[item]
    ]
    query, row = (np.array([pair[part] for pair in known], np.int64) for part in (0, 1))
    grades = np.array([pair[2] for pair in known], np.float64)
    old, new = (
        evaluate_judged(
            _neighbours(rows), query, row, len(catalog), grades=grades, ks=ks, map_k=max(ks)
        )
        for rows in (answers.current, answers.candidate)
    )
    step = len(catalog) + 1
    asked = np.arange(len(log.queries))[:, None] * step
    seen = np.isin(asked + answers.candidate, asked + answers.current)
    relevant = np.isin(asked + answers.candidate, query * step + row)
    unknown = (answers.candidate >= 0) & ~seen & ~relevant
    return _Judged(
        old=old, new=new, units=np.arange(len(log.queries)), unit="query", unknown=unknown
    )


def _by_labels(
    log: ComparedLog,
    catalog: Catalog,
    answers: _Answers,
    labels: Mapping[str, str],
    ks: Sequence[int],
) -> _Judged:
    codes: dict[str, int] = {}
    gallery = np.array([codes.setdefault(label, len(codes)) for label in catalog.labels])
    queries = np.array(
        [  # a query without a label is a class of its own, of which the gallery has nothing
            codes.setdefault(labels.get(logged.query, f"{logged.query}\0"), len(codes))
            for logged in log.queries
        ]
    )
    old, new = (
        evaluate(_neighbours(rows), queries, gallery, answers.own, ks=ks, map_k=max(ks))
        for rows in (answers.current, answers.candidate)
    )
    nothing = np.zeros(answers.candidate.shape, bool)
    return _Judged(old=old, new=new, units=queries, unit="class", unknown=nothing)


def _items_of(log: ComparedLog, data: Dataset | None) -> dict[str, int]:
    """The row of the data of each query that it has, by id or by the sha256 of the content."""
    if data is None:
        return {}
    asked = {logged.query for logged in log.queries}
    rows = {query: data.row_of[query] for query in asked & data.row_of.keys()}
    wanted = {query for query in asked - rows.keys() if is_digest(query)}
    if wanted:
        digests = ((data.digest(row), row) for row in range(len(data)))
        rows |= {digest: row for digest, row in digests if digest in wanted}
    return rows


def _measurements(
    policy: Policy, judged: _Judged, k: int, seed: int
) -> tuple[list[Measurement], tuple[str, ...]]:
    """The gains that the log can show, and what it cannot."""
    parts, unmeasured = _ratios(policy, judged, k)
    ratios = [ratio for _, _, ratio, _ in parts]
    estimates = estimate_ratios(ratios, policy.replicates, np.random.default_rng(seed))
    best = [other for _, _, _, other in parts]
    bests = estimate_ratios(
        [ratio if other is None else other for ratio, other in zip(ratios, best, strict=True)],
        policy.replicates,
        np.random.default_rng(seed),
    )
    n = judged.old.n_with_match
    measurements = [
        Measurement(
            name=name,
            group=GROUP,
            estimate=estimate,
            best_case=None if other is None else at_best,
            n=n,
            n_queries=n,
            may_decide=True,
            unit=(judged.unit,),
            detail=detail,
        )
        for (name, detail, _, other), estimate, at_best in zip(parts, estimates, bests, strict=True)
    ]
    return measurements, unmeasured


_Part = tuple[str, str, Ratio, Ratio | None]
"""A check's name, its sentence, its statistic, and that in the candidate's best case."""


def _ratios(policy: Policy, judged: _Judged, k: int) -> tuple[list[_Part], tuple[str, ...]]:
    """The statistics of the first k answers, and the names of those that need more."""
    hits = {"hit_gain": policy.hit_at, "wide_hit_gain": policy.wide_hit_at}
    depths = {name: at for name, (_, at, _) in _rankings(policy).items()}
    parts = [_hits(name, at, judged) for name, at in hits.items() if at <= k]
    parts += [
        _ranking(name, at, judged, measure, values)
        for name, (measure, at, values) in _rankings(policy).items()
        if at <= k
    ]
    unmeasured = [f"{name}@{at}" for name, at in {**hits, **depths}.items() if at > k]
    return [*parts, _flips(judged)], tuple(unmeasured)


_Values = Callable[[Retrieval, int], Floats]


def _rankings(policy: Policy) -> dict[str, tuple[str, int, _Values]]:
    """Check -> the measure's name, its k, and its values (Q,) in [0, 1]."""
    return {
        "ndcg_gain": ("nDCG", policy.ndcg_at, lambda side, at: side.ndcg[at]),
        "mrr_gain": ("MRR", policy.mrr_at, lambda side, at: side.reciprocal_rank(at)),
        "recall_gain": ("Recall", policy.recall_at, lambda side, at: side.recall[at]),
    }


def _hits(name: str, at: int, judged: _Judged) -> _Part:
    old, new, matched = judged.old, judged.new, judged.old.has_match
    best = new.hit(at) | judged.unknown[:, :at].any(axis=1)
    return (
        name,
        _moves(f"Hit@{at}", old.hit_rate[at], new.hit_rate[at]),
        hit_change(judged.units, old.hit(at), new.hit(at), matched),
        hit_change(judged.units, old.hit(at), best, matched) if judged.unknown.any() else None,
    )


def _ranking(name: str, at: int, judged: _Judged, measure: str, values: _Values) -> _Part:
    before, after = values(judged.old, at), values(judged.new, at)
    matched = judged.old.has_match
    best = np.where(judged.unknown[:, :at].any(axis=1), 1.0, after)
    return (
        name,
        _moves(f"{measure}@{at}", judged.old.mean(before), judged.new.mean(after)),
        _change(judged.units, before, after, matched),
        _change(judged.units, before, best, matched) if judged.unknown.any() else None,
    )


def _flips(judged: _Judged) -> _Part:
    matched = judged.old.has_match
    flipped = judged.old.hit1 & ~judged.new.hit1
    most = float((judged.old.hit1 & matched).sum() / max(1, matched.sum()))

    def share(flips: Bools) -> Ratio:
        values = flips.astype(np.float64)
        return query_ratio(judged.units, values, matched, (0.0, 1.0), 1, (0.0, most))

    sure = flipped & ~judged.unknown[:, 0]
    return (
        "negative_flips",
        f"A share of {flipped[matched].mean():.4f} of the queries turned from right to wrong",
        share(flipped),
        share(sure) if judged.unknown.any() else None,
    )


def _change(units: Codes, before: Floats, after: Floats, matched: Bools) -> Ratio:
    level = float(np.nan_to_num(before[matched].mean()))
    change = np.nan_to_num(after - before)
    return query_ratio(units, change, matched, (-1.0, 1.0), -1, (-level, 1 - level))


def _moves(measure: str, before: float, after: float) -> str:
    return f"{measure} of the logged answers moves from {before:.4f} to {after:.4f}"
