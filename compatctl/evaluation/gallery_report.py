"""What was searched, in numbers and in words: of the store, beside it, and without a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Rows
from compatctl.core.gate import Measurement
from compatctl.core.measurements import DECIDING_GROUP
from compatctl.data import Dataset
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.gallery import EvaluationGallery
from compatctl.evaluation.protocol import QueryGroup
from compatctl.report import SearchedGallery

NAMED = 5
"""Ids that are given as examples."""
MANY = 0.1
"""Share of the queries from which on it is warned of that they have no match."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryImages:
    """The bytes of the gallery's images that are at hand, by their digests."""

    data: Dataset
    row_of: dict[str, int]
    """Digest -> the row of the data that is the first with it."""
    repeated: frozenset[str]
    """Digests of more than one row."""

    @classmethod
    def of(cls, data: Dataset, searched: EvaluationGallery, *, bad: set[int]) -> Self:
        """Every image is read once; those of ``bad`` rows of the data are not."""
        row_of: dict[str, int] = {}
        repeated: set[str] = set()
        for row in map(int, searched.of_data[searched.of_data >= 0]):
            if row not in bad and row_of.setdefault(digest := data.digest(row), row) != row:
                repeated.add(digest)
        return cls(data=data, row_of=row_of, repeated=frozenset(repeated))

    def hold(self, queries: Rows) -> Bools:
        """(Q,) whether they are, under another id, those of the query at each row of the data."""
        found = []
        for row in map(int, queries):
            digest = self.data.digest(row)
            found.append(digest in self.repeated or self.row_of.get(digest, row) != row)
        return np.array(found, bool)


def gallery_entry(searched: EvaluationGallery, new_rows: Rows | None) -> SearchedGallery:
    """The report's entry; ``new_rows``: what the new model embedded, None: nothing was to be."""
    return SearchedGallery(
        rows=len(searched),
        stored=searched.n_stored,
        embedded=len(searched.beside),
        embedded_ids=searched.beside[:NAMED],
        unlabelled=sum(not label for label in searched.labels),
        conflicts=len(searched.conflicts),
        conflict_ids=searched.conflicts[:NAMED],
        self_test_rows=None if new_rows is None else len(new_rows),
    )


def stored_share_check(searched: SearchedGallery, *, has_store: bool) -> list[Measurement]:
    """Which share of the searched rows is the store's own, where there is a store."""
    if not has_store:
        return []
    share = searched.stored / max(1, searched.rows)
    return [
        Measurement(
            name="stored_share",
            group=DECIDING_GROUP,
            estimate=share,
            n=searched.rows,
            n_queries=searched.rows,
            may_decide=True,
            detail=f"{searched.stored} of the {searched.rows} rows that were searched are the "
            f"store's own, and {searched.embedded} were embedded for this test"
            + _named(searched.embedded_ids, searched.embedded),
        )
    ]


def duplicate_warnings(trial: GroupResult) -> tuple[str, ...]:
    """The sentence about queries that lie in the gallery themselves, where there are such."""
    twins = int((~trial.kept).sum())
    if not twins:
        return ()
    return (
        f"{twins} of {len(trial.kept)} queries are left out: the gallery holds the same image "
        "(the same bytes, or the same vector) under another id, and to find it again shows "
        "nothing",
    )


def gallery_warnings(
    searched: SearchedGallery, trial: GroupResult, group: QueryGroup
) -> tuple[str, ...]:
    """What a reader must know before he believes the figures of the group that decides."""
    found = list(duplicate_warnings(trial))
    old = trial.evidence.old_old
    lost = old.n_queries - old.n_with_match
    if lost > MANY * old.n_queries:
        found.append(
            f"{lost} of {old.n_queries} queries have nothing to find in the gallery, and are in no "
            "figure"
        )
    if searched.stored and searched.embedded:
        found.append(
            f"{searched.embedded} of the {searched.rows} rows that were searched are not in the "
            "store, and were embedded by the old model"
            + _named(searched.embedded_ids, searched.embedded)
        )
    if searched.conflicts:
        found.append(
            f"{searched.conflicts} items have another label in the data than in the store: nobody "
            "knows what they are relevant to" + _named(searched.conflict_ids, searched.conflicts)
        )
    if searched.self_test_rows is not None and searched.self_test_rows < searched.rows:
        found.append(
            f"new / new and the mixed gallery are measured on the {searched.self_test_rows} of "
            f"{searched.rows} gallery items whose images are at hand"
        )
    return tuple(found)


def _named(ids: Sequence[str], n: int) -> str:
    if not n:
        return ""
    return f": {', '.join(ids)}{', ...' if n > len(ids) else ''}"
