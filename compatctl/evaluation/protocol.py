"""Held-out items of a data set, who searches whom, and both models' features of them.

With roles in the data, queries are the held-out items with role ``query`` and they search every
item with role ``gallery``; without roles every item is both, and an item never finds itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, Vectors, as_rows
from compatctl.data import Dataset
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.evaluation.clusters import all_columns, column_codes, columns_of, resampling_units
from compatctl.evaluation.ground_truth import GroundTruth, reembedded_half
from compatctl.progress import Progress, silent

MAX_SLICES = 500
"""Every one is a check with thousands of replicates, and Holm's method divides the level by all."""

RelevancePairs = Sequence[tuple[str, str]]
"""(query id, item id) of pairs judged relevant."""


@dataclass(frozen=True, kw_only=True)
class QueryGroup:
    """Rows of one data set that query and that are searched; ``name`` is the group's name.

    ``slices``: name -> (len(queries),) which queries are in it; ``cluster``: columns by whose
    values queries are resampled, besides their classes.
    """

    name: str
    queries: Rows
    gallery: Rows
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    cluster: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PairFeatures:
    """Unit features (N, D) float32 of a data set's rows; rows that were not needed are NaN."""

    query: Vectors
    gallery: Vectors


def query_rows(data: Dataset, split: str) -> Rows:
    """Rows of ``split`` that may query: role ``query``, or all of them in data without roles."""
    roles = has_roles(data)
    return as_rows(
        i
        for i, item in enumerate(data.items)
        if item.split == split and (not roles or item.role == "query")
    )


def gallery_rows(data: Dataset) -> Rows:
    """Rows that are searched: every gallery item, of every split and class, as in production."""
    roles = has_roles(data)
    return as_rows(i for i, item in enumerate(data.items) if not roles or item.role == "gallery")


def has_roles(data: Dataset) -> bool:
    """Whether the data says which items query and which are searched."""
    return any(item.role is not None for item in data.items)


def query_group(
    name: str,
    data: Dataset,
    queries: Rows,
    slice_columns: Sequence[str] = (),
    cluster: tuple[str, ...] = (),
) -> QueryGroup:
    """The group of these queries, which search the whole gallery of the data.

    Items of trained classes are in it: they are what a new model drags unseen queries towards.
    """
    columns = {
        column: [data.items[row].slices.get(column, "") for row in queries]
        for column in slice_columns
    }
    return QueryGroup(
        name=name,
        queries=queries,
        gallery=gallery_rows(data),
        slices=slice_masks(columns),
        cluster=cluster,
    )


def slice_masks(columns: Mapping[str, Sequence[str]]) -> dict[str, NDArray[np.bool_]]:
    """Name -> (Q,) which queries are in it, of columns of Q values; an empty value is no slice.

    Raises:
        InputError: two slices of one name, so that one would stand in for the other, or more than
            ``MAX_SLICES``.
    """
    slices: dict[str, NDArray[np.bool_]] = {}
    for column, given in columns.items():
        values = np.array(given, dtype=object)
        for value in sorted({*given} - {""}):
            name = f"{column}={value}"
            if name in slices:
                raise InputError(f"two slices are called {name}", tip="rename one of the columns")
            slices[name] = np.asarray(values == value, dtype=bool)
            if len(slices) > MAX_SLICES:
                raise InputError(
                    f"the columns {', '.join(columns)} have more than {MAX_SLICES} values",
                    tip="name a coarser column: so many checks would settle nothing",
                )
    return slices


def embed_rows(
    encoder: Encoder,
    data: Dataset,
    rows: Rows,
    *,
    skip_bad: bool = False,
    progress: Progress = silent,
    into: Vectors | None = None,
    looks: bool = False,
) -> tuple[Vectors, tuple[str, ...]]:
    """Features (N, D) with the given rows filled (into a copy of ``into``), and ids that failed.

    ``looks``: the data learns the looks of the images from the same reading.
    """
    shape = (len(data), encoder.dim)
    features = np.full(shape, np.nan, np.float32) if into is None else into.copy()
    if len(rows):
        done = encoder.embed(data.take(rows), skip_bad=skip_bad, progress=progress, looks=looks)
        features[rows[done.rows]] = done.features
        return features, tuple(item.id for item in done.bad)
    return features, ()


def drop_rows(group: QueryGroup, bad: set[int]) -> QueryGroup:
    """The group less the rows that could not be embedded."""
    if not bad:
        return group
    keep = np.array([row not in bad for row in group.queries], bool)
    return QueryGroup(
        name=group.name,
        queries=group.queries[keep],
        gallery=as_rows(row for row in group.gallery if row not in bad),
        slices={name: mask[keep] for name, mask in group.slices.items()},
        cluster=group.cluster,
    )


def ground_truth(
    data: Dataset, group: QueryGroup, judged: RelevancePairs | None = None
) -> GroundTruth:
    """What is relevant to the queries of a group.

    Queries and gallery share their codes, in the order of the labels.
    """
    ids = [data.items[row].id for row in group.gallery]
    position = {int(row): at for at, row in enumerate(group.gallery)}
    names = sorted({data.items[i].label for i in (*group.queries, *group.gallery)})
    code = {name: at for at, name in enumerate(names)}
    labels = as_rows(code[data.items[i].label] for i in group.queries)
    queries = [data.items[row].id for row in group.queries]
    units = resampling_units(
        labels, columns_of(data, group.queries, group.cluster), judged=judged is not None
    )
    return GroundTruth(
        classes=units.classes,
        query_labels=labels,
        gallery_labels=as_rows(code[data.items[i].label] for i in group.gallery),
        self_row=as_rows(position.get(int(i), -1) for i in group.queries),
        judged=None if judged is None else judged_rows(judged, queries, ids),
        reembedded=reembedded_half(ids),
        slices=group.slices,
        unit=units.unit,
        columns=column_codes(labels, all_columns(data, group.queries)),
    )


def judged_rows(
    judged: RelevancePairs, queries: Sequence[str], gallery: Sequence[str]
) -> tuple[Rows, Rows]:
    """Positions of the judged pairs whose query and item are both here; others have no effect."""
    query_at = {name: at for at, name in enumerate(queries)}
    named = {item for _, item in judged}
    row_at = {name: at for at, name in enumerate(gallery) if name in named}
    here = [
        (query_at[query], row_at[item])
        for query, item in judged
        if query in query_at and item in row_at and query != item
    ]
    if not here:
        raise InputError(
            f"none of the {len(judged)} judgments is of a held-out query and a gallery item",
            tip="the ids in the judgments must be those of the data",
        )
    return as_rows(query for query, _ in here), as_rows(row for _, row in here)


def same_dimension(old: int, new: int) -> None:
    """The gallery's dimension is fixed for ever: both encoders must end in it."""
    if old != new:
        raise InputError(
            f"the two models differ in dimension: old {old}, new {new}",
            tip="a new encoder must end in the gallery's dimension; compatctl finetune makes one",
        )


def group_rows(groups: Sequence[QueryGroup], *, part: str) -> Rows:
    """Every row that queries (``part='queries'``) or is searched (``'gallery'``), once, sorted."""
    parts = [getattr(group, part) for group in groups]
    return np.unique(np.concatenate(parts)) if parts else as_rows(())
