"""Searching a gallery: the nearest rows of queries, and what is said of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compatctl.core.arrays import AnyFloats, Bools, Rows, Vectors
from compatctl.deployment.gallery import DeployedGallery
from compatctl.manifest import Catalog


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """A gallery item.

    ``score`` is what a threshold applies to: the cosine or, if the store calibrates scores, the
    cosine mapped to the scale that callers know; with norms, what the index before the import
    returned. Higher is nearer; a squared L2 distance is lower. ``model`` is the digest of the
    model that embedded the item. ``rescored``: its place comes from its free vector; the order of
    re-scored hits is not that of ``score``.
    """

    id: str
    label: str
    score: float
    cosine: float
    model: str
    rescored: bool = False


def hits_of(
    catalog: Catalog, rows: Rows, scores: AnyFloats, cosines: Vectors, rescored: Bools
) -> tuple[Hit, ...]:
    """The hits of one query, from (k,) columns; row -1: no hit."""
    return tuple(
        Hit(
            id=catalog.ids[row],
            label=catalog.labels[row],
            score=float(score),
            cosine=float(cosine),
            model=catalog.models[int(catalog.model_of[row])],
            rescored=bool(known),
        )
        for row, score, cosine, known in zip(rows.tolist(), scores, cosines, rescored, strict=True)
        if row >= 0
    )


def nearest_rows(
    gallery: DeployedGallery, features: Vectors, k: int, left_out: Bools
) -> tuple[Rows, Vectors]:
    """(Q, k) rows that are not left out and their cosines, nearest first; -1 fills up.

    The search is repeated for more rows, up to all of them, until enough are left.
    """
    n, count = len(left_out), k
    while True:
        keys, scores = gallery.index.search(features, count, gallery.manifest.index.ef_search)
        rows = gallery.catalog.rows_of(keys)
        kept = ~left_out[rows]
        if count >= n or (kept.sum(axis=1) >= k).all():
            break
        count = min(n, 2 * count)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    rows = np.where(kept, rows, -1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
