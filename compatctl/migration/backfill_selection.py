"""Which items a backfill re-embeds: in priority order, until a share of all rows is reached."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from compatctl.core.arrays import Bools, Floats, Rows
from compatctl.core.hash_order import hash_key
from compatctl.data import Dataset
from compatctl.errors import InputError, UsageError
from compatctl.files import DIGEST_BYTES
from compatctl.manifest import Catalog
from compatctl.printable import listed

MAX_IDS_SHOWN = 5

MAX_MISSING = 1000
"""Most ids without an item in the data that are listed; all are counted."""

SHARES_BETWEEN = (0.05, 0.1, 0.25, 0.5, 0.75)
"""Hit rate is measured and forecast at these shares, where they lie on the way."""

ALTERNATIVE = "compatctl deploy --rescore leaves the stored rows as they are"
"""What to do where a mixed gallery loses."""


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
        rows, ids = np.flatnonzero(~have), catalog.ids
        keys = b"".join(hash_key(ids[row]) for row in rows.tolist())
        words = np.frombuffer(keys, ">u8").reshape(-1, DIGEST_BYTES // 8)
        order = np.lexsort((*words.T[::-1], first[rows]))
        wanted = math.ceil(share * len(catalog) - 1e-9)
        return cls(have=have, order=rows[order], remaining=max(0, wanted - int(have.sum())))

    def first(self, rows: Bools) -> Self:
        """The same rows, of which those marked in ``rows`` (N,) come first."""
        marked = rows[self.order]
        order = np.concatenate([self.order[marked], self.order[~marked]])
        return replace(self, order=order)


@dataclass(frozen=True, kw_only=True, eq=False)
class BackfillRows:
    """Rows of the catalogue (n,) to re-embed, and their items.

    ``missing`` are the ids that were passed over because the data has no item of them, at most
    ``MAX_MISSING``. ``reachable`` counts the rows of other models that the data has an item of,
    ``unreachable`` the others.
    """

    rows: Rows
    items: Dataset
    missing: tuple[str, ...]
    reachable: int
    unreachable: int

    @classmethod
    def of(cls, target: BackfillTarget, catalog: Catalog, data: Dataset) -> Self:
        """As many rows as remain, in order of priority, of those that the data has an item of.

        Raises:
            InputError: the data holds no item of the store.
        """
        ids, row_of = catalog.ids, data.row_of
        there = np.fromiter((ids[row] in row_of for row in target.order.tolist()), bool)
        reachable = int(there.sum())
        rows = target.order[there][: target.remaining]
        enough = reachable >= target.remaining
        end = int(np.flatnonzero(there)[target.remaining - 1]) + 1 if enough else len(there)
        passed_over = target.order[:end][~there[:end]]
        missing = tuple(ids[row] for row in passed_over[:MAX_MISSING].tolist())
        if not len(rows) and row_of.keys().isdisjoint(ids):
            raise InputError(
                f"the data has none of the store's items: {listed(missing, MAX_IDS_SHOWN)}",
                tip="--data must name the items of the gallery, under the ids of the store",
            )
        return cls(
            rows=rows,
            items=data.take(row_of[ids[row]] for row in rows.tolist()),
            missing=missing,
            reachable=reachable,
            unreachable=len(there) - reachable,
        )
