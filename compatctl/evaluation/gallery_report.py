"""What the report says of the searched gallery: stored rows, embedded ones, unknown classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Rows
from compatctl.core.gallery_pass import GalleryPass
from compatctl.core.gate import Measurement
from compatctl.core.measurements import DECIDING_GROUP
from compatctl.data import Dataset
from compatctl.evaluation.comparison import GroupResult
from compatctl.evaluation.gallery import EvaluationGallery
from compatctl.evaluation.self_test import SELF_TEST_ROWS
from compatctl.report import SearchedGallery

EXAMPLES = 5
"""Ids that are listed."""
MAX_WITHOUT_MATCH = 0.1
"""Share of queries without a match above which a warning names it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GalleryImages:
    """Digests of the gallery's images that are available."""

    data: Dataset
    row_of: dict[str, int]
    """Digest -> the first row of the data with it."""
    repeated: frozenset[str]
    """Digests of more than one row."""

    @classmethod
    def of(cls, data: Dataset, gallery: EvaluationGallery, *, bad: set[int]) -> Self:
        """Every image is read once; those of the ``bad`` rows of the data are not."""
        row_of: dict[str, int] = {}
        repeated: set[str] = set()
        for row in map(int, gallery.data_rows[gallery.data_rows >= 0]):
            if row not in bad and row_of.setdefault(digest := data.digest(row), row) != row:
                repeated.add(digest)
        return cls(data=data, row_of=row_of, repeated=frozenset(repeated))

    def duplicates(self, queries: Rows) -> Bools:
        """(Q,) whether the image of each query, a row of the data, is here under another id."""
        return np.array([self._is_duplicate(int(row)) for row in queries], bool)

    def _is_duplicate(self, row: int) -> bool:
        digest = self.data.digest(row)
        return digest in self.repeated or self.row_of.get(digest, row) != row


def gallery_entry(gallery: EvaluationGallery, new_rows: Rows | None) -> SearchedGallery:
    """The report's entry; ``new_rows``: what the new model embedded, None without a self-test."""
    return SearchedGallery(
        rows=len(gallery),
        stored=gallery.n_stored,
        embedded=len(gallery.extra_ids),
        embedded_ids=gallery.extra_ids[:EXAMPLES],
        unlabelled=sum(not label for label in gallery.labels),
        conflicts=len(gallery.conflicts),
        conflict_ids=gallery.conflicts[:EXAMPLES],
        self_test_rows=None if new_rows is None else len(new_rows),
    )


def stored_share_check(searched: SearchedGallery, *, has_store: bool) -> list[Measurement]:
    """The share of the searched rows that are the store's, if there is a store."""
    if not has_store:
        return []
    return [
        Measurement(
            name="stored_share",
            group=DECIDING_GROUP,
            estimate=searched.stored / max(1, searched.rows),
            n=searched.rows,
            n_queries=searched.rows,
            may_decide=True,
            detail=f"{searched.stored} of the {searched.rows} rows that were searched are the "
            f"store's own, and {searched.embedded} were embedded for this test"
            + _examples(searched.embedded_ids, searched.embedded),
        )
    ]


def gallery_pass_check(passed: GalleryPass | None) -> list[Measurement]:
    """The share of the deployed gallery that the candidate passed; None: nothing says it."""
    if passed is None:
        return []
    return [
        Measurement(
            name="gallery_pass",
            group="training",
            estimate=passed.share,
            n=passed.rows,
            n_queries=passed.rows,
            may_decide=True,
            detail=f"{passed.passed} of the {passed.rows} rows of the gallery went through the new "
            f"model, and {passed.trained} rows are labelled training items of it",
        )
    ]


def duplicate_warnings(result: GroupResult) -> tuple[str, ...]:
    """A sentence if queries are left out because their image is in the gallery."""
    n = int((~result.kept).sum())
    if not n:
        return ()
    return (
        f"{n} of {len(result.kept)} queries are left out: the gallery holds the same item "
        "(the same bytes, or the same vector) under another id, and to find it again shows "
        "nothing",
    )


def gallery_warnings(searched: SearchedGallery, result: GroupResult) -> tuple[str, ...]:
    """What limits the figures of the deciding group, in sentences."""
    warnings = list(duplicate_warnings(result))
    old = result.evidence.old_old
    unmatched = old.n_queries - old.n_with_match
    if unmatched > MAX_WITHOUT_MATCH * old.n_queries:
        warnings.append(
            f"{unmatched} of {old.n_queries} queries have nothing to find in the gallery, and are "
            "in no figure"
        )
    if searched.stored and searched.embedded:
        warnings.append(
            f"{searched.embedded} of the {searched.rows} rows that were searched are not in the "
            "store, and were embedded by the old model"
            + _examples(searched.embedded_ids, searched.embedded)
        )
    if searched.conflicts:
        warnings.append(
            f"{searched.conflicts} items have another label in the data than in the store, so what "
            "they are relevant to is unknown" + _examples(searched.conflict_ids, searched.conflicts)
        )
    if searched.self_test_rows is not None and searched.self_test_rows < searched.rows:
        warnings.append(
            f"new / new and the mixed gallery are measured on {searched.self_test_rows} of "
            f"{searched.rows} gallery items: those that are in the data, "
            f"at most {SELF_TEST_ROWS:,} and the queries"
        )
    return tuple(warnings)


def _examples(ids: Sequence[str], n: int) -> str:
    if not n:
        return ""
    return f": {', '.join(ids)}{', ...' if n > len(ids) else ''}"
