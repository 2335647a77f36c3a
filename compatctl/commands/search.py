"""search: find the nearest gallery items of query images with the deployed query model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.data import from_files
from compatctl.deployment.data import load_data
from compatctl.deployment.gallery import DeployedGallery, score_map
from compatctl.deployment.project import open_store
from compatctl.errors import InputError
from compatctl.evaluation.clusters import columns_of
from compatctl.files import sha256_file
from compatctl.manifest import Catalog
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A gallery item.

    ``score`` is what a threshold applies to: the cosine or, if the store calibrates scores, the
    cosine mapped to the scale that callers know. Higher is nearer.
    """

    id: str
    label: str
    score: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query image and its hits, nearest first."""

    image: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The hits of each query, and the model and index that were used.

    Attributes:
        left_out: how many gallery items ``ignore_same`` left out.
        unknown: how many gallery items have no value in the data, and were searched.
    """

    generation: int
    query_model: str
    calibrated: bool
    index_sha256: str
    left_out: int
    unknown: int
    queries: tuple[Query, ...]


def search(
    project: Project,
    *,
    images: Sequence[Path],
    k: int,
    model: Path | None = None,
    ignore_same: Sequence[tuple[str, str]] = (),
) -> SearchResult:
    """Embed the images with the store's query model and search its index.

    ``ignore_same``: pairs of a column and the queries' value. Gallery items with this value in the
    project's data are left out, whatever their label.

    Raises:
        InputError: an image does not decode; ``model`` is not the store's query model; the query
            model fails its canary; or no item has a column.
        DamagedError: the index or the model differs from the manifest's digest.
    """
    gallery = DeployedGallery.open(open_store(project))
    manifest = gallery.manifest
    if model is not None and sha256_file(model) != manifest.query_model:
        raise InputError(
            f"{model} is not the store's query model {manifest.query_model[:12]}",
            tip="omit --model: the store decides which model embeds a query",
        )
    features = gallery.encoder.embed(from_files(images)).features
    left_out, unknown = _left_out(project, gallery.catalog, ignore_same)
    rows, scores = _nearest(gallery, features, k, left_out)
    scale = score_map(gallery)
    mapped = scores if scale is None else scale(scores)
    answers = [
        Query(
            image=str(image),
            hits=tuple(
                Hit(
                    id=gallery.catalog.ids[row],
                    label=gallery.catalog.labels[row],
                    score=float(score),
                    cosine=float(cosine),
                )
                for row, score, cosine in zip(item_rows, item_scores, cosines, strict=True)
                if row >= 0
            ),
        )
        for image, item_rows, item_scores, cosines in zip(images, rows, mapped, scores, strict=True)
    ]
    return SearchResult(
        generation=manifest.generation,
        query_model=manifest.query_model,
        calibrated=manifest.calibration is not None,
        index_sha256=manifest.index.sha256,
        left_out=int(left_out.sum()),
        unknown=unknown,
        queries=tuple(answers),
    )


def _left_out(
    project: Project, catalog: Catalog, ignore_same: Sequence[tuple[str, str]]
) -> tuple[Bools, int]:
    """(N,) which rows share one of the values, and how many rows have an unknown value."""
    left_out, known = np.zeros(len(catalog), bool), np.ones(len(catalog), bool)
    if not ignore_same:
        return left_out, 0
    data = load_data(project)
    columns = columns_of(data, range(len(data)), [name for name, _ in ignore_same])
    for name, value in ignore_same:
        value_of = dict(zip(data.ids, columns[name], strict=True))
        values = [value_of.get(item, "") for item in catalog.ids]
        left_out |= np.array([other == value for other in values], bool)
        known &= np.array([other != "" for other in values], bool)
    return left_out, int((~known & ~left_out).sum())


def _nearest(
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
