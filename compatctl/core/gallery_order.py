"""How much each row of a gallery needs a better vector, from the stored vectors alone.

Each score is one number a row; the row with the largest is replaced first. Products are computed in
blocks, so that memory never holds rows x rows.

Shapes: ``N`` rows, ``D`` dimensions, ``C`` classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from compatctl.core.arrays import NO_CLASS, Codes, Floats, Rows, Vectors
from compatctl.core.class_sums import sums_by_position
from compatctl.core.nearest import exact_search

HUB_K = 10
"""Neighbours in which a row is counted as a hub."""

_CELLS = 2**22
"""Cosines held at once: 16 MiB of float32."""


def hubness(rows: Vectors, queries: Rows) -> Floats:
    """(N,) how often a row is among the ten nearest of the rows ``queries`` (Q,) of the gallery.

    A row is not its own neighbour. This is the 10-occurrence of Radovanović, Nanopoulos and
    Ivanović (Journal of Machine Learning Research 11, 2010).
    """
    nearest = exact_search(rows[queries], rows, HUB_K, queries).rows
    return np.bincount(nearest[nearest >= 0], minlength=len(rows)).astype(np.float64)


def mean_distance(rows: Vectors, labels: Codes) -> Floats:
    """(N,) 1 less the cosine to the mean of the row's class, in [0, 2].

    ``labels`` (N,) are class codes. A row of unknown class (``NO_CLASS``) has the median.
    """
    known, position, sums = _by_class(rows, labels)
    means, distance = _unit(sums), np.full(len(rows), np.nan)
    for part in _blocks(len(known), rows.shape[1]):
        block = rows[known[part]]
        distance[known[part]] = 1.0 - (block * means[position[part]]).sum(axis=1)
    return _median_for_unknown(distance)


def uncertainty(rows: Vectors, labels: Codes) -> Floats:
    """(N,) the cosine to the nearest mean of another class, less that to the row's own class's.

    It is in [-2, 2], above 0 where another class is nearer. A row alone in its class lies on its
    mean. A row of unknown class has the median.
    """
    known, position, sums = _by_class(rows, labels)
    means, margin = _unit(sums).astype(np.float32), np.full(len(rows), np.nan)
    for part in _blocks(len(known) * (len(sums) > 1), max(len(sums), rows.shape[1])):
        cosines, own = rows[known[part]] @ means.T, position[part]
        here = np.arange(len(own))
        own_cosine = cosines[here, own]
        cosines[here, own] = -np.inf
        margin[known[part]] = cosines.max(axis=1) - own_cosine
    return _median_for_unknown(margin)


def answer_doubt(rows: Vectors, queries: Rows) -> Floats:
    """(N,) how little decides between a row and its rival as the first answer, in [0, 2].

    The rows ``queries`` (Q,) of the gallery search it, each without itself. Of every one the first
    two answers have the doubt 2 less the difference of their cosines: a small change of either
    vector swaps them. A row has its largest doubt; 0 if it is never among the first two. No class
    is needed.
    """
    doubt = np.zeros(len(rows))
    if len(rows) < 3:
        return doubt
    nearest = exact_search(rows[queries], rows, 2, queries)
    margin = 2.0 - (nearest.scores[:, 0] - nearest.scores[:, 1]).astype(np.float64)
    for column in nearest.rows.T:
        found = column >= 0
        np.maximum.at(doubt, column[found], margin[found])
    return doubt


def _by_class(rows: Vectors, labels: Codes) -> tuple[Rows, Codes, Floats]:
    """(n,) rows of known class, (n,) the position of each one's class, and (C, D) class sums."""
    known = np.flatnonzero(labels != NO_CLASS)
    codes, position = np.unique(labels[known], return_inverse=True)
    sums, _ = sums_by_position(rows[known], position, len(codes))
    return known, position.astype(np.int64), sums


def _blocks(n: int, width: int) -> Iterator[slice]:
    """Slices of n rows that together hold few values of this width."""
    step = max(1, _CELLS // max(1, width))
    return (slice(start, start + step) for start in range(0, n, step))


def _unit(sums: Floats) -> Floats:
    """Rows of unit length; a row of zeros stays."""
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    unit: Floats = sums / np.where(norms > 0, norms, 1.0)
    return unit


def _median_for_unknown(scores: Floats) -> Floats:
    """The scores with the median in place of NaN; 0 where all are."""
    known = scores[~np.isnan(scores)]
    return np.where(np.isnan(scores), np.median(known) if len(known) else 0.0, scores)
