"""What a verification finds: on each group of queries, on the real index, along the versions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.calibration import ScoreMap
from compatctl.core.gate import Measurement
from compatctl.core.measurements import DECIDING_GROUP, ChainEvidence
from compatctl.core.policy import Policy
from compatctl.data import Dataset, read_qrels
from compatctl.deployment.gallery import DeployedGallery, score_map
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.evaluation.adaptive_resampling import Sampling
from compatctl.evaluation.ann import AnnCheck
from compatctl.evaluation.clusters import columns_of
from compatctl.evaluation.comparison import GroupResult, PairedEmbeddings, compare
from compatctl.evaluation.embedding import VerifyEmbeddings, embed_for_verify, prefixed
from compatctl.evaluation.exact_retrieval import recall_ks, retrieval_of_rows
from compatctl.evaluation.gallery import EmbeddedRows, EvaluationGallery
from compatctl.evaluation.gallery_report import GalleryImages, gallery_entry
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.groups import Groups, near_vectors, with_near_copies
from compatctl.evaluation.ignored_rows import missing_value_notes, with_ignored_rows
from compatctl.evaluation.options import VerifyOptions
from compatctl.evaluation.pairs import measure_pairs
from compatctl.evaluation.protocol import QueryGroup, RelevancePairs, drop_rows, group_rows
from compatctl.evaluation.query_report import QueryAnswers
from compatctl.evaluation.verdict import lost_judgments
from compatctl.progress import Progress
from compatctl.report import AnnRecall, PairsResult, SearchedGallery

MakePairs = Callable[[Sampling], tuple[list[Measurement], PairsResult | None]]


@dataclass(frozen=True, kw_only=True, eq=False)
class VerifySetup:
    """What a verification is asked, before any model runs."""

    data: Dataset
    groups: Groups
    seen: TrainingRecord | None
    policy: Policy
    options: VerifyOptions

    def judged(self) -> RelevancePairs | None:
        """The user's judgments."""
        return read_qrels(self.options.qrels) if self.options.qrels else None

    def with_near_vectors(self, both: VerifyEmbeddings) -> VerifySetup:
        """The same, with the near-copies that show by the old model's vectors only."""
        if self.seen is None:
            return self
        groups = self.groups
        rows = np.setdiff1d(group_rows(groups.query_groups, part="queries"), groups.trained)
        rows = rows[both.old.holds(rows)]
        searched = both.searched
        passed = np.flatnonzero(self.seen.has_seen(searched.ids))
        own = searched.rows_of(self.data)[rows]
        near = rows[near_vectors(both.old.at(rows), own, searched.vectors, passed)]
        groups = with_near_copies(groups, near, self.data, self.seen, self.options)
        return replace(self, groups=groups)

    def compare(
        self, name: str, truth: GroundTruth, embeddings: PairedEmbeddings, scale: ScoreMap | None
    ) -> GroupResult:
        """One group, put to both models."""
        return compare(
            name,
            truth,
            embeddings,
            self.policy,
            thresholds=self.options.thresholds(scale),
            calibrate=self.options.calibration(scale),
        )

    def answered(
        self, group: QueryGroup, searched: EvaluationGallery, trial: GroupResult
    ) -> list[QueryAnswers]:
        """What the queries of a group found, where a file of it was asked for."""
        if self.options.queries_file is None:
            return []
        rows = group.queries[trial.kept]
        items = [self.data.items[row] for row in rows]
        one = QueryAnswers(
            group=group.name,
            ids=[item.id for item in items],
            labels=[item.label for item in items],
            columns=columns_of(self.data, rows, self.options.columns),
            gallery_ids=searched.ids,
            gallery_labels=searched.labels,
            tests=(trial.evidence.old_old, trial.evidence.new_old),
        )
        return [one]


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What was found on each group, on the real index, and along the chain of versions.

    ``both``: the features, and ``sent``: queries to try the index with; they are large, and gone
    once the index is loaded.
    """

    groups: Groups
    trials: list[GroupResult]
    searched: SearchedGallery
    bad: set[int]
    chain: list[ChainEvidence] = field(default_factory=list)
    unchecked: tuple[str, ...] = ()
    """What was not asked for, judgments without effect, items without a value of a column."""
    answered: list[QueryAnswers] = field(default_factory=list)
    both: VerifyEmbeddings | None = None
    sent: AnnCheck | None = None
    ann: AnnRecall | None = None

    @classmethod
    def of(
        cls,
        asked: VerifySetup,
        encoders: tuple[Encoder, Encoder],
        gallery: DeployedGallery | None,
        progress: Progress,
    ) -> Findings:
        both = embed_for_verify(
            asked.data,
            asked.groups.query_groups,
            encoders=encoders,
            gallery=gallery,
            pairs=asked.groups.pair_rows,
            self_test=asked.options.self_test,
            skip_bad=asked.options.skip_bad,
            progress=progress,
        )
        asked = asked.with_near_vectors(both)
        judged = asked.judged()
        images = GalleryImages.of(asked.data, both.searched, bad=both.bad)
        trials: list[GroupResult] = []
        found = cls(
            groups=asked.groups,
            trials=trials,
            searched=gallery_entry(both.searched, both.new_rows),
            bad=both.bad,
            both=both,
        )
        for one in asked.groups.query_groups:
            group = drop_rows(one, both.bad)
            truth = both.searched.truth(asked.data, group, judged, asked.seen)
            shared = both.searched.shared(asked.data, group, asked.options.ignore_same)
            truth = replace(with_ignored_rows(truth, shared), same_image=images.hold(group.queries))
            embeddings = both.paired(group)
            trial = asked.compare(one.name, truth, embeddings, score_map(gallery))
            if not trials:
                found = replace(found, unchecked=missing_value_notes(shared))
            trials.append(trial)
            found.answered.extend(asked.answered(group, both.searched, trial))
            if gallery is not None and one.name == DECIDING_GROUP and trial.kept.any():
                part = truth.queries(trial.kept), embeddings.queries(trial.kept)
                rows = group.queries[trial.kept]
                found = found._in_store(asked, gallery, *part, rows, progress)
        lost = lost_judgments(judged, trials[0]) if judged else ()
        return replace(found, unchecked=asked.options.unchecked() + lost + found.unchecked)

    def _in_store(  # noqa: PLR0917
        self,
        asked: VerifySetup,
        gallery: DeployedGallery,
        truth: GroundTruth,
        embeddings: PairedEmbeddings,
        rows: Rows,
        progress: Progress,
    ) -> Findings:
        """The same with what the store is asked besides: the chain of versions, and queries for the
        index. ``rows`` (Q,): those of the data that query."""
        both = self.both
        assert both is not None
        chain = version_chain(
            gallery,
            both.searched,
            asked.data,
            truth,
            asked=rows,
            queries={both.old_sha256: embeddings.old_queries},
            new=embeddings.new_queries,
            policy=asked.policy,
            progress=prefixed(progress, "earlier model"),
        )
        sent = AnnCheck.of(gallery, both.searched, embeddings.new_queries)
        return replace(self, chain=chain, sent=sent)

    def pairs(self, asked: VerifySetup) -> MakePairs:
        """How the user's pairs are measured; it holds what their items need, and no more."""
        both, groups = self.both, asked.groups
        if groups.pairs is None or both is None:
            return lambda how: ([], None)
        good = [not {a, b} & both.bad for a, b in zip(*groups.pairs[:2], strict=True)]
        first, second, same = (column[np.array(good, bool)] for column in groups.pairs)
        rows = np.union1d(first, second)
        make = partial(
            measure_pairs,
            asked.policy,
            queries=(both.old.at(rows), both.new.at(rows)),
            gallery=both.stored(asked.data, rows),
            rows=(np.searchsorted(rows, first), np.searchsorted(rows, second), same),
            labels=[asked.data.labels[row] for row in rows],
            cluster=columns_of(asked.data, rows, asked.options.cluster),
        )

        def measured(how: Sampling) -> tuple[list[Measurement], PairsResult | None]:
            found, result = make(draw=how.draw, replicates=how.replicates)
            found = [replace(one, may_decide=not groups.pairs_seen) for one in found]
            return found, replace(result, seen=groups.pairs_seen)

        return measured

    def without_features(self) -> Findings:
        """The same, less the features. Where nothing else holds them they are gone: the rows of the
        gallery are in memory once, as themselves or in the index."""
        return replace(self, both=None)

    def on_index(self, gallery: DeployedGallery | None) -> Findings:
        """The same with what the real index finds."""
        found = replace(self, sent=None)
        if gallery is None or self.sent is None:
            return found
        ann, shares = self.sent.measure(gallery)
        trials = [
            replace(one, evidence=replace(one.evidence, ann_recall=shares))
            if one.evidence.name == DECIDING_GROUP
            else one
            for one in self.trials
        ]
        return replace(found, ann=ann, trials=trials)


