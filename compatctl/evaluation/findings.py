"""What a verification measures: every group of queries, the deployed index, earlier versions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.core.gate import Measurement
from compatctl.core.measurements import DECIDING_GROUP, ChainEvidence
from compatctl.core.policy import Policy
from compatctl.data import Dataset, Judgments, read_qrels, warn_of_near_values
from compatctl.deployment.gallery import DeployedGallery, score_map, stored_encoder
from compatctl.deployment.gallery_pass import ModelRows, gallery_pass
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.evaluation.adaptive_resampling import Sampling
from compatctl.evaluation.ann import AnnCheck
from compatctl.evaluation.clusters import columns_of
from compatctl.evaluation.comparison import GroupResult, PairedEmbeddings, compare
from compatctl.evaluation.details import group_details, score_distributions, with_versions
from compatctl.evaluation.embedding import VerifyEmbeddings, embed_for_verify, prefixed
from compatctl.evaluation.exact_retrieval import measured_ks, retrieval_of_rows
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery
from compatctl.evaluation.gallery_report import GalleryImages, gallery_entry
from compatctl.evaluation.ground_truth import (
    GroundTruth,
    warn_of_judged_roles,
    warn_of_unknown_ids,
)
from compatctl.evaluation.groups import Groups, near_vectors, with_near_copies
from compatctl.evaluation.ignored_rows import missing_value_notes, with_ignored_rows
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import measure_pairs
from compatctl.evaluation.protocol import QueryGroup, drop_rows, group_rows
from compatctl.evaluation.query_report import QueryAnswers
from compatctl.evaluation.rescoring import Judge
from compatctl.evaluation.served_today import ServedToday
from compatctl.evaluation.verdict import judgment_notes
from compatctl.progress import Progress
from compatctl.report import (
    AnnRecall,
    Details,
    PairsResult,
    RescoredToday,
    RescoringEntry,
    SearchedGallery,
)

MeasurePairs = Callable[[Sampling], tuple[list[Measurement], PairsResult | None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifySetup:
    """What a verification compares, before any model runs."""

    data: Dataset
    groups: Groups
    record: TrainingRecord | None
    policy: Policy
    options: VerifyOptions

    def judged(self) -> Judgments | None:
        """The user's relevance judgments."""
        return read_qrels(self.options.qrels) if self.options.qrels else None

    def warn_of_unknown_ids(self, judged: Judgments | None, gallery: Iterable[str]) -> None:
        """A notice of judged ids that neither the data nor the gallery has."""
        if judged is not None:
            ids = self.data.row_of
            warn_of_unknown_ids(judged, self.options.qrels, ids, chain(ids, gallery))
            roles = ((item.id, item.role) for item in self.data.items)
            warn_of_judged_roles(judged, self.options.qrels, roles)

    def warn_of_values(self, source: Path | None) -> None:
        """A notice of nearly equal values of the columns of the data that options name."""
        columns = columns_of(self.data, range(len(self.data)), self.options.columns)
        warn_of_near_values(source or "the data", columns, grouping=self.options.grouping)

    def judge(
        self,
        embeddings: VerifyEmbeddings,
        new: Encoder,
        gallery: DeployedGallery | None,
        progress: Progress,
    ) -> Judge | None:
        """Re-scores the candidate's answers; None: they are not re-scored. Errors as
        ``Judge.fit``."""
        if self.options.rescore is None:
            return None
        share = self._rescored_share(gallery, new)
        return Judge.fit(self.data, embeddings, new, self.options, share=share, progress=progress)

    def _rescored_share(self, gallery: DeployedGallery | None, new: Encoder) -> float:
        """The share of the gallery, in [0, 1], that re-scoring may pass: what the project allows,
        without what the candidate passed before for other things."""
        limit = 1.0 if self.policy.max_gallery_pass is None else self.policy.max_gallery_pass
        if limit >= 1.0 or gallery is None:
            return limit
        made = ModelRows.of(gallery.store, gallery.catalog, new.sha256)
        made = replace(made, rescored=np.zeros(len(gallery.catalog), bool))
        return max(0.0, limit - gallery_pass(gallery.catalog, self.record, made=made).share)

    def with_near_vectors(self, embeddings: VerifyEmbeddings) -> VerifySetup:
        """The same, with the near-copies that only the old model's vectors show."""
        if self.record is None:
            return self
        groups, gallery = self.groups, embeddings.gallery
        rows = np.setdiff1d(group_rows(groups.query_groups, part="queries"), groups.trained)
        rows = rows[embeddings.old.holds(rows)]
        passed = np.flatnonzero(self.record.has_seen(gallery.ids))
        own = gallery.rows_of(self.data)[rows]
        near = rows[near_vectors(embeddings.old.take(rows), own, gallery.vectors, passed)]
        groups = with_near_copies(groups, near, self.data, self.record, self.options)
        return replace(self, groups=groups)

    def answers(
        self, group: QueryGroup, gallery: EvaluationGallery, result: GroupResult
    ) -> list[QueryAnswers]:
        """What each query of a group found, if ``--queries`` is given."""
        if self.options.queries_file is None:
            return []
        rows = group.queries[result.kept]
        queries = self.data.take(rows)
        answers = QueryAnswers(
            group=group.name,
            ids=queries.ids,
            labels=queries.labels,
            columns=columns_of(self.data, rows, self.options.columns),
            gallery_ids=gallery.ids,
            gallery_labels=gallery.labels,
            tests=(result.evidence.old_old, result.evidence.new_old),
            ndcg_at=self.policy.ndcg_at,
        )
        return [answers]

    def details(
        self,
        group: QueryGroup,
        gallery: EvaluationGallery,
        result: GroupResult,
        truth: GroundTruth,
        embeddings: PairedEmbeddings,
    ) -> Details:
        """What the report shows of a group beside its figures; ``truth`` and ``embeddings`` are of
        the queries in the evidence."""
        queries = self.data.take(group.queries[result.kept])
        return group_details(
            result,
            self.policy,
            queries=(queries.ids, queries.labels),
            gallery=(gallery.ids, gallery.labels),
            scores=score_distributions(result, truth, embeddings),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """The results on each group, on the deployed index, and along the chain of versions."""

    groups: Groups
    results: list[GroupResult]
    searched: SearchedGallery
    bad: set[int]
    """Rows of the data whose image could not be embedded."""
    by_new: Rows = field(default_factory=lambda: as_rows(()))
    """(n,) rows of the data that the new model embedded."""
    chain: list[ChainEvidence] = field(default_factory=list)
    unchecked: tuple[str, ...] = ()
    """Options not given, judgments without effect, items without a value of a column."""
    answers: list[QueryAnswers] = field(default_factory=list)
    embeddings: VerifyEmbeddings | None = None
    """Large; dropped before the index is loaded."""
    rescoring: RescoringEntry | None = None
    rescored_today: RescoredToday | None = None
    ann_check: AnnCheck | None = None
    ann: AnnRecall | None = None
    details: Details | None = None
    """Of the deciding group."""

    @classmethod
    def measure(
        cls,
        setup: VerifySetup,
        encoders: tuple[Encoder, Encoder],
        gallery: DeployedGallery | None,
        progress: Progress,
    ) -> Findings:
        """Embed with both models and compare them on every group."""
        judged = setup.judged()
        embeddings = embed_for_verify(
            setup.data,
            setup.groups.query_groups,
            encoders=encoders,
            gallery=gallery,
            pairs=setup.groups.pair_rows,
            judged=judged,
            self_test=setup.options.self_test,
            skip_bad=setup.options.skip_bad,
            free=setup.options.rescore is not None or _rescores(gallery),
            progress=progress,
        )
        setup.warn_of_unknown_ids(judged, embeddings.gallery.ids)
        setup = setup.with_near_vectors(embeddings)
        images = GalleryImages.of(setup.data, embeddings.gallery, bad=embeddings.bad)
        findings = cls(
            groups=setup.groups,
            results=[],
            searched=gallery_entry(embeddings.gallery, embeddings.new_rows),
            bad=embeddings.bad,
            embeddings=embeddings,
        )
        judge = setup.judge(embeddings, encoders[1], gallery, progress)
        today = ServedToday.of(setup.data, embeddings, encoders[0], gallery, progress)
        for group in setup.groups.query_groups:
            kept = drop_rows(group, embeddings.bad)
            findings = findings._with_group(
                setup, kept, judged, images, gallery, (judge, today), progress
            )
        notes = judgment_notes(judged, findings.results[0], setup.policy)
        first_stage = findings.results[0].old_first_stage
        by_new = np.union1d(embeddings.new.rows, judge.embedded() if judge else as_rows(()))
        return replace(
            findings,
            unchecked=setup.options.unchecked() + notes + findings.unchecked,
            by_new=by_new,
            rescoring=judge.entry(findings.results[0]) if judge else None,
            rescored_today=today.entry(first_stage) if today and first_stage else None,
        )

    def _with_group(  # noqa: PLR0917
        self,
        setup: VerifySetup,
        group: QueryGroup,
        judged: Judgments | None,
        images: GalleryImages,
        store: DeployedGallery | None,
        judges: tuple[Judge | None, ServedToday | None],
        progress: Progress,
    ) -> Findings:
        """The same with one more group; the deciding one also tests what only a store has."""
        assert self.embeddings is not None
        judge, today = judges
        gallery, embeddings = self.embeddings.gallery, self.embeddings.paired(group)
        truth = gallery.ground_truth(setup.data, group, judged, setup.record)
        shared = gallery.shared(setup.data, group, setup.options.ignore_same)
        truth = with_ignored_rows(truth, shared)
        truth = replace(truth, same_image=images.duplicates(group.queries))
        scale, options = score_map(store), setup.options
        result = compare(
            group.name,
            truth,
            embeddings,
            setup.policy,
            thresholds=options.thresholds(scale),
            calibrate=options.calibration(scale),
            rescore=judge,
            today=today,
        )
        findings = replace(
            self,
            results=[*self.results, result],
            answers=self.answers + setup.answers(group, gallery, result),
            unchecked=self.unchecked if self.results else missing_value_notes(shared),
        )
        if group.name != DECIDING_GROUP:
            return findings
        truth = truth.select_queries(result.kept)
        embeddings = embeddings.select_queries(result.kept)
        details = setup.details(group, gallery, result, truth, embeddings)
        findings = replace(findings, details=details)
        if store is None or not result.kept.any():
            return findings
        rows = group.queries[result.kept]
        return findings._on_store(setup, store, truth, embeddings, rows, progress)

    def _on_store(  # noqa: PLR0917
        self,
        setup: VerifySetup,
        store: DeployedGallery,
        truth: GroundTruth,
        embeddings: PairedEmbeddings,
        query_rows: Rows,
        progress: Progress,
    ) -> Findings:
        """The same with what only a store has: earlier versions, and an index to search."""
        assert self.embeddings is not None
        assert self.details is not None
        gallery = self.embeddings.gallery
        chain = version_chain(
            store,
            gallery,
            setup.data,
            truth,
            query_rows=query_rows,
            queries={self.embeddings.old_sha256: embeddings.old_queries},
            new=embeddings.new_queries,
            policy=setup.policy,
            progress=prefixed(progress, "earlier model"),
        )
        ann_check = AnnCheck.of(store, gallery, embeddings.new_queries)
        details = with_versions(self.details, store, chain, setup.policy)
        return replace(self, chain=chain, ann_check=ann_check, details=details)

    def pairs(self, setup: VerifySetup) -> MeasurePairs:
        """Returns the function that measures the user's pairs; it keeps only their embeddings."""
        embeddings, groups = self.embeddings, setup.groups
        if groups.pairs is None or embeddings is None:
            return lambda sampling: ([], None)
        good = [not {a, b} & embeddings.bad for a, b in zip(*groups.pairs[:2], strict=True)]
        first, second, same = (column[np.array(good, bool)] for column in groups.pairs)
        rows = np.union1d(first, second)
        measure = partial(
            measure_pairs,
            setup.policy,
            queries=(embeddings.old.take(rows), embeddings.new.take(rows)),
            gallery=embeddings.in_gallery(setup.data, rows),
            rows=(np.searchsorted(rows, first), np.searchsorted(rows, second), same),
            labels=[setup.data.labels[row] for row in rows],
            cluster=columns_of(setup.data, rows, setup.options.cluster),
        )

        def measured(sampling: Sampling) -> tuple[list[Measurement], PairsResult | None]:
            checks, result = measure(draw=sampling.draw, replicates=sampling.replicates)
            checks = [replace(check, may_decide=not groups.pairs_seen) for check in checks]
            return checks, replace(result, seen=groups.pairs_seen)

        return measured

    def entries(self) -> dict[str, Any]:
        """The report's entries of what is found here."""
        names = ("searched", "ann", "rescoring", "rescored_today", "details")
        return {name: getattr(self, name) for name in names}

    def without_embeddings(self) -> Findings:
        """The same without the embeddings, so that the gallery's vectors are in memory once: here,
        or in the index."""
        return replace(self, embeddings=None)

    def on_index(self, gallery: DeployedGallery | None) -> Findings:
        """The same with the ANN recall of the deployed index."""
        findings = replace(self, ann_check=None)
        if gallery is None or self.ann_check is None:
            return findings
        ann, by_query = self.ann_check.measure(gallery)
        results = [
            replace(result, evidence=replace(result.evidence, ann_recall=by_query))
            if result.evidence.name == DECIDING_GROUP
            else result
            for result in self.results
        ]
        return replace(findings, ann=ann, results=results)


def _rescores(store: DeployedGallery | None) -> bool:
    return store is not None and store.manifest.rescoring is not None


def version_chain(
    store: DeployedGallery,
    gallery: EvaluationGallery,
    data: Dataset,
    truth: GroundTruth,
    *,
    query_rows: Rows,
    queries: Mapping[str, Vectors],
    new: Vectors,
    policy: Policy,
    progress: Progress,
) -> list[ChainEvidence]:
    """Test new queries on the rows of each version that owns rows of the store, against that
    version's own queries; empty where one version owns them all.

    Args:
        truth: of the queries (Q,) and the whole gallery.
        query_rows: (Q,) rows of the data.
        queries: model digest -> (Q, D) features already computed; other models run here.
        new: (Q, D) features of the candidate.
    """
    model_of = np.asarray(store.catalog.model_of)
    owners = np.unique(model_of)
    if len(owners) < 2:
        return []
    links = []
    for owner in owners:
        sha256 = store.catalog.models[owner]
        rows = np.flatnonzero(model_of == owner)
        own = queries.get(sha256)
        if own is None:
            encoder = stored_encoder(store.store, sha256)
            own = EmbeddedRows.embed(encoder, data, query_rows, progress=progress).take(query_rows)
        part = truth.select_rows(rows)
        own_test, new_test = (
            retrieval_of_rows(part, features, gallery.vectors, rows, measured_ks(policy))
            for features in (own, new)
        )
        links.append(
            ChainEvidence(
                name=f"gallery of {sha256[:12]}",
                classes=part.classes,
                unit=part.unit,
                own=own_test,
                new=new_test,
                model=sha256,
                rows=len(rows),
            )
        )
    return links
