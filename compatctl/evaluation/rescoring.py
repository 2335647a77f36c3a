"""Judge re-scored answers as they will be served: with an empty, a half-filled and a full cache.

The cache holds free vectors of gallery rows. *Cold*: it is empty, and each query may embed a few of
its candidates. *Half-warm*: it holds about half of the rows, by a hash of their ids, and a query
may embed the same number. *Warm*: it holds all of them.

Where only a share of the gallery may pass, what lasts is the state *at the limit*: the cache holds
that share of the rows, by the same hash, and nothing is embedded any more. It is judged in place of
the cold state, and half-warm holds half of that share.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.core.hash_order import hash_fraction
from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import (
    FittedRule,
    KnownVectors,
    fit_merge_rule,
    rescore,
    within_budget,
)
from compatctl.data import Dataset
from compatctl.encoder import Encoder, embed_together
from compatctl.errors import InputError
from compatctl.evaluation.comparison import GroupResult, RescoredAnswers
from compatctl.evaluation.embedding import VerifyEmbeddings, prefixed
from compatctl.evaluation.exact_retrieval import nearest_rows
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.ignored_rows import with_ignored_rows
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.protocol import query_group, query_rows
from compatctl.manifest import Catalog
from compatctl.progress import Progress
from compatctl.report import AT_LIMIT, RescoringEntry, RescoringState

STATES = {"cold": "new_old", "half_warm": "half_warm", "warm": "warm"}
"""State of the cache -> the evidence's entry. At the limit, ``cold`` is the state there."""


class FreeVectors:
    """Free vectors of gallery rows; each row is embedded once, when it is first needed.

    ``data_rows`` (G,): the row of the data that is the same item, -1: none. ``known``: what was
    embedded before. ``catalog``: a row whose image is not the one that it has gets no vector.
    """

    def __init__(
        self,
        data: Dataset,
        data_rows: Rows,
        encoder: Encoder,
        *,
        known: EmbeddedRows | None = None,
        catalog: Catalog | None = None,
        progress: Progress,
    ) -> None:
        self._data, self._encoder, self._catalog = data, encoder, catalog
        self.data_rows = data_rows
        self._progress = prefixed(progress, "free vectors")
        self.known = KnownVectors.none(encoder.free_dim or 0)
        if known is not None:
            held = np.flatnonzero((data_rows >= 0) & known.holds(data_rows))
            free = known.take_free(data_rows[held])
            self.known = self.known if free is None else KnownVectors(rows=held, vectors=free)
        self._tried: set[int] = set(self.known.rows.tolist())

    def need(self, rows: Rows) -> None:
        """Embed those of the gallery rows that were not needed before and whose image is there."""
        new = as_rows(row for row in np.unique(rows[rows >= 0]).tolist() if row not in self._tried)
        self._tried.update(new.tolist())
        new = new[self.data_rows[new] >= 0]
        if not len(new):
            return
        new = new[np.argsort(self.data_rows[new])]
        images = self.data_rows[new]
        (embedded,) = embed_together(
            (self._encoder,),
            self._data,
            (images,),
            skip_bad=True,
            free=True,
            progress=(self._progress,),
        )
        new = new[np.isin(images, embedded.rows)]
        same = np.ones(len(new), bool)
        if self._catalog is not None:
            same = self._catalog.may_have_images(new, embedded.digests)
        assert embedded.free is not None
        self.known = self.known.with_rows(new[same], embedded.free[same])