def version_chain(
    gallery: DeployedGallery,
    searched: EvaluationGallery,
    data: Dataset,
    truth: GroundTruth,
    *,
    asked: Rows,
    queries: Mapping[str, Vectors],
    new: Vectors,
    policy: Policy,
    progress: Progress,
) -> list[ChainEvidence]:
    """One link for each version that owns rows of the store; none where one owns them all.

    ``truth``: the queries (Q,) on the searched gallery; ``asked``: their rows of the data.
    ``queries``: (Q, D) features by the digest of models that already ran; the others run here.
    ``new``: (Q, D) features of the candidate.
    """
    model_of = np.asarray(gallery.catalog.model_of)
    owners = np.unique(model_of)
    if len(owners) < 2:
        return []
    links = []
    for owner in owners:
        sha256 = gallery.catalog.models[owner]
        rows = np.flatnonzero(model_of == owner)
        own = queries.get(sha256)
        if own is None:
            encoder = Encoder.load(gallery.store.verified_path("models", sha256))
            own = EmbeddedRows.of(encoder, data, asked, progress=progress).at(asked)
        part = truth.part(rows)
        own_test, new_test = (
            retrieval_of_rows(part, one, searched.vectors, rows, recall_ks(policy))
            for one in (own, new)
        )
        links.append(
            ChainEvidence(
                name=f"gallery of {sha256[:12]}",
                classes=part.classes,
                unit=part.unit,
                own=own_test,
                new=new_test,
            )
        )
    return links
