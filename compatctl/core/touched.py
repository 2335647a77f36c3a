"""Rows of a gallery that training passed through the new model, and rows that it did not.

A model finds what it was trained to find: anchors and pairs of a bridge answer better than the
rest of the gallery. A query's part in either is the share of its relevant rows that were touched.
The gain on the gallery as it is, is the gain of the touched part and that of the untouched part,
each by its share of the rows: where the queries at hand are of another mixture, they are weighted.

Shapes: ``Q`` queries, ``G`` gallery rows, ``J`` judged pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import NO_CLASS, Bools, Codes, Floats, ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class Touched:
    """What of the queries' relevant rows, and of the gallery, was touched."""

    of_query: Floats
    """(Q,) share of each query's relevant rows, in [0, 1]; NaN where it has none."""
    of_gallery: float
    """Share of the gallery's rows, in [0, 1]."""

    @property
    def untouched(self) -> Bools:
        """(Q,) queries that have relevant rows, none of them touched."""
        found: Bools = self.of_query == 0
        return found

    def weights(self, has_match: Bools) -> Floats | None:
        """(Q,) weights by which the counted queries are of the gallery's mixture; their mean over
        these is 1. None where the queries are of one kind only, which no weight can change."""
        here = float(self.of_query[has_match].mean()) if has_match.any() else 0.0
        if not 0.0 < here < 1.0:
            return None
        share = np.nan_to_num(self.of_query)
        found: Floats = share * self.of_gallery / here
        return found + (1 - share) * (1 - self.of_gallery) / (1 - here)

    def weighted(self, has_match: Bools) -> Bools | Floats:
        """``has_match`` (Q,) as it is, or with these weights."""
        found = self.weights(has_match)
        return has_match if found is None else has_match * found

    def parts(self, values: Floats, has_match: Bools) -> tuple[float, float]:
        """The mean of the values (Q,) over the touched part of the counted queries, and over their
        untouched part; NaN where there is no such part. Weighted means are made of the two."""
        share, values = self.of_query[has_match], values[has_match]
        return (
            ratio(float((share * values).sum()), float(share.sum())),
            ratio(float(((1 - share) * values).sum()), float((1 - share).sum())),
        )


def touched_share_by_class(
    query_labels: Codes, gallery_labels: Codes, self_row: Codes, touched: Bools
) -> Floats:
    """(Q,) share of the gallery rows of each query's class, its own row apart, that were touched.

    Args:
        query_labels: (Q,) codes from 0.
        gallery_labels: (G,) codes from 0, or ``NO_CLASS``.
        self_row: (Q,) the query's own gallery row, -1: none.
        touched: (G,) rows that were.
    """
    known = gallery_labels != NO_CLASS
    n = int(max(query_labels.max(initial=-1), gallery_labels.max(initial=-1))) + 1
    rows = np.bincount(gallery_labels[known], minlength=n)[query_labels]
    part = np.bincount(gallery_labels[known & touched], minlength=n)[query_labels]
    own = np.flatnonzero(self_row >= 0)
    own = own[gallery_labels[self_row[own]] == query_labels[own]]
    rows[own] -= 1
    part[own] -= touched[self_row[own]]
    return _share(part, rows)


def touched_share_judged(judged_query: Codes, judged_row: Codes, touched: Bools, Q: int) -> Floats:
    """(Q,) the same where relevance was judged: pairs (J,) of query positions and gallery rows."""
    rows = np.bincount(judged_query, minlength=Q)
    part = np.bincount(judged_query[touched[judged_row]], minlength=Q)
    return _share(part, rows)


def _share(part: Codes, rows: Codes) -> Floats:
    return np.where(rows > 0, part / np.maximum(rows, 1), np.nan)
