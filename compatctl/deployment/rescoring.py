"""Re-score the answers of a search: embed what is missing within the budget, and rank again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from compatctl.core.arrays import Bools, Bytes, Rows, Vectors, as_rows
from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import KnownVectors, MergeRule, rescore, within_budget
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import ModelRows, kept_rows, paired_rows, room_left
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder, embed_together
from compatctl.errors import CompatError, InputError, UsageError
from compatctl.manifest import Catalog, Rescoring
from compatctl.progress import Progress, silent
from compatctl.recipe import Project
from compatctl.store import Store, is_in_bucket, side_bytes
from compatctl.store.side_file import SideFile

VECTORS_A_ROW = 2
"""Most free vectors that the side file keeps, by the gallery's rows: of images before a change,
too."""


BATCH = 256
"""Images that are embedded, and kept, at a time."""


class FreeCache(Protocol):
    """Free vectors by item and image, kept between searches: ``store.side_file.SideFile``."""

    def lookup(self, ids: Sequence[str], images: Bytes | None = None) -> tuple[Vectors, Bools]:
        """Vectors (n, F) of items with these image digests (n, 32), and (n,) which were found."""

    def append(self, ids: Sequence[str], vectors: Vectors, images: Bytes | None = None) -> int:
        """Keep vectors (n, F) of such items; how many were kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RescoredSearch:
    """Answers in their new order.

    Attributes:
        nearest: rows and first cosines (Q, C).
        known: (Q, C) answers that were scored with their free vector.
        passed: images that were embedded now.
        cached: distinct candidates whose free vector was kept from before.
        missing: distinct candidates without an image here: it is not in the data, does not decode,
            or is not the one that was indexed.
        over_budget: distinct candidates that were left because of the passes or the time.
        at_limit: distinct candidates that were left because no more of the gallery may pass.
        kept: whether the new free vectors were kept for the next search.
    """

    nearest: Neighbours
    known: Bools
    passed: int
    cached: int
    missing: int
    over_budget: int
    at_limit: int
    kept: bool


def merge_rule(settings: Rescoring) -> MergeRule:
    """The rule of a store's settings."""
    return MergeRule(weight=settings.weight, slope=settings.slope, intercept=settings.intercept)


def look_up(cache: FreeCache, catalog: Catalog, rows: Rows) -> tuple[Vectors, Bools]:
    """Free vectors (n, F) of gallery rows (n,), as their images are indexed, and (n,) which the
    cache has."""
    return cache.lookup([catalog.ids[row] for row in rows.tolist()], catalog.digests[rows])


def kept_vectors(cache: FreeCache | None, catalog: Catalog, rows: Rows, dim: int) -> KnownVectors:
    """The free vectors (n, ``dim``) that the cache has of these ascending gallery rows."""
    if cache is None or not len(rows):
        return KnownVectors.none(dim)
    vectors, kept = look_up(cache, catalog, rows)
    return KnownVectors(rows=rows[kept], vectors=vectors[kept])


@dataclass(frozen=True, kw_only=True, eq=False)
class PassedRows:
    """What of a gallery the query model of a store that re-scores passed.

    ``unkept`` (N,): rows that it passed other than for its side file; the pairs of its record are
    among them. ``unnamed``: how many more, at most, in galleries that were deleted.
    """

    unkept: Bools
    unnamed: int

    @classmethod
    def of(cls, gallery: DeployedGallery, encoder: Encoder) -> PassedRows:
        """Those of the model of ``encoder``; errors as ``ModelRows.of``."""
        made = ModelRows.of(gallery.store, gallery.catalog, encoder.sha256)
        rows, text = made.stored | made.earlier, encoder.record
        if text is not None:
            record = TrainingRecord.from_text(text, gallery.model_path)
            rows |= paired_rows(gallery.catalog, record)
        return cls(unkept=rows, unnamed=made.unnamed)

    def room(self, project: Project, kept: Bools) -> int:
        """How many more rows may pass where the side file has those that are ``kept`` (N,)."""
        return room_left(project, self.unkept | kept, self.unnamed)


@dataclass(kw_only=True, eq=False)
class _Room:
    """How many more rows may pass, now: other processes keep vectors and write generations."""

    project: Project
    encoder: Encoder
    side: SideFile
    gallery: DeployedGallery
    passed: PassedRows | None = None

    def __call__(self) -> int:
        """The number; errors as ``Store.open`` and ``PassedRows.of``."""
        if not self.side.writable or is_in_bucket(self.side.store):
            return 0  # of a store in a bucket, what other machines keep is not known here
        store = Store.open(self.gallery.store.path)
        if store.manifest.generation != self.gallery.manifest.generation:
            self.gallery, self.passed = DeployedGallery.open(store), None
        if self.passed is None:
            self.passed = PassedRows.of(self.gallery, self.encoder)
        return self.passed.room(self.project, kept_rows(self.side, self.gallery.catalog))


