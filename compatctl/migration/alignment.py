"""The pairs an adapter is fitted on, and the validation queries that choose among adapters.

Bridge maps source (new model) to target (deployed model); lift maps target to source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from compatctl.core.adapters import Adapter
from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.core.digest_prefixes import DigestPrefixes, name_prefix
from compatctl.core.hash_order import hash_order
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.deployment.gallery_pass import checked_ids, gallery_pass, require_budget
from compatctl.deployment.training_record import TrainingRecord
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.evaluation.embedding import embed_pair, prefixed
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.gallery import EmbeddedRows
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.judged import judgments_for
from compatctl.evaluation.protocol import (
    drop_rows,
    ground_truth,
    query_group,
    query_rows,
    require_roles,
)
from compatctl.migration.adapters import AdapterTrial, FittedAdapter
from compatctl.progress import Progress
from compatctl.recipe import Project


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """The chosen adapter and how it was chosen: hit@1 of validation queries with it.

    ``old_hit_rate`` is that of the deployed model's own queries on the stored gallery; None where
    it is gone, and its vectors of them are not known. ``pairs``
    counts the pairs by the origin of the deployed model's vector, the gallery or its encoder;
    ``unlabelled`` are pairs that are not training items. ``left_out`` names the kinds that were not
    tried, and why.
    """

    kind: str
    setting: str
    hit_rate: float
    old_hit_rate: float | None
    validation_queries: int
    pairs: dict[str, int]
    unlabelled: int
    trials: tuple[AdapterTrial, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignmentSet:
    """N pairs, and Q validation queries with the G gallery rows that they search.

    Features are float32 unit rows of dimension F (new model) and D (deployed model).
    """

    pairs: Rows
    """(N,) rows of the data"""
    stored: Bools
    """(N,) whether the target is the gallery's own vector"""
    source: Vectors
    """(N, F)"""
    target: Vectors
    """(N, D)"""
    queries: Vectors
    """(Q, F)"""
    old_queries: Vectors | None
    """(Q, D); None where the old model is gone, and some were not logged"""
    gallery: Vectors
    """(G, D)"""
    truth: GroundTruth
    skipped: tuple[str, ...]
    """Ids of items whose image does not decode"""

    def hit_rate(self, queries: Vectors) -> float:
        """hit@1 of queries (Q, D) on the deployed gallery, each query's own row excluded."""
        return self._hit_rate(queries, self.gallery)

    def lifted_hit_rate(self, adapter: Adapter) -> float:
        """hit@1 of the new model's queries on the mapped gallery, (G, D) to (G, F)."""
        return self._hit_rate(self.queries, adapter(self.gallery))

    def _hit_rate(self, queries: Vectors, gallery: Vectors) -> float:
        return float(retrieval(self.truth, queries, gallery, (1,), map_k=1).hit_rate[1])

    def report(self, fitted: FittedAdapter, data: Dataset) -> AdapterReport:
        """What was fitted on these pairs of ``data``."""
        stored = int(self.stored.sum())
        return AdapterReport(
            kind=fitted.best.kind,
            setting=fitted.best.setting,
            hit_rate=fitted.best.hit_rate,
            old_hit_rate=None if self.old_queries is None else self.hit_rate(self.old_queries),
            validation_queries=len(self.queries),
            pairs={"gallery": stored, "encoder": len(self.stored) - stored},
            unlabelled=sum(data.items[row].split != "train" for row in self.pairs),
            trials=fitted.trials,
            left_out=fitted.left_out,
        )


def pair_rows(
    data: Dataset, gallery: DeployedGallery, share: float, *, skip_bad: bool = False
) -> Rows:
    """Rows of the data that may be pairs, ascending.

    They are training items, and the first ``share`` of the gallery by the sha256 of the id, of any
    split. Validation and test queries are excluded, and so is
    every item whose image is byte-identical to one of theirs.
    """
    ordered = hash_order(gallery.catalog.ids)
    chosen = set(ordered[: int(share * len(ordered) + 1e-9)])
    held_out = np.union1d(query_rows(data, "validation"), query_rows(data, "test"))
    held_out_ids = {data.items[row].id for row in held_out}
    rows = [
        row
        for row, item in enumerate(data.items)
        if item.id not in held_out_ids and (item.split == "train" or item.id in chosen)
    ]
    held_out_digests = {*_digests(data, held_out, skip_bad=skip_bad)} - {""}
    digests = _digests(data, rows, skip_bad=skip_bad)
    return as_rows(
        row for row, digest in zip(rows, digests, strict=True) if digest not in held_out_digests
    )


