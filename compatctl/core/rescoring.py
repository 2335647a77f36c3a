"""Lazy re-scoring: the first k answers are ranked again by a second head's own vectors of them.

A compatible query finds k candidates in the untouched index. Where the *free* vector of a candidate
is known (the second head of the same backbone embedded its image), it scores ``free cosine + weight
* first cosine``. Where it is unknown, it scores what a known one of its first cosine is expected
to: an affine function, by least squares. Both are on one scale, so that all k are ranked together.

Shapes: ``Q`` queries, ``k`` candidates, ``C >= k`` answers of the first stage, ``F`` dimensions of
free vectors. Of a candidate whose vector is unknown the free cosine is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Bools, Floats, Rows, Scores, Vectors, as_rows, check_positive
from compatctl.core.nearest import Neighbours
from compatctl.errors import InputError

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Weights of the first cosine that are tried."""

USUAL_WEIGHT = 0.5
"""The weight that wins a tie."""

_BLOCK = 1 << 22
"""Values of free vectors that are gathered at once."""


@dataclass(frozen=True, kw_only=True)
class MergeRule:
    """Scores of candidates from their first cosine, and their free one if it is known.

    Attributes:
        weight: of the first cosine of a known candidate, >= 0.
        slope: of the expected score of an unknown one, >= 0: unknown candidates keep their order.
        intercept: of that score.

    Raises:
        InputError: ``rule_problem`` finds one.
    """

    weight: float
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if problem := rule_problem(self.weight, self.slope, self.intercept):
            raise InputError(f"a merge rule {problem}")

    def scores(self, first: Scores, free: Scores) -> Floats:
        """Scores of candidates with these first and free cosines, of one shape."""
        first = first.astype(np.float64)
        known = free + self.weight * first
        return np.where(np.isnan(free), self.expected(first), known)

    def expected(self, first: Scores | Floats) -> Floats:
        """Scores of candidates whose free vector is unknown; -inf stays: it is no candidate."""
        cosines, there = np.asarray(first, np.float64), np.isfinite(first)
        expected = self.intercept + self.slope * np.where(there, cosines, 0.0)
        return np.where(there, expected, -np.inf)


def rule_problem(weight: object, slope: object, intercept: object) -> str:
    """What is wrong with the numbers of a merge rule, or nothing."""
    for name, value in {"weight": weight, "slope": slope, "intercept": intercept}.items():
        if type(value) not in {int, float} or not math.isfinite(value):  # type: ignore[arg-type]
            return f"has the {name} {value!r}, which is no finite number"
        if name != "intercept" and value < 0:  # type: ignore[operator]
            return f"has the {name} {value!r}, which is below 0"
    return ""


@dataclass(frozen=True, kw_only=True)
class FittedRule:
    """A merge rule, and what each weight gave.

    Attributes:
        trials: weight -> share of the queries whose first answer is right.
        n_queries: those that have a right answer among the candidates.
    """

    rule: MergeRule
    trials: tuple[tuple[float, float], ...]
    n_queries: int


