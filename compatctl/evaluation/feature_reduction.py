"""Feature tables by their similarity: read together, and turned into rows that rank by cosine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from compatctl.core.arrays import Rows, Vectors
from compatctl.core.similarity import CosineReduction, Similarity
from compatctl.data import FeatureTable, load_features
from compatctl.errors import InputError


def load_alike(
    paths: Sequence[Path], asked: str | None = None
) -> tuple[tuple[FeatureTable, ...], Similarity]:
    """The tables, and how their vectors are compared: one similarity, for new queries search the
    old gallery. ``asked``: what the user says of tables that do not say it.

    Raises:
        InputError: a table that cannot be read, or two similarities.
    """
    tables = [load_features(path, asked) for path in paths]
    told = {one.similarity for one in tables} - {None}
    if len(told) > 1:
        raise InputError(
            f"{paths[0]} is compared by {tables[0].similarity}, {paths[1]} by "
            f"{tables[1].similarity}",
            tip="new queries search the old gallery: both need one similarity",
        )
    similarity = cast("Similarity", told.pop() if told else "cosine")
    if similarity != "cosine":  # a table of equal norms, which said nothing, was normalised
        tables = [
            load_features(path, similarity) if one.similarity is None else one
            for path, one in zip(paths, tables, strict=True)
        ]
    return tuple(tables), similarity


def ranked(
    tables: Sequence[FeatureTable],
    queries: Rows,
    gallery: Rows,
    similarity: Similarity,
    *,
    galleries: int,
) -> tuple[list[Vectors], list[Vectors]]:
    """Queries of every table, and the gallery of the first ``galleries`` ones: unit rows whose
    cosine ranks as the similarity does."""
    asking = [_part(table, queries) for table in tables]
    searched = [_part(table, gallery) for table in tables[:galleries]]
    if similarity != "cosine":
        reduction = CosineReduction.fit(similarity, searched)
        asking = [reduction.queries(one) for one in asking]
        searched = [reduction.gallery(one) for one in searched]
    return asking, searched


def no_cosines(similarity: Similarity) -> tuple[str, ...]:
    """What is not checked where vectors are not compared by the cosine."""
    if similarity == "cosine":
        return ()
    return (
        f"inequalities, operating points: they are of cosines, the tables of {similarity}",
        "queries that lie in the gallery under another id: they are found by the cosine",
    )


def _part(table: FeatureTable, rows: Rows) -> Vectors:
    """The rows' features; the table's own memory where the rows follow each other."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return table.features[rows[0] : rows[-1] + 1]
    return np.asarray(table.features[rows])
