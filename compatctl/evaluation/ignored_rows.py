"""``--ignore-same COLUMN``: gallery items with the query's label and the query's value of a column
do not count, as in the protocol of person re-identification.

With relevance judgments a label says nothing, and every item with the query's value is ignored. An
item without a value or a known label shares it with none, and counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from compatctl.core.arrays import Rows
from compatctl.core.ignored import Ignored
from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.evaluation.clusters import columns_of
from compatctl.evaluation.ground_truth import GroundTruth

_BLOCK = 2**16
"""Judged pairs looked up at once."""

Column = tuple[Sequence[str], Sequence[str]]
"""Values of the Q queries and of the G gallery rows; an empty one is none."""


def ignored_rows(
    columns: Mapping[str, Column], query_labels: Rows, gallery_labels: Rows, *, judged: bool
) -> Ignored | None:
    """What each of the Q queries ignores of G gallery rows; None if no column is named.

    Args:
        columns: name -> the values of both.
        query_labels, gallery_labels: (Q,) and (G,) codes; below 0: unknown.
        judged: whether relevance was judged pair by pair.

    Raises:
        InputError: no gallery item has a value of a column.
    """
    if not columns:
        return None
    codes = []
    for name, (of_queries, of_gallery) in columns.items():
        known = {value: code for code, value in enumerate(sorted({*of_gallery} - {""}))}
        if not known:
            raise InputError(
                f"no item of the gallery has a value of the column {name}",
                tip="--ignore-same names a column that queries and gallery items have",
            )
        pair = [
            np.array([known.get(value, -1) for value in values], np.int64)
            for values in (of_queries, of_gallery)
        ]
        if not judged:
            pair = [
                np.where((values < 0) | (labels < 0), -1, labels * len(known) + values)
                for values, labels in zip(pair, (query_labels, gallery_labels), strict=True)
            ]
        codes.append((pair[0], pair[1]))
    return Ignored.from_groups(*codes, n_queries=len(query_labels), n_rows=len(gallery_labels))


def with_ignored_rows(truth: GroundTruth, columns: Mapping[str, Column]) -> GroundTruth:
    """The ground truth with what its queries ignore, and without judged pairs that do not count.

    Raises:
        InputError: no gallery item has a value of a column, or no judged pair is left.
    """
    labels = truth.query_labels, truth.gallery_labels
    ignored = ignored_rows(columns, *labels, judged=truth.judged is not None)
    if ignored is None or truth.judged is None:
        return replace(truth, ignored=ignored)
    query, row = truth.judged
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(query), _BLOCK)]
    lost = np.concatenate(
        [ignored.select_queries(query[part]).contains(row[part, None])[:, 0] for part in blocks]
    )
    if lost.all():
        raise InputError(
            f"all {len(lost)} judged pairs share the query's value of an ignored column",
            tip="judge pairs that do not, or leave --ignore-same out",
        )
    return replace(truth.select_judged(~lost), ignored=ignored)


def shared_columns(
    data: Dataset, names: Sequence[str], queries: Rows, gallery: Rows
) -> dict[str, Column]:
    """Column -> values of the queries (Q,) and the gallery (G,), rows of the data; -1 is an item
    that the data do not hold, without a value.

    Raises:
        InputError: no item has the column.
    """
    values = columns_of(data, range(len(data)), names)
    return {
        name: ([of[row] for row in queries], ["" if row < 0 else of[row] for row in gallery])
        for name, of in values.items()
    }


def missing_value_notes(columns: Mapping[str, Column]) -> tuple[str, ...]:
    """A sentence for each column of which gallery items or queries have no value: they count."""
    notes = []
    for name, (of_queries, of_gallery) in columns.items():
        missing = [sum(value == "" for value in values) for values in (of_gallery, of_queries)]
        if any(missing):
            notes.append(
                f"same {name}: {missing[0]} of {len(of_gallery)} gallery items and {missing[1]} of "
                f"{len(of_queries)} queries have no value; these pairs count"
            )
    return tuple(notes)
