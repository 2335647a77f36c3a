"""What is relevant to which query, as integer codes: one form for images and feature tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import NO_CLASS, Bools, Floats, Rows, as_rows
from compatctl.core.hash_order import hash_fraction
from compatctl.core.ignored import Ignored
from compatctl.core.pair_tiles import PairTruth
from compatctl.core.training_overlap import TrainingOverlap
from compatctl.data import Judgments, warn_of_near_known
from compatctl.errors import InputError
from compatctl.evaluation.clusters import column_codes, resampling_units
from compatctl.notices import MAX_NAMES, notice


@dataclass(frozen=True, kw_only=True, eq=False)
class GroundTruth:
    """Q queries and G gallery rows: which are relevant to which, and what is resampled."""

    classes: Rows
    """(Q,) codes of the units that are resampled; (Q, K) where K kinds of units cross."""
    query_labels: Rows
    """(Q,) class codes from 0, shared with the gallery."""
    gallery_labels: Rows
    """(G,) class codes; ``NO_CLASS`` where the class is unknown."""
    self_row: Rows
    """(Q,) each query's own gallery row, -1: none."""
    judged: tuple[Rows, Rows] | None = None
    """(J,) query positions and gallery rows judged relevant; then labels do not count."""
    grades: Floats | None = None
    """(J,) how relevant each judged pair is, above 0; None: 1 each."""
    ignored: Ignored | None = None
    """Further rows that do not count for a query; no judged pair is among them."""
    reembedded: Bools | None = None
    """(G,) rows of a mixed gallery that the new model embeds; None: no mixed gallery is tested."""
    slices: Mapping[str, Bools] = field(default_factory=dict)
    """Name -> (Q,) the queries in it."""
    unit: tuple[str, ...] = ("class",)
    """What each kind of resampled unit is: ``class``, ``query`` or a column of the data."""
    columns: Mapping[str, Rows] | None = None
    """Name -> (Q,) codes of every column by which queries may depend on each other."""
    answerable: Bools | None = None
    """(Q,) queries that should have a match; None: all."""
    unjudged: Bools | None = None
    """(G,) rows of unknown relevance; None: there are none."""
    training_overlap: TrainingOverlap | None = None
    """Gallery rows that training passed through the new model; None: unknown."""
    same_image: Bools | None = None
    """(Q,) queries whose image is in the gallery under another id; None: none is known."""
    image_unavailable: Bools | None = None
    """(G,) rows whose image cannot be compared with a query's; None: there are none."""

    @classmethod
    def from_labels(
        cls,
        *,
        query_ids: Sequence[str],
        query_labels: Sequence[str],
        gallery_ids: Sequence[str],
        gallery_labels: Sequence[str],
        cluster: Mapping[str, Sequence[str]] | None = None,
        judged: Judgments | None = None,
        columns: Mapping[str, Sequence[str]] | None = None,
        slices: Mapping[str, Bools] | None = None,
        reembedded: Bools | None = None,
    ) -> Self:
        """Code labels in their sorted order, and find each query's own gallery row by its id.

        Args:
            gallery_labels: an empty label is unknown.
            cluster: column -> (Q,) values by which queries are resampled.
            judged: relevant pairs, which replace the labels.
            columns: column -> (Q,) values by which queries may depend on each other.

        Raises:
            InputError: no judged pair is of a query and a gallery item.
        """
        names = sorted({*query_labels, *gallery_labels} - {""})
        code = {name: index for index, name in enumerate(names)} | {"": NO_CLASS}
        labels = as_rows(code[label] for label in query_labels)
        units = resampling_units(labels, cluster or {}, judged=judged is not None)
        pairs = None if judged is None else _judged_rows(judged, query_ids, gallery_ids)
        # Only the queries' ids are mapped: a large gallery has too many.
        own = dict.fromkeys(query_ids, -1)
        own.update((item, row) for row, item in enumerate(gallery_ids) if item in own)
        return cls(
            classes=units.classes,
            query_labels=labels,
            gallery_labels=as_rows(code[label] for label in gallery_labels),
            self_row=as_rows(own[item] for item in query_ids),
            judged=pairs and pairs[:2],
            grades=pairs and pairs[2],
            answerable=None if judged is None else judged.has_relevant(query_ids),
            reembedded=reembedded,
            slices=slices or {},
            unit=units.unit,
            columns=None if columns is None else column_codes(labels, columns),
        )

    def select_queries(self, kept: Bools) -> GroundTruth:
        """The same for the queries ``kept`` (Q,)."""
        overlap, position = self.training_overlap, np.cumsum(kept) - 1
        truth = self if self.judged is None else self.select_judged(kept[self.judged[0]])
        judged = truth.judged and (position[truth.judged[0]], truth.judged[1])
        return replace(
            truth,
            classes=self.classes[kept],
            query_labels=self.query_labels[kept],
            self_row=self.self_row[kept],
            judged=judged,
            slices={name: mask[kept] for name, mask in self.slices.items()},
            ignored=self.ignored and self.ignored.select_queries(kept),
            columns=self.columns and {name: codes[kept] for name, codes in self.columns.items()},
            answerable=None if self.answerable is None else self.answerable[kept],
            training_overlap=overlap and replace(overlap, of_query=overlap.of_query[kept]),
            same_image=None if self.same_image is None else self.same_image[kept],
        )

    def select_rows(self, rows: Rows) -> GroundTruth:
        """The same for the gallery rows ``rows`` (n,), ascending, without what describes the whole
        gallery."""
        position = np.full(len(self.gallery_labels), -1, np.int64)
        position[rows] = np.arange(len(rows))
        truth = self if self.judged is None else self.select_judged(position[self.judged[1]] >= 0)
        judged = truth.judged and (truth.judged[0], position[truth.judged[1]])
        return replace(
            truth,
            gallery_labels=self.gallery_labels[rows],
            self_row=np.where(self.self_row >= 0, position[self.self_row], -1),
            judged=judged,
            ignored=self.ignored and self.ignored.remap_rows(position),
            reembedded=None if self.reembedded is None else self.reembedded[rows],
            unjudged=None,
            training_overlap=None,
            image_unavailable=None,
        )

    def select_judged(self, kept: Bools) -> GroundTruth:
        """The same with the judged pairs ``kept`` (J,) alone."""
        judged, grades = self.judged, self.grades
        return replace(
            self,
            judged=judged and (judged[0][kept], judged[1][kept]),
            grades=None if grades is None else grades[kept],
        )

    def is_relevant(self, rows: Rows) -> Bools:
        """(Q, k) whether the gallery rows (Q, k) found for each query are relevant to it."""
        if self.judged is None:
            same: Bools = self.gallery_labels[rows] == self.query_labels[:, None]
            return same
        n = len(self.gallery_labels)
        query = np.arange(len(rows))[:, None]
        return np.isin(query * n + rows, self.judged[0] * n + self.judged[1])

    def has_match(self) -> Bools:
        """(Q,) whether a gallery row is relevant to the query: judged so, or another one of its
        class that counts."""
        if self.judged is not None:
            n = np.bincount(self.judged[0], minlength=len(self.query_labels))
            return np.asarray(n > 0)
        sizes = np.bincount(
            self.gallery_labels[self.gallery_labels != NO_CLASS],
            minlength=int(self.query_labels.max(initial=0)) + 1,
        )
        left = sizes[self.query_labels] - (self.self_row >= 0)
        for query, row in () if self.ignored is None else self.ignored.blocks():
            left -= np.bincount(query[self.self_row[query] != row], minlength=len(left))
        return np.asarray(left > 0)

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


