"""What a map is fitted and chosen on: items that both models know, and validation queries.

Bridge maps source to target, lift target to source.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from compatctl.core.adapters import Adapter
from compatctl.core.arrays import Bools, Rows, Vectors, as_rows
from compatctl.core.hash_order import hash_order
from compatctl.data import Dataset
from compatctl.deployment.gallery import DeployedGallery
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.evaluation.embedding import embed_pair, prefixed
from compatctl.evaluation.exact_retrieval import retrieval
from compatctl.evaluation.ground_truth import GroundTruth
from compatctl.evaluation.protocol import (
    QueryGroup,
    drop_rows,
    embed_rows,
    ground_truth,
    query_group,
    query_rows,
)
from compatctl.progress import Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class AlignmentSet:
    """N pairs, and Q validation queries with the G gallery rows that they search.

    Features are float32 unit rows: F numbers of the new model, D of the deployed one.
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
    old_queries: Vectors
    """(Q, D)"""
    gallery: Vectors
    """(G, D)"""
    truth: GroundTruth
    skipped: tuple[str, ...]
    """Ids of items that were left out because their image does not decode"""

    @property
    def origins(self) -> dict[str, int]:
        """How many pairs have their target from the gallery, and from the deployed encoder."""
        stored = int(self.stored.sum())
        return {"gallery": stored, "encoder": len(self.stored) - stored}

    def anchors(self, data: Dataset) -> int:
        """How many pairs are no training items of the data."""
        return sum(data.items[row].split != "train" for row in self.pairs)

    def recall(self, queries: Vectors) -> float:
        """recall@1 on the deployed gallery of queries (Q, D), items themselves left out."""
        return float(retrieval(self.truth, queries, self.gallery, (1,), map_k=1).recall[1])

    def lifted_recall(self, adapter: Adapter) -> float:
        """recall@1 of the new model's queries on ``adapter`` of the gallery: (G, D) to (G, F)."""
        lifted = adapter(self.gallery)
        return float(retrieval(self.truth, self.queries, lifted, (1,), map_k=1).recall[1])


def pair_rows(
    data: Dataset, gallery: DeployedGallery, share: float, *, skip_bad: bool = False
) -> Rows:
    """Rows of the data that both models may learn from each other by, ascending.

    They are the items of the gallery that are among the first ``share`` of it by the sha256 of the
    id, whatever their split, and the training items outside the gallery. No validation or test
    query is among them, nor an item whose image has the bytes of one.
    """
    names = hash_order(gallery.catalog.ids)
    held, chosen = set(names), set(names[: round(share * len(names))])
    asking = np.union1d(query_rows(data, "validation"), query_rows(data, "test"))
    queries = {data.items[row].id for row in asking}
    rows = [
        row
        for row, item in enumerate(data.items)
        if item.id not in queries
        and (item.id in chosen if item.id in held else item.split == "train")
    ]
    asked = {one for one in _digests(data, asking, skip_bad=skip_bad) if one}
    digests = _digests(data, rows, skip_bad=skip_bad)
    return as_rows(row for row, one in zip(rows, digests, strict=True) if one not in asked)


def alignment_set(
    data: Dataset,
    gallery: DeployedGallery,
    new: Encoder,
    pairs: Rows,
    *,
    skip_bad: bool,
    progress: Progress,
) -> AlignmentSet:
    """Features of both models: stored vectors by id, and by the encoders only what is not stored.

    Raises:
        InputError: no pair, or no validation query with an item of its class in the gallery; an
            image that does not decode, without ``skip_bad``.
    """
    asking = query_group("validation", data, query_rows(data, "validation"))
    both = embed_pair(
        data,
        [asking, QueryGroup(name="pairs", queries=as_rows(()), gallery=pairs)],
        encoders=(gallery.encoder, new),
        gallery=gallery,
        new_gallery=False,
        skip_bad=skip_bad,
        progress=progress,
    )
    asking = drop_rows(asking, both.bad)
    say = prefixed(progress, "new model")
    answers, bad = embed_rows(
        new, data, pairs, skip_bad=skip_bad, progress=say, into=both.new.query
    )
    sources, targets = answers[pairs], both.old.gallery[pairs]
    whole = np.isfinite(sources[:, 0]) & np.isfinite(targets[:, 0])
    held = as_rows(()) if both.stored is None else both.stored.rows
    found = AlignmentSet(
        pairs=pairs[whole],
        stored=np.isin(pairs, held)[whole],
        source=sources[whole],
        target=targets[whole],
        queries=both.new.query[asking.queries],
        old_queries=both.old.query[asking.queries],
        gallery=both.old.gallery[asking.gallery],
        truth=ground_truth(data, asking),
        skipped=tuple(sorted({*bad, *(data.items[row].id for row in both.bad)})),
    )
    _refuse_empty(found)
    return found


def _refuse_empty(found: AlignmentSet) -> None:
    if not len(found.pairs):
        raise InputError(
            "there is no item that both models can embed: no training item, and no image of a "
            "gallery item",
            tip="give the gallery's own images as --data, by the ids that the store holds",
        )
    truth = found.truth
    sizes = np.bincount(truth.gallery_labels, minlength=int(truth.query_labels.max(initial=0)) + 1)
    if not (sizes[truth.query_labels] - (truth.self_row >= 0) > 0).any():
        raise InputError(
            "there is no validation query with an item of its class in the gallery, to choose the "
            "map with",
            tip="give the data validation classes: split.validation, or the split column",
        )


def _digests(data: Dataset, rows: Iterable[int], *, skip_bad: bool) -> list[str]:
    """The digest of each image; with ``skip_bad`` that of a file that cannot be read is empty."""
    found = []
    for row in rows:
        try:
            found.append(data.digest(int(row)))
        except InputError:
            if not skip_bad:
                raise
            found.append("")
    return found
