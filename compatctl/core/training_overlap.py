"""The overlap of gallery and training: rows that training passed through the new model.

Such rows are *touched*. A model answers best for them: training items and the pairs of a bridge are
easier to find than the rest of the gallery. Let t_q be the share of query q's relevant rows that
are touched, and t the share of touched rows in the gallery. The gain on the gallery as it is weighs
the touched part by t and the untouched part by 1 - t; queries with another mixture are weighted
accordingly.

Shapes: ``Q`` queries, ``G`` gallery rows, ``J`` judged pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import NO_CLASS, Bools, Codes, Floats, ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingOverlap:
    """Shares of touched rows, by query and in the gallery."""

    of_query: Floats
    """(Q,) t_q, in [0, 1]; NaN if the query has no relevant row."""
    of_gallery: float
    """t, in [0, 1]."""

    @property
    def untouched(self) -> Bools:
        """(Q,) queries that have relevant rows, none of them touched."""
        untouched: Bools = self.of_query == 0
        return untouched

    def weights(self, has_match: Bools) -> Bools | Floats:
        """(Q,) weights of the queries with a match, with mean 1, that give the gallery's mixture.

        With m the mean of t_q over these queries, query q weighs
        ``t_q t / m + (1 - t_q) (1 - t) / (1 - m)``. If m is 0 or 1, ``has_match``.
        """
        mean = float(self.of_query[has_match].mean()) if has_match.any() else 0.0
        if not 0.0 < mean < 1.0:
            return has_match
        share = np.nan_to_num(self.of_query)
        touched = share * self.of_gallery / mean
        weights: Floats = touched + (1 - share) * (1 - self.of_gallery) / (1 - mean)
        return has_match * weights

    def parts(self, values: Floats, has_match: Bools) -> tuple[float, float]:
        """Means of the values (Q,) over the touched and the untouched part; NaN for an empty part.

        A weighted mean over the queries is a mixture of these two.
        """
        share, values = self.of_query[has_match], values[has_match]
        return (
            ratio(float((share * values).sum()), float(share.sum())),
            ratio(float(((1 - share) * values).sum()), float((1 - share).sum())),
        )


def touched_share_by_class(
    query_labels: Codes, gallery_labels: Codes, self_row: Codes, touched: Bools
) -> Floats:
    """(Q,) share of touched rows among the gallery rows of each query's class, without its own.

    Args:
        query_labels: (Q,) codes from 0.
        gallery_labels: (G,) codes from 0, or ``NO_CLASS``.
        self_row: (Q,) gallery row that is the query's own item, or -1.
        touched: (G,) touched rows.
    """
    known = gallery_labels != NO_CLASS
    n = int(max(query_labels.max(initial=-1), gallery_labels.max(initial=-1))) + 1
    n_rows = np.bincount(gallery_labels[known], minlength=n)[query_labels]
    n_touched = np.bincount(gallery_labels[known & touched], minlength=n)[query_labels]
    with_self = np.flatnonzero(self_row >= 0)
    with_self = with_self[gallery_labels[self_row[with_self]] == query_labels[with_self]]
    n_rows[with_self] -= 1
    n_touched[with_self] -= touched[self_row[with_self]]
    return _share(n_touched, n_rows)


def touched_share_judged(judged_query: Codes, judged_row: Codes, touched: Bools, Q: int) -> Floats:
    """(Q,) share of touched rows among each query's relevant rows.

    The relevant pairs are ``judged_query`` (J,), positions of queries, and ``judged_row`` (J,).
    """
    n_rows = np.bincount(judged_query, minlength=Q)
    return _share(np.bincount(judged_query[touched[judged_row]], minlength=Q), n_rows)


def _share(n_touched: Codes, n_rows: Codes) -> Floats:
    return np.where(n_rows > 0, n_touched / np.maximum(n_rows, 1), np.nan)