@dataclass(frozen=True, kw_only=True, eq=False)
class KnownVectors:
    """Free vectors (n, F) of some gallery rows (n,), which ascend."""

    rows: Rows
    vectors: Vectors

    @classmethod
    def none(cls, dim: int) -> KnownVectors:
        """Of no row, with F = ``dim``."""
        return cls(rows=as_rows(()), vectors=np.zeros((0, dim), np.float32))

    def with_rows(self, rows: Rows, vectors: Vectors) -> KnownVectors:
        """These and those of further rows (m,), in any order, none of which is here."""
        every = np.concatenate([self.rows, rows])
        order = np.argsort(every)
        return KnownVectors(
            rows=every[order], vectors=np.concatenate([self.vectors, vectors])[order]
        )

    def of(self, rows: Rows) -> Vectors:
        """Those of rows (m,) that are all here."""
        return self.vectors[np.searchsorted(self.rows, rows)]

    def cosines(self, queries: Vectors, candidates: Rows) -> Scores:
        """(Q, k) cosines of the queries' free vectors (Q, F) with those of their candidates (Q, k),
        which are gallery rows, -1: none."""
        rows, vectors = self.rows, self.vectors
        cosines = np.full(candidates.shape, np.nan, np.float32)
        if not len(rows):
            return cosines
        position = np.minimum(np.searchsorted(rows, candidates), len(rows) - 1)
        query, rank = np.nonzero(rows[position] == candidates)
        step = max(1, _BLOCK // max(1, vectors.shape[1]))
        for start in range(0, len(query), step):
            part = query[start : start + step], rank[start : start + step]
            cosines[part] = np.einsum("nf,nf->n", queries[part[0]], vectors[position[part]])
        return cosines


@dataclass(frozen=True, kw_only=True, eq=False)
class Rescored:
    """Answers in their new order.

    Attributes:
        order: (Q, C) the position of each answer in the first stage.
        scores: (Q, C) the merge rule's scores, non-increasing along a row; -inf: no answer.
    """

    order: Rows
    scores: Floats

    def of(self, first: Neighbours) -> Neighbours:
        """The first stage's answers in the new order, with their first cosines as scores."""
        return Neighbours(
            rows=np.take_along_axis(first.rows, self.order, axis=1),
            scores=np.take_along_axis(first.scores, self.order, axis=1),
        )


def within_budget(missing: Bools, passes: int) -> Bools:
    """(Q, k) the first ``passes`` of each query's ``missing`` candidates (Q, k), nearest first."""
    return missing & (np.cumsum(missing, axis=1) <= passes)


def rescore(first: Neighbours, free: Scores, rule: MergeRule) -> Rescored:
    """Rank the first k of C answers again; the others follow in their order.

    The scores are the rule's, those of the other answers at most the lowest of the first k. Equal
    scores keep the order of the first stage.

    Args:
        first: rows and cosines (Q, C) of the first stage.
        free: (Q, k) free cosines of its first k answers.
        rule: scores the candidates.

    Raises:
        InputError: k is greater than C.
    """
    k, n = free.shape[1], first.rows.shape[1]
    if k > n or len(free) != len(first.rows):
        raise InputError(f"free cosines must be ({len(first.rows)}, at most {n}), got {free.shape}")
    present = first.rows >= 0
    scores = np.where(present, rule.expected(first.scores), -np.inf)
    head = np.where(present[:, :k], rule.scores(first.scores[:, :k], free), -np.inf)
    order = np.argsort(-head, axis=1, kind="stable")
    scores[:, :k] = np.take_along_axis(head, order, axis=1)
    if k:
        scores[:, k:] = np.minimum(scores[:, k:], scores[:, k - 1 : k])
    rest = np.broadcast_to(np.arange(k, n), (len(order), n - k))
    return Rescored(order=np.concatenate([order, rest], axis=1), scores=scores)


def fit_merge_rule(
    first: Scores, free: Scores, relevant: Bools, weights: Sequence[float] = WEIGHTS
) -> FittedRule:
    """The weight with which most first answers are right, and the expected score of unknown ones.

    Args:
        first: (Q, k) first cosines, nearest first; -inf: no candidate.
        free: (Q, k) free cosines.
        relevant: (Q, k) right answers.
        weights: those to try; the one nearest to ``USUAL_WEIGHT`` wins a tie.

    Raises:
        InputError: wrong shapes; no query has a right answer, or fewer than two candidates are
            known.
    """
    check_positive(first.ndim == 2 and first.shape[1], "candidates of a query")
    if not first.shape == free.shape == relevant.shape:
        raise InputError(f"shapes differ: {first.shape}, {free.shape}, {relevant.shape}")
    known = np.isfinite(first) & ~np.isnan(free)
    answerable = relevant.any(axis=1)
    if not answerable.any() or known.sum() < 2:
        raise InputError(
            f"{int(answerable.sum())} queries have a right answer among their candidates, and "
            f"{int(known.sum())} candidates have a free vector: too few to fit the merge rule",
            tip="give the data more validation queries, with the gallery's items",
        )
    trials = []
    for weight in weights:
        rule = _with_expectation(first[known], free[known], weight)
        scores = np.where(np.isfinite(first), rule.scores(first, free), -np.inf)
        trials.append((rule, _right_first(scores, relevant)[answerable].mean()))
    best = max(trials, key=lambda trial: (trial[1], -abs(trial[0].weight - USUAL_WEIGHT)))
    return FittedRule(
        rule=best[0],
        trials=tuple((rule.weight, float(hit_rate)) for rule, hit_rate in trials),
        n_queries=int(answerable.sum()),
    )


def rule_without_labels(first: Scores, free: Scores, weight: float) -> MergeRule:
    """The rule of this weight, with the score that is expected of candidates without a free vector.

    Args:
        first: (Q, k) first cosines; -inf: no candidate.
        free: (Q, k) free cosines. Of fewer than two known ones nothing is expected: all candidates
            then keep the order of the first stage.
    """
    known = np.isfinite(first) & ~np.isnan(free)
    if known.sum() < 2:
        return MergeRule(weight=weight, slope=1.0, intercept=0.0)
    return _with_expectation(first[known], free[known], weight)


def _with_expectation(first: Scores, free: Scores, weight: float) -> MergeRule:
    """The rule of this weight, fitted to the (n,) known candidates."""
    x, y = first.astype(np.float64), free + weight * first.astype(np.float64)
    spread = float(np.var(x))
    slope = max(0.0, float(np.mean((x - x.mean()) * (y - y.mean()))) / spread) if spread else 0.0
    return MergeRule(weight=weight, slope=slope, intercept=float(y.mean() - slope * x.mean()))


def _right_first(scores: Floats, relevant: Bools) -> Bools:
    """(Q,) whether the answer with the highest score, the nearer one of equals, is right."""
    best = np.argmax(scores, axis=1)
    right: Bools = np.take_along_axis(relevant, best[:, None], axis=1)[:, 0]
    return right
