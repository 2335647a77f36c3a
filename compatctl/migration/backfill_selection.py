"""Which items a backfill re-embeds: the most wanted first, until a share of all rows is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Rows
from compatctl.core.hash_order import hash_key
from compatctl.data import Dataset
from compatctl.errors import InputError, UsageError
from compatctl.manifest import Catalog
from compatctl.recipe import read_ids

SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class BackfillTarget:
    """``have`` (N,): the rows that the query model embedded; ``order`` (n,): the others, the most
    wanted first; ``remaining`` of them are to be re-embedded until the share is reached."""

    have: Bools
    order: Rows
    remaining: int

    @classmethod
    def of(cls, catalog: Catalog, model: str, share: float, first: Sequence[str] = ()) -> Self:
        """Rows that another model than ``model`` embedded: ids ``first``, then by the id's sha256.

        The order does not depend on what was re-embedded before, so that a larger share goes on
        where a smaller one ended.

        Raises:
            UsageError: the share is not in (0, 1].
            InputError: an id of ``first`` is not in the catalogue.
        """
        if not 0.0 < share <= 1.0:
            raise UsageError(f"--share is above 0 and at most 1, got {share:g}")
        known = set(catalog.ids)
        if unknown := [item for item in first if item not in known]:
            raise InputError(
                f"{len(unknown)} of {len(first)} ids in the order are not in the store: "
                f"{named(unknown)}",
                tip="list ids of gallery items, as they stand in the data",
            )
        codes = [at for at, one in enumerate(catalog.models) if one == model]
        have = np.isin(catalog.model_of, codes)
        rank = {item: at for at, item in enumerate(first)}
        rows = np.flatnonzero(~have).tolist()
        ids = catalog.ids
        rows.sort(key=lambda row: (rank.get(ids[row], len(rank)), hash_key(ids[row])))
        wanted = math.ceil(share * len(catalog) - 1e-9)
        return cls(
            have=have,
            order=np.array(rows, np.int64),
            remaining=max(0, wanted - int(have.sum())),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class BackfillRows:
    """The catalogue's rows (n,) to re-embed and their items; ``missing``: the ids of those that
    were passed over, because the data has no image of them."""

    rows: Rows
    items: Dataset
    missing: tuple[str, ...]

    @classmethod
    def of(cls, wanted: BackfillTarget, catalog: Catalog, data: Dataset) -> Self:
        """As many rows as are remaining, in their order, as far as the data holds them.

        Raises:
            InputError: the data holds not one item of the store.
        """
        rows: list[int] = []
        missing: list[str] = []
        for row in wanted.order.tolist():
            if len(rows) == wanted.remaining:
                break
            if catalog.ids[row] in data.row_of:
                rows.append(row)
            else:
                missing.append(catalog.ids[row])
        if not rows and not any(item in data.row_of for item in catalog.ids):
            raise InputError(
                f"the data has no image of the store's items: {named(missing)}",
                tip="--data must name the images of the gallery, under the ids of the store",
            )
        items = data.take(data.row_of[catalog.ids[row]] for row in rows)
        return cls(rows=np.array(rows, np.int64), items=items, missing=tuple(missing))


def priority_ids(path: Path | None) -> tuple[str, ...]:
    """The ids in a file, the most wanted first; none without a file. Errors as ``read_ids``."""
    return () if path is None else read_ids(path)


def named(ids: Sequence[str]) -> str:
    """The first few ids, and how many more there are."""
    more = "" if len(ids) <= SHOWN else f" and {len(ids) - SHOWN} more"
    return f"{', '.join(ids[:SHOWN])}{more}"
