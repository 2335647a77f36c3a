"""Bounds on how far answers of unknown relevance could change a comparison of two models.

Gallery rows may have no label, or appear in no judgment. They are searched like all others, and
count as wrong if they are found.

Shapes: ``Q`` queries, ``k`` first answers, ``G`` gallery rows. The relevance of a row to a query is
one fact: a row that both models find is right for both, or wrong for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Bools, Codes

Hits = tuple[Bools, Bools]
"""(Q,) whether old queries hit, and whether new queries hit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class UnjudgedBounds:
    """Bounds on the hits among the first k answers of old and of new queries, (Q,) each."""

    worst: Hits
    """With every unknown answer counted against the new model."""
    best: Hits
    """With every unknown answer counted for the new model."""
    old: dict[int, Codes]
    """k -> (Q,) unknown answers among the first k of old queries."""
    new: dict[int, Codes]
    """The same for new queries."""
    answers: dict[int, Codes]
    """k -> (Q,) number of first answers: k, or the rows of a smaller gallery."""

    def shares(self, has_match: Bools) -> dict[str, dict[str, float]]:
        """``old`` and ``new`` -> k -> share of unknown answers among the first k."""
        return {
            name: {
                str(k): float(unknown[has_match].sum() / max(1, self.answers[k][has_match].sum()))
                for k, unknown in counts.items()
            }
            for name, counts in (("old", self.old), ("new", self.new))
        }

    @property
    def any(self) -> bool:
        """Whether any answer is of unknown relevance."""
        return any(bool(unknown.any()) for unknown in (*self.old.values(), *self.new.values()))


def bound_unjudged(
    old_rows: Codes, new_rows: Codes, hits: Hits, unknown: Bools, k: int
) -> UnjudgedBounds:
    """Bounds at k, and the unknown answers at 1 and at k.

    Args:
        old_rows: (Q, >= k) gallery rows found by old queries, best first; -1 is no row.
        new_rows: (Q, >= k) gallery rows found by new queries.
        hits: whether one of the first k is known to be right.
        unknown: (G,) rows of unknown relevance.
        k: the first answers that count, >= 1.
    """
    old, new = old_rows[:, :k], new_rows[:, :k]
    best_new, best_old = _favour(new, old, (hits[1], hits[0]), unknown)
    ks = sorted({1, k})
    return UnjudgedBounds(
        worst=_favour(old, new, hits, unknown),
        best=(best_old, best_new),
        old={n: _is_unknown(old[:, :n], unknown).sum(axis=1) for n in ks},
        new={n: _is_unknown(new[:, :n], unknown).sum(axis=1) for n in ks},
        answers={n: (old[:, :n] >= 0).sum(axis=1) for n in ks},
    )


def unknown_found(rows: Codes, unknown: Bools | None, ks: Sequence[int]) -> dict[int, Bools]:
    """k -> (Q,) queries with a row of ``unknown`` (G,) among the first k of ``rows`` (Q, n); empty
    if ``unknown`` is None."""
    if unknown is None:
        return {}
    is_unknown = _is_unknown(rows[:, : max(ks)], unknown)
    return {k: np.asarray(is_unknown[:, :k].any(axis=1)) for k in ks}


def _favour(rows: Codes, other_rows: Codes, hits: Hits, unknown: Bools) -> Hits:
    """Both models' hits if the unknown answers favour the first model as far as they can.

    An unknown answer that only the first model found is right. One that both found is right for
    both, which matters only if the first model has no other hit.
    """
    unknown_found = _is_unknown(rows, unknown)
    alone = unknown_found & ~_found_by_both(rows, other_rows, len(unknown))
    shared = ~hits[0] & unknown_found.any(axis=1) & ~alone.any(axis=1)
    return hits[0] | unknown_found.any(axis=1), hits[1] | shared


def _is_unknown(rows: Codes, unknown: Bools) -> Bools:
    if not len(unknown):
        return np.zeros(rows.shape, dtype=bool)
    is_unknown: Bools = unknown[rows] & (rows >= 0)
    return is_unknown


def _found_by_both(rows: Codes, other_rows: Codes, G: int) -> Bools:
    """(Q, k) whether the other model found the same row for the same query."""
    query = np.arange(len(rows))[:, None] * (G + 1)
    shared: Bools = np.isin(query + rows, query + other_rows)
    return shared