@dataclass(frozen=True, kw_only=True, eq=False)
class Judge:
    """Re-scores the first ``candidates`` answers of each query by ``fitted``, with a budget of
    ``passes`` new images a query, until ``share`` of the gallery has passed."""

    candidates: int
    passes: int
    share: float
    fitted: FittedRule
    validation_queries: Rows
    """(V,) rows of the data"""
    free: FreeVectors
    gallery: EvaluationGallery

    @classmethod
    def fit(
        cls,
        data: Dataset,
        embeddings: VerifyEmbeddings,
        encoder: Encoder,
        options: VerifyOptions,
        *,
        share: float,
        progress: Progress,
    ) -> Judge:
        """The merge rule of the validation queries, on the gallery that is judged.

        ``share``: of the gallery's rows that re-scoring may pass, in [0, 1].

        Raises:
            InputError: the encoder has no free vectors, or validation queries are too few.
        """
        assert options.rescore is not None
        assert options.passes is not None
        require_free(encoder)
        gallery = embeddings.gallery
        free = FreeVectors(
            data, gallery.data_rows, encoder, known=embeddings.new, progress=progress
        )
        queries = EmbeddedRows.embed(
            encoder,
            data,
            query_rows(data, "validation"),
            skip_bad=options.skip_bad,
            free=True,
            progress=prefixed(progress, "validation queries"),
        )
        if not len(queries.rows):
            raise InputError(
                "there is no validation query to fit the merge rule of re-scoring to",
                tip="give the data validation classes, or leave --rescore out",
            )
        truth = _validation_truth(data, gallery, queries.rows, options)
        k = min(options.rescore, len(gallery))
        first = nearest_rows(truth, queries.features, gallery.vectors, (k,), map_k=k)
        free.need(first.rows)
        own = queries.take_free(queries.rows)
        assert own is not None
        fitted = fit_merge_rule(
            first.scores,
            free.known.cosines(own, first.rows),
            truth.is_relevant(first.rows) & (first.rows >= 0),
        )
        return cls(
            candidates=options.rescore,
            passes=options.passes,
            share=share,
            fitted=fitted,
            validation_queries=queries.rows,
            free=free,
            gallery=gallery,
        )

    @cached_property
    def _cached(self) -> dict[str, Bools]:
        """State -> (G,) the rows that the cache holds beforehand."""
        n, order = len(self.gallery), np.fromiter(map(hash_fraction, self.gallery.ids), np.float64)
        return {
            "cold": order < self.share if self.share < 1.0 else np.zeros(n, bool),
            "half_warm": order < 0.5 * self.share,
            "warm": np.ones(n, bool),
        }

    def __call__(self, first: Neighbours, queries: Vectors) -> RescoredAnswers:
        """The answers in each state of the cache; ``queries`` (Q, D_free) are free vectors."""
        found = first.rows[:, : self.candidates]
        self.free.need(found)
        cosines = self.free.known.cosines(queries, found)
        answers, touched = {}, {}
        for state in STATES:
            available = ~np.isnan(cosines)
            known = available & self._cached[state][found]
            ended = state == "cold" and self.share < 1.0
            known |= within_budget(available & ~known, 0 if ended else self.passes)
            scored = rescore(first, np.where(known, cosines, np.float32(np.nan)), self.fitted.rule)
            answers[state] = scored.of(first)
            touched[state] = np.unique(found[known])
        return RescoredAnswers(**answers, touched=touched)

    def embedded(self) -> Rows:
        """(n,) rows of the data that it embedded, or that were embedded before for the gallery."""
        known = self.gallery.data_rows[self.free.known.rows]
        rows: Rows = np.union1d(self.validation_queries, known)
        return rows

    def entry(self, result: GroupResult) -> RescoringEntry:
        """The report's entry, of the deciding group's result."""
        evidence, n = result.evidence, max(1, len(self.gallery))
        tests = {state: getattr(evidence, name) for state, name in STATES.items()}
        assert evidence.first_stage is not None
        return RescoringEntry(
            candidates=self.candidates,
            passes=self.passes,
            weight=self.fitted.rule.weight,
            slope=self.fitted.rule.slope,
            intercept=self.fitted.rule.intercept,
            trials=self.fitted.trials,
            validation_queries=len(self.validation_queries),
            first_stage=_hit_rate(evidence.first_stage.hit_rate),
            states=tuple(
                RescoringState(
                    name=self._name(state),
                    hit_rate=_hit_rate(test.hit_rate),
                    passed=len(result.touched[state]),
                    passed_share=len(result.touched[state]) / n,
                )
                for state, test in tests.items()
            ),
            unavailable=int((self.gallery.data_rows < 0).sum()),
        )

    def _name(self, state: str) -> str:
        if state == "cold" and self.share < 1.0:
            return AT_LIMIT
        return state.replace("_", "-")


def _validation_truth(
    data: Dataset, gallery: EvaluationGallery, rows: Rows, options: VerifyOptions
) -> GroundTruth:
    """What is relevant to the validation queries at rows (Q,) of the data."""
    group = query_group("validation", data, rows)
    shared = gallery.shared(data, group, options.ignore_same)
    judged = judgments_for(options.qrels, data, rows)
    return with_ignored_rows(gallery.ground_truth(data, group, judged), shared)


def require_free(encoder: Encoder) -> None:
    """Raise an InputError unless the encoder gives free vectors."""
    if not encoder.has_free:
        raise InputError(
            f"{encoder.name} has no second output, free: its answers cannot be re-scored",
            tip="leave --rescore out, or use an encoder with both outputs",
        )


def _hit_rate(hit_rate: dict[int, float]) -> dict[str, float]:
    return {str(k): value for k, value in hit_rate.items()}
