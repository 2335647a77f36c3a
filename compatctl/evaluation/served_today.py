"""Old queries as a store that re-scores answers them today: what a candidate must gain over.

The free vectors of today are those in the old model's side file. What a query would embed beside
them, as many images as the store's settings say, is embedded here. A limit of time, and a share of
the gallery at which the project ends the passes, are not simulated: without them the old answers
can only be better, and the gain smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import MergeRule, free_cosines, rescore, within_budget
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.embedding import VerifyEmbeddings, prefixed
from compatctl.evaluation.gallery import EvaluationGallery
from compatctl.evaluation.rescoring import FreeVectors
from compatctl.manifest import Catalog, Rescoring
from compatctl.progress import Progress
from compatctl.report import RescoredToday
from compatctl.store.side_file import SideFile


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedToday:
    """Ranks the first answers of old queries again, as the store does."""

    settings: Rescoring
    catalog: Catalog
    side: SideFile | None
    free: FreeVectors
    gallery: EvaluationGallery

    @classmethod
    def of(
        cls,
        data: Dataset,
        embeddings: VerifyEmbeddings,
        encoder: Encoder,
        store: DeployedGallery | None,
        progress: Progress,
    ) -> Self | None:
        """That of a store; None if it does not re-score, or there is none.

        Raises:
            DamagedError: the side file is damaged.
        """
        if store is None or store.manifest.rescoring is None:
            return None
        return cls(
            settings=store.manifest.rescoring,
            catalog=store.catalog,
            side=SideFile.existing(store.store.path, store.manifest.query_model),
            free=FreeVectors(
                data, embeddings.gallery, encoder, embeddings.old, prefixed(progress, "old model")
            ),
            gallery=embeddings.gallery,
        )

    def __call__(self, first: Neighbours, queries: Vectors) -> Neighbours:
        """The answers (Q, C) of old queries in today's order, by their free vectors (Q, F)."""
        found = first.rows[:, : self.settings.candidates]
        kept, vectors = self._kept(np.unique(found[(found >= 0) & (found < len(self.catalog))]))
        cosines = free_cosines(queries, found, kept, vectors)
        missing = np.isnan(cosines) & (found >= 0) & (self.gallery.data_rows[found] >= 0)
        passed = within_budget(missing, self.settings.passes)
        self.free.need(found[passed])
        fresh = free_cosines(queries, found, self.free.rows, self.free.vectors)
        rule = MergeRule(
            weight=self.settings.weight,
            slope=self.settings.slope,
            intercept=self.settings.intercept,
        )
        return rescore(first, np.where(passed, fresh, cosines), rule).of(first)

    def entry(self, result: GroupResult) -> RescoredToday:
        """The report's entry, of the deciding group's result."""
        first = result.old_first_stage
        assert first is not None
        held = 0 if self.side is None else int(self.side.holds(self.catalog.ids).sum())
        return RescoredToday(
            candidates=self.settings.candidates,
            passes=self.settings.passes,
            weight=self.settings.weight,
            slope=self.settings.slope,
            intercept=self.settings.intercept,
            kept=held,
            kept_share=held / max(1, len(self.catalog)),
            first_stage={str(k): value for k, value in first.recall.items()},
        )

    def _kept(self, rows: Rows) -> tuple[Rows, Vectors]:
        """Those of the store's rows (n,) that the side file has, and their free vectors."""
        if self.side is None or not len(rows):
            return rows[:0], self.free.vectors[:0]
        ids = [self.catalog.ids[row] for row in rows.tolist()]
        vectors, held = self.side.lookup(ids, self.catalog.digests[rows])
        return rows[held], vectors[held]