def pair_share(project: Project, share: float | None) -> float:
    """The given share of the gallery for pairs, else all that the project allows."""
    return project.max_gallery_pass if share is None else share


def budgeted_pairs(
    project: Project,
    data: Dataset,
    gallery: DeployedGallery,
    share: float,
    record: TrainingRecord | None,
    *,
    skip_bad: bool,
) -> Rows:
    """``pair_rows``, if embedding them passes no more of the gallery than the project allows.

    ``record`` is the new encoder's own: what it passed counts as well.

    Raises:
        UsageError: the share passed is over ``max_gallery_pass``.
    """
    pairs = pair_rows(data, gallery, share, skip_bad=skip_bad)
    others = (data.ids[row] for row in pairs if data.items[row].split != "train")
    entries = TrainingRecord(unlabelled_ids=DigestPrefixes.from_ints(map(name_prefix, others)))
    both = entries.including(record) if record else entries
    require_budget(
        project,
        gallery_pass(gallery.catalog, both),
        "fitting the adapter on these pairs",
        tip="leave --share out or lower it; training items are always pairs; ",
    )
    return pairs


def measured_ids(data: Dataset) -> set[str]:
    """Items that the new model embeds only to choose the map and to compare its file."""
    return {*data.take(query_rows(data, "validation")).ids, *checked_ids(data)}


def alignment_set(
    data: Dataset,
    gallery: DeployedGallery,
    new: Encoder,
    pairs: Rows,
    *,
    project: Project,
    skip_bad: bool,
    progress: Progress,
) -> AlignmentSet:
    """Both models' features: stored vectors by id; the encoders run only for what is not stored.

    The project's judgments say what is relevant to the validation queries, or else their labels.
    Where the project says that the old model is gone, nothing is embedded with it that it has no
    logged vector of.

    Raises:
        InputError: as ``require_roles``; no pair, or no validation query with an item of its class
            in the gallery; an
            image that does not decode, without ``skip_bad``.
    """
    require_roles((gallery.encoder, new), data)
    validation = query_group("validation", data, query_rows(data, "validation"))
    both = embed_pair(
        data,
        queries=validation.queries,
        searched=np.union1d(validation.gallery, pairs),
        encoders=(gallery.encoder, new),
        gallery=gallery,
        skip_bad=skip_bad,
        old_gone=project.old_model_gone,
        progress=progress,
    )
    validation = drop_rows(validation, both.bad)
    by_new = EmbeddedRows.embed(
        new,
        data,
        pairs[new.can_embed(data, pairs)],
        skip_bad=skip_bad,
        looks=True,
        progress=prefixed(progress, "new model"),
    )
    pairs = by_new.rows[both.stored.holds(by_new.rows) | both.old.holds(by_new.rows)]
    known = both.old.holds(validation.queries).all()
    alignment = AlignmentSet(
        pairs=pairs,
        stored=both.stored.holds(pairs),
        source=by_new.take(pairs),
        target=both.in_gallery(pairs),
        queries=both.new.take(validation.queries),
        old_queries=both.old.take(validation.queries) if known else None,
        gallery=both.in_gallery(validation.gallery),
        truth=ground_truth(
            data, validation, judgments_for(project.gate.qrels, data, validation.queries)
        ),
        skipped=tuple(sorted({*by_new.bad, *(data.items[row].id for row in both.bad)})),
    )
    _refuse_empty(alignment)
    return alignment


def _refuse_empty(alignment: AlignmentSet) -> None:
    if not len(alignment.pairs):
        raise InputError(
            "there is no item that both models can embed: no training item, and no "
            "gallery item in the data",
            tip="give the gallery's own items as --data, with the ids that the store holds",
        )
    if not alignment.truth.has_match().any():
        raise InputError(
            "there is no validation query with an item of its class in the gallery, to choose the "
            "map with",
            tip="give the data validation classes (split: {validation: 0.1}, or the column split); "
            "without labels name judgments in compatctl.yaml: gate: {qrels: FILE}",
        )


def _digests(data: Dataset, rows: Iterable[int], *, skip_bad: bool) -> list[str]:
    """The digest of each image; with ``skip_bad`` an empty one for a file that cannot be read."""
    digests = []
    for row in rows:
        try:
            digests.append(data.digest(int(row)))
        except InputError:
            if not skip_bad:
                raise
            digests.append("")
    return digests
