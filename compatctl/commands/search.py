"""search: the nearest gallery items of query images, by the deployed query model."""

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
    """A gallery item, higher is nearer.

    ``score`` is what a threshold is held against: the cosine, or where the store calibrates scores
    what the cosine is on the scale that callers know.
    """

    id: str
    label: str
    score: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query image and what it found, nearest first."""

    image: str
    hits: tuple[Hit, ...]


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The answers, and the model and index that gave them.

    ``left_out``: gallery items that were no answer because of their column; ``unknown``: those of
    which the data do not say it, and which were.
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

    ``ignore_same``: (column, the queries' value); gallery items that the project's data give this
    value are no answers, whatever their label: that of a query is not known here.

    Raises:
        InputError: an image does not decode, ``model`` is not the store's query model, or that
            gives other vectors here than when it was taken in, or no item has a column.
        DamagedError: the index or the model is not what the manifest says.
    """
    gallery = DeployedGallery.open(open_store(project))
    manifest = gallery.manifest
    if model is not None and sha256_file(model) != manifest.query_model:
        raise InputError(
            f"{model} is not the store's query model {manifest.query_model[:12]}",
            tip="leave --model out: the store decides which model embeds a query",
        )
    features = gallery.encoder.embed(from_files(images)).features
    left_out, unknown = _left_out(project, gallery.catalog, ignore_same)
    rows, scores = _nearest(gallery, features, k, left_out)
    scale = score_map(gallery)
    shown = scores if scale is None else scale(scores)
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
                for row, score, cosine in zip(found, told, near, strict=True)
                if row >= 0
            ),
        )
        for image, found, told, near in zip(images, rows, shown, scores, strict=True)
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
    """(N,) rows that share one of the values, and of how many rows one is not known."""
    found, known = np.zeros(len(catalog), bool), np.ones(len(catalog), bool)
    if not ignore_same:
        return found, 0
    data = load_data(project)
    columns = columns_of(data, range(len(data)), [name for name, _ in ignore_same])
    for name, value in ignore_same:
        of = dict(zip(data.ids, columns[name], strict=True))
        values = [of.get(item, "") for item in catalog.ids]
        found |= np.array([one == value for one in values], bool)
        known &= np.array([one != "" for one in values], bool)
    return found, int((~known & ~found).sum())


def _nearest(
    gallery: DeployedGallery, features: Vectors, k: int, left_out: Bools
) -> tuple[Rows, Vectors]:
    """(Q, k) rows that are not left out and their cosines, nearest first; -1 where there is none.

    The index is asked for more and more rows until enough are left, all of them at last.
    """
    n, asked = len(left_out), k
    while True:
        keys, scores = gallery.index.search(features, asked, gallery.manifest.index.ef_search)
        rows = gallery.catalog.rows_of(keys)
        kept = ~left_out[rows]
        if asked >= n or (kept.sum(axis=1) >= k).all():
            break
        asked = min(n, 2 * asked)
    order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
    rows = np.where(kept, rows, -1)
    return np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
