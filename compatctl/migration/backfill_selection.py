"""Which items a backfill re-embeds: in priority order, until a share of all rows is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import numpy as np

from compatctl.core.arrays import NO_CLASS, Bools, Codes, Floats, Rows, Vectors, as_rows
from compatctl.core.gallery_order import hubness, mean_distance, uncertainty
from compatctl.core.hash_order import hash_key
from compatctl.data import Dataset
from compatctl.errors import InputError, UsageError
from compatctl.manifest import Catalog
from compatctl.printable import listed

MAX_IDS_SHOWN = 5

SHARES_BETWEEN = (0.05, 0.1, 0.25, 0.5, 0.75)
"""Hit rate is measured and forecast at these shares, where they lie on the way."""

ALTERNATIVE = "compatctl deploy --rescore leaves the stored rows as they are"
"""What to do where a mixed gallery loses."""

HUB_QUERIES = 10_000
"""Rows, the first by hash, whose neighbours are counted for the order by hubness."""


class Order(StrEnum):
    """Which rows come first; equals follow in the order of the sha256 of their ids.

    ``TRAFFIC``: those with the largest count. The others are computed from the stored vectors:
    ``UNCERTAINTY``, rows nearer to another class's mean than to their own; ``MEAN_DISTANCE``, rows
    far from their class's mean; ``HUBNESS``, rows that are neighbours of many.
    """

    HASH = "hash"
    TRAFFIC = "traffic"
    UNCERTAINTY = "uncertainty"
    MEAN_DISTANCE = "mean-distance"
    HUBNESS = "hubness"


def order_priority(order: Order, catalog: Catalog, vectors: Callable[[], Vectors]) -> Floats:
    """(N,) each row's priority, the highest first, by an order that needs no file.

    ``vectors`` reads the stored vectors (N, D), if the order needs them.
    """
    if order == Order.HUBNESS:
        rows = sorted(range(len(catalog)), key=lambda row: hash_key(catalog.ids[row]))
        return hubness(vectors(), as_rows(sorted(rows[:HUB_QUERIES])))
    if order in {Order.UNCERTAINTY, Order.MEAN_DISTANCE}:
        score = uncertainty if order == Order.UNCERTAINTY else mean_distance
        return score(vectors(), _class_codes(catalog))
    return np.zeros(len(catalog))


def listed_priority(catalog: Catalog, first: Sequence[str]) -> Floats:
    """(N,) the priority of rows by a list of ids, the first one first; unlisted rows come last.

    Raises:
        InputError: a listed id is not in the catalogue.
    """
    if unknown := [item for item in first if item not in catalog.row_of]:
        raise InputError(
            f"{len(unknown)} of {len(first)} ids in the order are not in the store: "
            f"{listed(unknown, MAX_IDS_SHOWN)}",
            tip="list ids of gallery items, as they stand in the data",
        )
    priority = np.zeros(len(catalog))
    for position, item in enumerate(first):
        priority[catalog.row_of[item]] = len(first) - position
    return priority


def traffic_priority(catalog: Catalog, counts: Mapping[str, float]) -> Floats:
    """(N,) each row's count; 0 for an item without one. Items that the store lacks are ignored.

    Raises:
        InputError: the store has none of the items.
    """
    priority = np.array([counts.get(item, 0.0) for item in catalog.ids])
    if counts.keys().isdisjoint(catalog.ids):
        raise InputError(
            f"none of the {len(counts)} items with traffic is in the store: "
            f"{listed(list(counts), MAX_IDS_SHOWN)}",
            tip="the column id holds ids of gallery items, as they stand in the data",
        )
    return priority


def _class_codes(catalog: Catalog) -> Codes:
    """(N,) class codes; ``NO_CLASS`` where the class is unknown."""
    code = {label: position for position, label in enumerate(dict.fromkeys(catalog.labels))}
    code[""] = NO_CLASS
    return as_rows(code[label] for label in catalog.labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class BackfillTarget:
    """``have`` (N,) marks the rows that the query model embedded; ``order`` (n,) lists the others
    by priority. The first ``remaining`` of them are re-embedded to reach the share."""

    have: Bools
    order: Rows
    remaining: int

    @classmethod
    def of(cls, catalog: Catalog, model: str, share: float, priority: Floats | None = None) -> Self:
        """Rows that another model than ``model`` embedded: by ``priority`` (N,), the highest first,
        then by the sha256 of the id.

        Raises:
            UsageError: the share is not in (0, 1].
        """
        if not 0.0 < share <= 1.0:
            raise UsageError(f"--share is above 0 and at most 1, got {share:g}")
        codes = [code for code, sha256 in enumerate(catalog.models) if sha256 == model]
        have = np.isin(catalog.model_of, codes)
        first = np.zeros(len(catalog)) if priority is None else -priority
        rows, ids = np.flatnonzero(~have).tolist(), catalog.ids
        rows.sort(key=lambda row: (first[row], hash_key(ids[row])))
        wanted = math.ceil(share * len(catalog) - 1e-9)
        return cls(have=have, order=as_rows(rows), remaining=max(0, wanted - int(have.sum())))


@dataclass(frozen=True, kw_only=True, eq=False)
class BackfillRows:
    """Rows of the catalogue (n,) to re-embed, and their items. ``missing`` are the ids that were
    passed over because the data has no image of them."""

    rows: Rows
    items: Dataset
    missing: tuple[str, ...]

    @classmethod
    def of(cls, target: BackfillTarget, catalog: Catalog, data: Dataset) -> Self:
        """As many rows as remain, in order of priority, of those that the data has an image of.

        Raises:
            InputError: the data holds no item of the store.
        """
        rows: list[int] = []
        missing: list[str] = []
        for row in target.order.tolist():
            if len(rows) == target.remaining:
                break
            if catalog.ids[row] in data.row_of:
                rows.append(row)
            else:
                missing.append(catalog.ids[row])
        if not rows and data.row_of.keys().isdisjoint(catalog.ids):
            raise InputError(
                f"the data has none of the store's items: {listed(missing, MAX_IDS_SHOWN)}",
                tip="--data must name the items of the gallery, under the ids of the store",
            )
        items = data.take(data.row_of[catalog.ids[row]] for row in rows)
        return cls(rows=as_rows(rows), items=items, missing=tuple(missing))
