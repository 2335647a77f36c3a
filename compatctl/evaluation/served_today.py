"""Queries as a store that re-scores answers them today: what a change must not lose.

The free vectors of today are those in the query model's side file. What a query would embed beside
them, as many images as the store's settings say, is embedded here. A limit of time is not
simulated. `verify` does not simulate a share of the gallery at which the project ends the passes
either: without them the old answers can only be better, and the gain smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Vectors
from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import rescore, within_budget
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import kept_rows
from compatctl.deployment.rescoring import kept_vectors, merge_rule
from compatctl.encoder import Encoder
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.embedding import VerifyEmbeddings, prefixed
from compatctl.evaluation.rescoring import FreeVectors
from compatctl.manifest import Catalog, Rescoring
from compatctl.progress import Progress
from compatctl.report import RescoredToday
from compatctl.store.side_file import SideFile


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedToday:
    """Ranks the first answers of queries again, as the store does.

    ``settings.passes`` are the images that a query may embed; each query is the first one to do so.
    """

    settings: Rescoring
    catalog: Catalog
    side: SideFile | None
    free: FreeVectors

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
                data,
                embeddings.gallery.data_rows,
                encoder,
                known=embeddings.old,
                progress=prefixed(progress, "old model"),
            ),
        )

    def __call__(self, first: Neighbours, queries: Vectors) -> Neighbours:
        """The answers (Q, C) of queries in today's order, by their free vectors (Q, F)."""
        found = first.rows[:, : self.settings.candidates]
        stored = np.unique(found[(found >= 0) & (found < len(self.catalog))])
        kept = kept_vectors(self.side, self.catalog, stored, queries.shape[1])
        cosines = kept.cosines(queries, found)
        missing = np.isnan(cosines) & (found >= 0) & (self.free.data_rows[found] >= 0)
        passed = within_budget(missing, self.settings.passes)
        self.free.need(found[passed])
        cosines = np.where(passed, self.free.known.cosines(queries, found), cosines)
        return rescore(first, cosines, merge_rule(self.settings)).of(first)

    @property
    def kept(self) -> int:
        """How many gallery rows have a free vector in the side file."""
        return int(kept_rows(self.side, self.catalog).sum())

    def entry(self, result: GroupResult) -> RescoredToday:
        """The report's entry, of the deciding group's result."""
        first = result.old_first_stage
        assert first is not None
        return RescoredToday(
            candidates=self.settings.candidates,
            passes=self.settings.passes,
            weight=self.settings.weight,
            slope=self.settings.slope,
            intercept=self.settings.intercept,
            kept=self.kept,
            kept_share=self.kept / max(1, len(self.catalog)),
            first_stage={str(k): value for k, value in first.recall.items()},
        )