def _judged_rows(
    judged: Judgments, queries: Sequence[str], gallery: Sequence[str]
) -> tuple[Rows, Rows, Floats]:
    """Query positions, gallery rows and grades of the pairs whose query and item are both here;
    others have no effect, nor has a query's own item."""
    position = {query: index for index, query in enumerate(queries)}
    own = {item: index for index, item in enumerate(judged.item_ids)}
    row_of = np.full(len(own), -1, np.int64)
    for at, item in enumerate(gallery):
        if item in own:
            row_of[own[item]] = at
    query = as_rows(position.get(name, -1) for name in judged.query_ids)[judged.query]
    itself = as_rows(own.get(name, -1) for name in judged.query_ids)[judged.query] == judged.item
    row = row_of[judged.item]
    here = (query >= 0) & (row >= 0) & ~itself
    if not here.any():
        raise InputError(
            f"none of the {len(judged)} judgments (read as {judged.form}) is of a held-out query "
            "and a gallery item",
            tip="the ids in the judgments must be those of the data",
        )
    return query[here], row[here], judged.grades[here]


def warn_of_unknown_ids(
    judged: Judgments, source: object, queries: Iterable[str], items: Iterable[str]
) -> None:
    """A notice of judged queries and of judged items whose ids are not among those given."""
    for what, ids, given in (
        ("queries", judged.query_ids, queries),
        ("items", judged.item_ids, items),
    ):
        known, wanted = tuple(given), frozenset(ids)
        here = wanted.intersection(known)
        unknown = [name for name in ids if name not in here]
        if unknown:
            notice(
                f"unknown-{what}",
                source,
                f"judged {what} that are not in the data",
                unknown[:MAX_NAMES],
                "their judgments do not count",
                count=len(unknown),
            )
            warn_of_near_known(source, "ids", unknown, known, told=("judged", "the data"))


def warn_of_judged_roles(
    judged: Judgments, source: object, roles: Iterable[tuple[str, str | None]]
) -> None:
    """A notice of judged queries that are gallery items, and of judged items that are queries, by
    the ``roles`` (id, role) of the data."""
    role_of = dict(roles)
    for what, ids, other, named in (
        ("queries", judged.query_ids, "gallery", "gallery items"),
        ("items", judged.item_ids, "query", "queries"),
    ):
        if wrong := [name for name in ids if role_of.get(name) == other]:
            notice(
                "judged-role",
                source,
                f"judged {what} that have the role of {named}",
                wrong[:MAX_NAMES],
                "their judgments do not count; maybe query and item have changed places",
                count=len(wrong),
            )


def reembedded_half(ids: Iterable[str]) -> Bools:
    """(G,) about half of the items, by a hash of their ids: the same in every run."""
    return np.array([hash_fraction(item) < 0.5 for item in ids], dtype=bool)
