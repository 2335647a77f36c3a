"""How a store that re-scores answers before a backfill, and how it would answer after.

The first stage is that of the index with and without the backfilled rows. Its candidates are
re-scored with the free vectors of the side file, the images that a query may embed and the store's
merge rule. A backfilled row counts as passed: in a project that limits what may pass, queries then
embed less, down to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Bytes, Rows, Vectors
from compatctl.core.nearest import Neighbours
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import kept_rows
from compatctl.deployment.rescoring import PassedRows
from compatctl.evaluation.gallery import stored_data_rows
from compatctl.evaluation.rescoring import FreeVectors
from compatctl.evaluation.served_today import ServedToday
from compatctl.progress import Progress
from compatctl.recipe import Project
from compatctl.store.side_file import SideFile


@dataclass(frozen=True, kw_only=True)
class RescoredTrial:
    """How the answers of a trial were re-scored.

    Attributes:
        candidates: the first answers that were ranked again.
        kept: gallery rows with a free vector in the side file.
        passes, passes_after: the images that a query could embed before and after the backfill.
        first_stage: recall of the index as it is, without re-scoring, in [0, 1].
    """

    candidates: int
    kept: int
    passes: int
    passes_after: int
    first_stage: float

    @property
    def less_room(self) -> str:
        """What the limit of the project takes from queries; empty if nothing."""
        if self.passes_after == self.passes:
            return ""
        return (
            "the backfilled rows count for max_gallery_pass, so that re-scoring embeds less: a "
            f"query could embed {self.passes} images, and then {self.passes_after}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class RescoredService:
    """Orders the first answers of queries with these free vectors (Q, F) before and after."""

    queries: Vectors
    today: ServedToday
    later: ServedToday

    @classmethod
    def of(
        cls,
        project: Project,
        gallery: DeployedGallery,
        data: Dataset,
        *,
        queries: Vectors | None,
        rows: Rows,
        digests: Bytes,
        progress: Progress,
    ) -> Self | None:
        """The service of a store that re-scores; None: it does not. ``rows`` (n,) of the catalogue
        are backfilled from images with these ``digests`` (n, 32).

        Raises:
            DamagedError: the side file is damaged.
        """
        manifest, catalog = gallery.manifest, gallery.catalog
        settings = manifest.rescoring
        if settings is None or queries is None:
            return None
        side = SideFile.existing(gallery.store.path, manifest.query_model)
        free = FreeVectors(
            data,
            stored_data_rows(data, gallery),
            gallery.encoder,
            catalog=catalog,
            progress=progress,
        )
        passed, kept = PassedRows.of(gallery, gallery.encoder), kept_rows(side, catalog)
        now = min(settings.passes, passed.room(project, kept))
        kept[rows] = True
        later = min(settings.passes, passed.room(project, kept))
        if project.max_gallery_pass >= 1.0:
            now = later = settings.passes
        today = ServedToday(
            settings=replace(settings, passes=now), catalog=catalog, side=side, free=free
        )
        written = catalog.reassigned(rows, manifest.query_model, digests)
        return cls(
            queries=queries,
            today=today,
            later=replace(today, settings=replace(settings, passes=later), catalog=written),
        )

    def before(self, first: Neighbours) -> Neighbours:
        """The answers (Q, C) of the index as it is, as the store ranks them."""
        return self.today(first, self.queries)

    def after(self, first: Neighbours) -> Neighbours:
        """The answers (Q, C) of an index with backfilled rows, as the store would rank them."""
        return self.later(first, self.queries)

    @property
    def measured(self) -> Rows:
        """(n,) gallery rows that were embedded to measure; their vectors are not kept."""
        return np.unique(self.today.free.known.rows)

    def trial(self, first_stage: float) -> RescoredTrial:
        """What a report says of it."""
        return RescoredTrial(
            candidates=self.today.settings.candidates,
            kept=self.today.kept,
            passes=self.today.settings.passes,
            passes_after=self.later.settings.passes,
            first_stage=first_stage,
        )
