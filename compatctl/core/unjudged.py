"""What answers of unknown relevance could change in a comparison of two models.

Rows of a gallery may have no label, or stand in no judgment. They are searched like all others, and
count as wrong where they are found. The bounds here say how far that could have turned the result.

Shapes: ``Q`` queries, ``k`` first answers, ``G`` gallery rows. The relevance of a row to a query is
one fact: where both models found the same row it is right for both or for neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import Bools, Codes

Hits = tuple[Bools, Bools]
"""(Q,) whether old queries found something right, and whether new ones did."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unjudged:
    """Bounds on the hits among the first k answers of old and of new queries, (Q,) each."""

    worst: Hits
    """With every unknown answer counted against the new model."""
    best: Hits
    """With every unknown answer counted for it."""
    old: dict[int, Codes]
    """k -> (Q,) how many of the first k answers of old queries are of unknown relevance."""
    new: dict[int, Codes]
    """The same of new queries."""
    answers: dict[int, Codes]
    """k -> (Q,) how many first answers there are: k, or the rows of a smaller gallery."""

    def shares(self, has_match: Bools) -> dict[str, dict[str, float]]:
        """``old`` and ``new`` -> k -> share of the first k answers of unknown relevance."""
        return {
            name: {
                str(k): float(found[has_match].sum() / max(1, self.answers[k][has_match].sum()))
                for k, found in sides.items()
            }
            for name, sides in (("old", self.old), ("new", self.new))
        }

    @property
    def any(self) -> bool:
        """Whether there is an answer of unknown relevance at all."""
        return any(bool(found.any()) for side in (self.old, self.new) for found in side.values())


def bound_unjudged(
    old_rows: Codes, new_rows: Codes, hits: Hits, unknown: Bools, k: int
) -> Unjudged:
    """The bounds at k, and how many answers are unknown at 1 and at k.

    Args:
        old_rows: (Q, >= k) gallery rows that old queries found, best first, -1: none.
        new_rows: (Q, >= k) those of new queries.
        hits: whether one of the first k is known to be right.
        unknown: (G,) rows of unknown relevance.
        k: the first answers that count, >= 1.
    """
    first, second = old_rows[:, :k], new_rows[:, :k]
    best_new, best_old = _against(second, first, (hits[1], hits[0]), unknown)
    ks = sorted({1, k})
    return Unjudged(
        worst=_against(first, second, hits, unknown),
        best=(best_old, best_new),
        old={at: _unknown(first[:, :at], unknown).sum(axis=1) for at in ks},
        new={at: _unknown(second[:, :at], unknown).sum(axis=1) for at in ks},
        answers={at: (first[:, :at] >= 0).sum(axis=1) for at in ks},
    )


def _against(mine: Codes, theirs: Codes, hits: Hits, unknown: Bools) -> Hits:
    """Both hits with the unknown answers as good for the first model, against the second, as they
    can be: one that only the first found is right; one that both found is right for both, which
    makes no difference between them but where only the second was known to be right."""
    open_ones = _unknown(mine, unknown)
    alone = open_ones & ~_found_too(mine, theirs, len(unknown))
    shared = ~hits[0] & open_ones.any(axis=1) & ~alone.any(axis=1)
    return hits[0] | open_ones.any(axis=1), hits[1] | shared


def _unknown(rows: Codes, unknown: Bools) -> Bools:
    if not len(unknown):
        return np.zeros(rows.shape, dtype=bool)
    found: Bools = unknown[rows] & (rows >= 0)
    return found


def _found_too(mine: Codes, theirs: Codes, G: int) -> Bools:
    """(Q, k) whether the other model found the same row for the same query."""
    query = np.arange(len(mine))[:, None] * (G + 1)
    found: Bools = np.isin(query + mine, query + theirs)
    return found
