"""Which items a backfill re-embeds: in priority order, until a share of all rows is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Rows, as_rows
from compatctl.core.hash_order import hash_key
from compatctl.data import Dataset
from compatctl.errors import InputError, UsageError
from compatctl.manifest import Catalog
from compatctl.printable import listed

MAX_IDS_SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class BackfillTarget:
    """``have`` (N,) marks the rows that the query model embedded; ``order`` (n,) lists the others
    by priority. The first ``remaining`` of them are re-embedded to reach the share."""

    have: Bools
    order: Rows
    remaining: int

    @classmethod
    def of(cls, catalog: Catalog, model: str, share: float, first: Sequence[str] = ()) -> Self:
        """Rows that another model than ``model`` embedded: the ids ``first``, then by the sha256
        of the id.

        The order does not depend on what is re-embedded already, so that a larger share continues
        where a smaller one ended.

        Raises:
            UsageError: the share is not in (0, 1].
            InputError: an id of ``first`` is not in the catalogue.
        """
        if not 0.0 < share <= 1.0:
            raise UsageError(f"--share is above 0 and at most 1, got {share:g}")
        if unknown := [item for item in first if item not in catalog.row_of]:
            raise InputError(
                f"{len(unknown)} of {len(first)} ids in the order are not in the store: "
                f"{listed(unknown, MAX_IDS_SHOWN)}",
                tip="list ids of gallery items, as they stand in the data",
            )
        codes = [code for code, sha256 in enumerate(catalog.models) if sha256 == model]
        have = np.isin(catalog.model_of, codes)
        rank = {item: position for position, item in enumerate(first)}
        rows, ids = np.flatnonzero(~have).tolist(), catalog.ids
        rows.sort(key=lambda row: (rank.get(ids[row], len(rank)), hash_key(ids[row])))
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
                f"the data has no image of the store's items: {listed(missing, MAX_IDS_SHOWN)}",
                tip="--data must name the images of the gallery, under the ids of the store",
            )
        items = data.take(data.row_of[catalog.ids[row]] for row in rows)
        return cls(rows=as_rows(rows), items=items, missing=tuple(missing))