def rescorer_of(project: Project, gallery: DeployedGallery, data: Dataset | None) -> Rescorer:
    """Re-scores as the store says, with the query model's side file as cache.

    Where the project limits what may pass, images are embedded up to the limit, and only if their
    vectors can be kept: what is not kept is not counted. Processes at once keep no more than that
    together.

    Raises:
        UsageError: the query model's answers are not re-scored.
        DamagedError: the side file is damaged.
    """
    manifest, encoder = gallery.manifest, gallery.encoder
    if manifest.rescoring is None or encoder.free_dim is None:
        raise UsageError(
            f"the answers of the query model {manifest.query_model[:12]} are not re-scored",
            tip="compatctl verify and deploy with --rescore K, and a model with free vectors",
        )
    limit = side_bytes(VECTORS_A_ROW * len(gallery.catalog), encoder.free_dim)
    side = SideFile.open(gallery.store.path, manifest.query_model, encoder.free_dim, limit)

    room = _Room(project=project, encoder=encoder, side=side, gallery=gallery)
    limited = room if project.max_gallery_pass < 1.0 else None
    side.allowed = limited
    return Rescorer(
        encoder=encoder,
        catalog=gallery.catalog,
        settings=manifest.rescoring,
        data=data,
        cache=side,
        room=limited,
    )


