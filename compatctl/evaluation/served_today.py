"""Queries as a store that re-scores answers them today: what a change must not lose.

The free vectors of today are those in the query model's side file. What a query would embed beside
them, as many images as the store's settings say, is embedded here. A limit of time is not
simulated. `verify` does not simulate a share of the gallery at which the project ends the passes
either: without them the old answers can only be better, and the gain smaller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors
from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import rescore, within_budget
from compatctl.core.retrieval import Retrieval
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import kept_rows
from compatctl.deployment.rescoring import kept_vectors, merge_rule
from compatctl.encoder import Encoder
from compatctl.evaluation.embedding import VerifyEmbeddings, prefixed
from compatctl.evaluation.exact_retrieval import MAP_K, evaluate_neighbours, nearest_rows
from compatctl.evaluation.gallery import stored_data_rows
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.rescoring import FreeVectors
from compatctl.manifest import Catalog, Rescoring
from compatctl.progress import Progress
from compatctl.report import RescoredToday
from compatctl.store.side_file import SideFile


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedToday:
    """Ranks the first answers of queries again, as the store does.

    ``settings.passes`` are the images that a query may embed; each query is the first one to do so.
    ``filled`` (N,): rows that are re-scored as if the side file had them; None: no others.
    """

    settings: Rescoring
    catalog: Catalog
    side: SideFile | None
    free: FreeVectors
    filled: Bools | None = None

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

    @classmethod
    def of_store(cls, store: DeployedGallery, data: Dataset, progress: Progress) -> Self | None:
        """That of a store, with no image of ``data`` embedded before; None if it does not re-score.

        A row whose image is not the one that is indexed gets no vector.

        Raises:
            DamagedError: the side file is damaged.
        """
        if store.manifest.rescoring is None:
            return None
        return cls(
            settings=store.manifest.rescoring,
            catalog=store.catalog,
            side=SideFile.existing(store.store.path, store.manifest.query_model),
            free=FreeVectors(
                data,
                stored_data_rows(data, store),
                store.encoder,
                catalog=store.catalog,
                progress=progress,
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
        if self.filled is not None:
            passed |= missing & self.filled[found]
        self.free.need(found[passed])
        cosines = np.where(passed, self.free.known.cosines(queries, found), cosines)
        return rescore(first, cosines, merge_rule(self.settings)).of(first)

    @property
    def kept(self) -> int:
        """How many gallery rows have a free vector in the side file."""
        return int(kept_rows(self.side, self.catalog).sum())

    def entry(self, first: Retrieval) -> RescoredToday:
        """The report's entry; ``first``: old queries without re-scoring."""
        kept = self.kept
        return RescoredToday(
            candidates=self.settings.candidates,
            passes=self.settings.passes,
            weight=self.settings.weight,
            slope=self.settings.slope,
            intercept=self.settings.intercept,
            kept=kept,
            kept_share=kept / max(1, len(self.catalog)),
            first_stage={str(k): value for k, value in first.hit_rate.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TodayAnswers:
    """Old queries with these free vectors (Q, F) in a store that re-scores, where they search
    ``rows`` (G,) of the catalogue alone; None: all of them."""

    served: ServedToday
    queries: Vectors
    rows: Rows | None = None

    @classmethod
    def of(
        cls, store: DeployedGallery, data: Dataset, queries: Rows, progress: Progress
    ) -> Self | None:
        """Those of the queries (Q,) of the data; None: the store does not re-score.

        Raises:
            DamagedError: the side file is damaged.
            InputError: as ``Encoder.embed``.
        """
        progress = prefixed(progress, "old model")
        served = ServedToday.of_store(store, data, progress)
        if served is None:
            return None
        free = store.encoder.embed(data.take(queries), free=True, progress=progress).free
        assert free is not None
        return cls(served=served, queries=free)

    def among(self, rows: Rows) -> Self:
        """The same, where the queries search these rows (G,) of the catalogue."""
        return replace(self, rows=rows)

    def __call__(self, first: Neighbours, queries: Vectors) -> Neighbours:
        """The answers (Q, C) among the searched rows in today's order, by free vectors (Q, F)."""
        if self.rows is None:
            return self.served(first, queries)
        position = np.full(len(self.served.catalog) + 1, -1)
        position[self.rows] = np.arange(len(self.rows))
        rows = np.append(self.rows, -1)[first.rows]
        answers = self.served(replace(first, rows=rows), queries)
        return replace(answers, rows=position[answers.rows])

    def retrieval(
        self,
        truth: GroundTruth,
        queries: Vectors,
        gallery: Vectors,
        ks: tuple[int, ...],
        map_k: int = MAP_K,
    ) -> Retrieval:
        """hit@k and mAP of old queries (Q, D) on the searched rows (G, D), as served."""
        needed = (*ks, self.served.settings.candidates)
        first = nearest_rows(truth, queries, gallery, needed, map_k)
        return evaluate_neighbours(truth, self(first, self.queries), ks, map_k)
