"""What is relevant to what: Q queries and G gallery rows in numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from compatctl.core.arrays import Bools, Rows
from compatctl.core.hash_order import hash_fraction
from compatctl.core.ignored import Ignored
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.training_overlap import TrainingOverlap


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """Q queries and G gallery rows in numbers: what is relevant to what, and what is resampled."""

    classes: Rows
    """(Q,) what is resampled: class codes; (Q, K) where K kinds of units cross."""
    query_labels: Rows
    gallery_labels: Rows
    self_row: Rows
    """(Q,) each query's own gallery row, -1: none."""
    judged: tuple[Rows, Rows] | None = None
    """(J,) query positions and gallery rows judged relevant; then labels do not count."""
    ignored: Ignored | None = None
    """Rows that do not count for a query besides; no judged pair is among them."""
    reembedded: Bools | None = None
    """(G,) the part of a mixed gallery that is re-embedded; in verify, a half."""
    slices: Mapping[str, Bools] = field(default_factory=dict)
    unit: tuple[str, ...] = ("class",)
    """What each kind of unit that is resampled is: ``class``, ``query`` or a column of the data."""
    columns: Mapping[str, Rows] | None = None
    """Name -> (Q,) codes of every column of the data, which queries may depend on each other by."""
    asked: Bools | None = None
    """(Q,) queries that should have a match; None: all."""
    unjudged: Bools | None = None
    """(G,) rows of unknown relevance; None: there are none."""
    training_overlap: TrainingOverlap | None = None
    """What of the gallery training passed through the new model; None: nobody knows."""
    same_image: Bools | None = None
    """(Q,) queries whose image lies in the gallery under another id; None: none is known to."""
    unseen_image: Bools | None = None
    """(G,) rows whose image nobody looked at: that it is a query's shows in its vector only."""

    def queries(self, kept: Bools) -> GroundTruth:
        """The same of some queries, ``kept`` (Q,)."""
        judged = self.judged
        if judged is not None:
            here, position = kept[judged[0]], np.cumsum(kept) - 1
            judged = position[judged[0][here]], judged[1][here]
        touched = self.training_overlap
        return replace(
            self,
            classes=self.classes[kept],
            query_labels=self.query_labels[kept],
            self_row=self.self_row[kept],
            judged=judged,
            slices={name: mask[kept] for name, mask in self.slices.items()},
            ignored=self.ignored and self.ignored.select_queries(kept),
            columns=self.columns and {name: one[kept] for name, one in self.columns.items()},
            asked=None if self.asked is None else self.asked[kept],
            training_overlap=touched and replace(touched, of_query=touched.of_query[kept]),
            same_image=None if self.same_image is None else self.same_image[kept],
        )

    def part(self, rows: Rows) -> GroundTruth:
        """The same of some gallery rows, ascending ``rows`` (n,); what is said of the whole gallery
        is left out."""
        position = np.full(len(self.gallery_labels), -1, np.int64)
        position[rows] = np.arange(len(rows))
        judged = self.judged
        if judged is not None:
            here = position[judged[1]] >= 0
            judged = judged[0][here], position[judged[1][here]]
        return replace(
            self,
            gallery_labels=self.gallery_labels[rows],
            self_row=np.where(self.self_row >= 0, position[self.self_row], -1),
            judged=judged,
            ignored=self.ignored and self.ignored.remap_rows(position),
            reembedded=None if self.reembedded is None else self.reembedded[rows],
            unjudged=None,
            training_overlap=None,
            unseen_image=None,
        )

    def relevant(self, rows: Rows) -> Bools:
        """(Q, k) whether the gallery rows (Q, k) found for each query are known to be relevant."""
        if self.judged is None:
            same: Bools = self.gallery_labels[rows] == self.query_labels[:, None]
            return same
        n = len(self.gallery_labels)
        query = np.arange(len(rows))[:, None]
        return np.isin(query * n + rows, self.judged[0] * n + self.judged[1])

    @property
    def pairs(self) -> PairTruth:
        """What each pair of a query and a gallery row is."""
        return PairTruth(
            query_labels=self.query_labels,
            gallery_labels=self.gallery_labels,
            self_row=self.self_row,
            judged=self.judged,
            ignored=self.ignored,
        )


def reembedded_half(ids: Iterable[str]) -> Bools:
    """(G,) about half of the items, by a hash of their ids: the same in every run."""
    return np.array([hash_fraction(one) < 0.5 for one in ids], dtype=bool)