@dataclass(kw_only=True, eq=False)
class Rescorer:
    """Re-scores answers on a store's gallery.

    Attributes:
        encoder: the query model, with free vectors.
        data: has the images of gallery items; None: there are none at hand.
        cache: keeps free vectors; None: each search embeds them again.
        room: how many more gallery rows may pass, now; None: no limit.
        clock: seconds.
    """

    encoder: Encoder
    catalog: Catalog
    settings: Rescoring
    data: Dataset | None
    cache: FreeCache | None = None
    room: Callable[[], int] | None = None
    clock: Callable[[], float] = time.monotonic
    _known: KnownVectors = field(default_factory=lambda: KnownVectors.none(0))
    _missing: set[int] = field(default_factory=set)
    _left: int | None = None
    _at_limit: set[int] = field(default_factory=set)

    def __call__(self, first: Neighbours, queries: Vectors) -> RescoredSearch:
        """Rank the first answers (Q, C) of queries with these free vectors (Q, F) again.

        Raises:
            InputError: the encoder fails on an image.
        """
        found = first.rows[:, : self.settings.candidates]
        touched = np.unique(found[found >= 0])
        cached = self._look_up(touched)
        before = self._known.rows
        self._embed_missing(found)
        known_rows = self._known.rows
        cosines = self._known.cosines(queries, found)
        scored = rescore(first, cosines, merge_rule(self.settings))
        known = np.zeros(first.rows.shape, bool)
        known[:, : found.shape[1]] = ~np.isnan(cosines)
        new = np.setdiff1d(known_rows, before)
        unknown = np.setdiff1d(touched, known_rows)
        missing = sum(row in self._missing for row in unknown.tolist())
        at_limit = len(self._at_limit - set(known_rows.tolist()))
        return RescoredSearch(
            nearest=scored.of(first),
            known=np.take_along_axis(known, scored.order, axis=1),
            passed=len(new),
            cached=cached,
            missing=missing,
            over_budget=len(unknown) - missing - at_limit,
            at_limit=at_limit,
            kept=self._keep(new),
        )

    def fill(self, rows: Rows) -> tuple[int, bool]:
        """Embed and keep the free vectors of gallery rows (n,) that the cache lacks.

        How many were embedded, and whether they were kept. ``missing`` has rows without an image.
        ``room`` is the caller's to keep.

        Raises:
            InputError: the encoder fails on an image.
            ConflictError: another process writes free vectors.
            CompatError: no space, or no permission.
        """
        rows = np.unique(rows)
        self._look_up(rows)
        before = self._known.rows
        wanted = np.setdiff1d(rows, before)
        wanted = wanted[self._images(wanted) >= 0]
        if len(wanted):
            self._embed(wanted.tolist())
        new = np.setdiff1d(self._known.rows, before)
        return len(new), self._append(new)

    def fill_all(self, rows: Rows, progress: Progress = silent) -> int:
        """``fill`` rows (n,) in their order, batch by batch, each kept at once; how many new ones.

        It ends where ``room`` does: another process may use it up.

        Raises:
            InputError: the encoder fails on an image, or the side file is full.
            CompatError: as ``fill``.
        """
        passed = 0
        for start in range(0, len(rows), BATCH):
            new, kept = self.fill(rows[start : start + BATCH])
            if not kept and self.room is not None and not self.room():
                return passed + new
            if not kept:
                raise InputError(
                    "the free vectors cannot be kept: their side file is full",
                    tip="compatctl check --gc deletes side files that nothing can serve",
                )
            passed += new
            progress("free vectors", min(start + BATCH, len(rows)), len(rows))
        return passed

    def held(self, rows: Rows) -> Bools:
        """(n,) whether the cache has the free vectors of gallery rows (n,)."""
        if self.cache is None or not len(rows):
            return np.zeros(len(rows), bool)
        return look_up(self.cache, self.catalog, rows)[1]

    def find_images(self, rows: Rows) -> None:
        """Look for the images of gallery rows (n,): ``missing`` then has those without one."""
        self._images(rows)

    @property
    def missing(self) -> Rows:
        """Gallery rows that were wanted and whose image is not here."""
        return as_rows(sorted(self._missing))

    def _look_up(self, rows: Rows) -> int:
        """Take the free vectors of gallery rows from the cache; how many it has."""
        dim = self.encoder.free_dim or 0
        self._known = kept_vectors(self.cache, self.catalog, rows, dim)
        return len(self._known.rows)

    def _embed_missing(self, found: Rows) -> None:
        """Embed missing candidates (Q, k), each query's nearest first, within its budget.

        Without a time limit all queries' images are embedded in common batches.
        """
        planned: list[int] = []
        limit = self.settings.max_ms
        self._left, self._at_limit = None, set()
        for candidates in found:
            known = np.isin(candidates, self._known.rows) | np.isin(candidates, planned)
            gone = np.isin(candidates, sorted(self._missing))
            wanted = (candidates >= 0) & ~known & ~gone
            images = self._images(candidates[wanted])
            wanted[wanted] = images >= 0
            chosen = within_budget(wanted[None], self.settings.passes)[0]
            rows = self._within_room(candidates[chosen].tolist())
            if limit is None:
                planned += rows
                continue
            stop = self.clock() + limit / 1000.0
            for row in rows:
                if self.clock() >= stop:
                    break
                self._embed([row])
        if planned:
            self._embed(planned)

    def _within_room(self, rows: list[int]) -> list[int]:
        """The first of these rows, as many as may still pass in this search."""
        if self.room is None or not rows:
            return rows
        left = self.room() if self._left is None else self._left
        self._left = left - min(left, len(rows))
        self._at_limit.update(rows[left:])
        return rows[:left]

    def _images(self, rows: Rows) -> Rows:
        """(n,) the rows of the data that are gallery rows (n,), -1: no image."""
        row_of = self.data.row_of if self.data is not None else {}
        images = as_rows(row_of.get(self.catalog.ids[row], -1) for row in rows)
        self._missing.update(rows[images < 0].tolist())
        return images

    def _embed(self, planned: Sequence[int]) -> None:
        """Embed gallery rows; leave out those whose image is bad, or not the indexed one."""
        assert self.data is not None
        rows = as_rows(planned)
        images = self._images(rows)
        order = np.argsort(images)
        rows, images = rows[order], images[order]
        (embedded,) = embed_together(
            (self.encoder,), self.data, (images,), skip_bad=True, free=True, progress=(silent,)
        )
        good = np.isin(images, embedded.rows)
        assert embedded.free is not None
        same = self.catalog.may_have_images(rows[good], embedded.digests)
        taken = rows[good][same]
        self._missing.update(np.setdiff1d(rows, taken).tolist())
        self._known = self._known.with_rows(taken, embedded.free[same])

    def _append(self, rows: Rows) -> bool:
        """Append the free vectors of new rows to the cache, which may have no room for them."""
        if self.cache is None or not len(rows):
            return self.cache is not None
        ids = [self.catalog.ids[row] for row in rows]
        self.cache.append(ids, self._known.of(rows), self.catalog.digests[rows])
        return bool(self.held(rows).all())

    def _keep(self, rows: Rows) -> bool:
        """``_append``, where the answers count and not the cache."""
        try:
            return self._append(rows)
        except CompatError:
            return False
