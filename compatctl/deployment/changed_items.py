"""Items that are not what was indexed under their ids: another image, or another label."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.manifest import DIGEST_BYTES, Catalog
from compatctl.progress import Progress, silent

AT_ONCE = 4096
SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """What became of items that the store holds by their id.

    ``images``: items (n,) of the data whose image has other bytes than the one that was embedded,
    by row of the data; ``labels`` those whose class is another. ``unknown``: how many could not be
    compared, since the store has no digest of them or their image cannot be read now.
    """

    data: Dataset
    images: Rows
    labels: Rows
    unknown: int

    @classmethod
    def of(
        cls, data: Dataset, rows: Rows, at: Rows, catalog: Catalog, progress: Progress = silent
    ) -> Self:
        """Compare the items at ``rows`` (n,) of the data with the catalogue's rows ``at`` (n,).

        Every image's bytes are read once; none is decoded. A class that the catalogue does not know
        (empty) is not compared.
        """
        found = digests_of(data, rows, progress)
        had, known = catalog.digests[at], catalog.known[at] & found.any(axis=1)
        other = known & (found != had).any(axis=1)
        labels = [
            int(row)
            for row, there in zip(rows, at, strict=True)
            if catalog.labels[there] not in {"", data.labels[row]}
        ]
        return cls(
            data=data, images=rows[other], labels=as_rows(labels), unknown=int((~known).sum())
        )

    def ids(self, rows: Rows) -> tuple[str, ...]:
        """The ids of rows (n,) of the data."""
        return tuple(self.data.ids[row] for row in rows)

    def refuse(self) -> None:
        """Refuse to go on as if nothing had changed.

        Raises:
            InputError: something did.
        """
        if not len(self.images) + len(self.labels):
            return
        parts = [
            f"{len(rows)} have another {what} ({_some(self.ids(rows))})"
            for what, rows in (("image", self.images), ("label", self.labels))
            if len(rows)
        ]
        raise InputError(
            "items of the data are not what was indexed under their ids: " + ", ".join(parts),
            tip="compatctl add --changed embeds them again and takes their labels; where they are "
            "new items, give them ids of their own",
            details={
                "changed_images": list(self.ids(self.images)),
                "changed_labels": list(self.ids(self.labels)),
            },
        )


def digests_of(data: Dataset, rows: Rows, progress: Progress = silent) -> np.ndarray:
    """The sha256 (n, 32) uint8 of the images at ``rows`` (n,); zero where one cannot be read."""
    found = np.zeros((len(rows), DIGEST_BYTES), np.uint8)

    def digest(row: int) -> bytes:
        try:
            return bytes.fromhex(data.digest(row))
        except InputError:
            return bytes(DIGEST_BYTES)

    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compatctl-hash") as pool:
        for start in range(0, len(rows), AT_ONCE):
            part = b"".join(pool.map(digest, rows[start : start + AT_ONCE].tolist()))
            read = np.frombuffer(part, np.uint8).reshape(-1, DIGEST_BYTES)
            found[start : start + len(read)] = read
            progress("images compared", start + len(read), len(rows))
    return found


def _some(ids: tuple[str, ...]) -> str:
    more = "" if len(ids) <= SHOWN else f" and {len(ids) - SHOWN} more"
    return ", ".join(ids[:SHOWN]) + more
