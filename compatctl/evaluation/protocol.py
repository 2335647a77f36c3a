"""Who queries and who is searched.

With roles in the data, queries are the held-out items with role ``query`` and they search every
item with role ``gallery``; without roles every item is both, and an item never finds itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import Dataset, Judgments
from compatctl.encoder import Encoder
from compatctl.errors import InputError
from compatctl.evaluation.clusters import all_columns, columns_of
from compatctl.evaluation.ground_truth import GroundTruth, reembedded_half

MAX_SLICES = 500
"""Each is a check with thousands of replicates, and Holm's method divides the level by all."""


@dataclass(frozen=True, kw_only=True)
class QueryGroup:
    """Rows of one data set that query and that are searched; ``name`` is the group's name.

    ``slices``: name -> (Q,) which queries are in it; ``cluster``: columns by whose values queries
    are resampled, as well as by their classes.
    """

    name: str
    queries: Rows
    gallery: Rows
    slices: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    cluster: tuple[str, ...] = ()


def query_rows(data: Dataset, split: str) -> Rows:
    """Rows of ``split`` that may query: role ``query``, or all of them in data without roles."""
    roles = has_roles(data)
    return as_rows(
        i
        for i, item in enumerate(data.items)
        if item.split == split and (not roles or item.role == "query")
    )


def gallery_rows(data: Dataset) -> Rows:
    """Rows that are searched: every gallery item, of every split and class."""
    roles = has_roles(data)
    return as_rows(i for i, item in enumerate(data.items) if not roles or item.role == "gallery")


def has_roles(data: Dataset) -> bool:
    """Whether the data says which items query and which are searched."""
    return any(item.role is not None for item in data.items)


def require_roles(encoders: Sequence[Encoder], data: Dataset) -> None:
    """Refuse data without roles for encoders with a prefix for queries and another for documents.

    An item that is both query and gallery item would be embedded once, as a document.

    Raises:
        InputError: an encoder embeds by role, and an item has none.
    """
    by_role = [encoder.name for encoder in encoders if encoder.embeds_by_role]
    lacking = next((item.id for item in data.items if item.role is None), None)
    if by_role and lacking is not None:
        raise InputError(
            f"{by_role[0]} puts another prefix before queries than before documents, and the item "
            f"{lacking!r} has no role: it would be both, and be embedded as a document",
            tip="give the data a column role: query or gallery; write an item that is both twice, "
            "under two ids",
        )


def query_group(
    name: str,
    data: Dataset,
    queries: Rows,
    slice_columns: Sequence[str] = (),
    cluster: tuple[str, ...] = (),
) -> QueryGroup:
    """The group of these queries, which search every gallery item of the data.

    Items of trained classes stay in: a new model pulls unseen queries towards them.
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
    """Name -> (Q,) which queries are in it, from columns of Q values; an empty value is no slice.

    Raises:
        InputError: two slices with one name, or more than ``MAX_SLICES``.
    """
    slices: dict[str, NDArray[np.bool_]] = {}
    for column, texts in columns.items():
        values = np.array(texts, dtype=object)
        for value in sorted({*texts} - {""}):
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


def drop_rows(group: QueryGroup, bad: set[int]) -> QueryGroup:
    """The group without the bad rows."""
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


def ground_truth(data: Dataset, group: QueryGroup, judged: Judgments | None = None) -> GroundTruth:
    """What is relevant to the queries of a group, among the gallery items of the data."""
    queries, items = ([data.items[row] for row in rows] for rows in (group.queries, group.gallery))
    ids = [item.id for item in items]
    return GroundTruth.from_labels(
        query_ids=[item.id for item in queries],
        query_labels=[item.label for item in queries],
        gallery_ids=ids,
        gallery_labels=[item.label for item in items],
        cluster=columns_of(data, group.queries, group.cluster),
        judged=judged,
        columns=all_columns(data, group.queries),
        slices=group.slices,
        reembedded=reembedded_half(ids),
    )


def same_dimension(old: int, new: int) -> None:
    """Raise unless both are equal: the gallery's dimension never changes."""
    if old != new:
        raise InputError(
            f"the two models differ in dimension: old {old}, new {new}",
            tip="a new encoder must end in the gallery's dimension: compatctl finetune trains one, "
            "and compatctl bridge maps one that exists",
        )


def group_rows(groups: Sequence[QueryGroup], *, part: str) -> Rows:
    """Every row that queries (``part='queries'``) or is searched (``'gallery'``), ascending."""
    parts = [getattr(group, part) for group in groups]
    return np.unique(np.concatenate(parts)) if parts else as_rows(())
