"""Items whose image or label is not the one that was indexed under their id."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from compatctl.core.arrays import Rows, as_rows
from compatctl.data import Dataset
from compatctl.errors import InputError
from compatctl.files import DIGEST_BYTES
from compatctl.machine import processors
from compatctl.manifest import Catalog
from compatctl.printable import listed
from compatctl.progress import Progress, silent

BATCH = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Changes:
    """Changes of items that the store has.

    Attributes:
        images: rows (n,) of the data whose image has other bytes than the embedded one.
        labels: rows (m,) of the data whose class differs.
        unknown: how many items could not be compared: the store has no digest of their image, or
            it cannot be read now.
    """

    data: Dataset
    images: Rows
    labels: Rows
    unknown: int

    @classmethod
    def of(
        cls,
        data: Dataset,
        rows: Rows,
        catalog_rows: Rows,
        catalog: Catalog,
        progress: Progress = silent,
    ) -> Self:
        """Compare ``rows`` (n,) of the data with ``catalog_rows`` (n,) of the catalogue.

        Each image's bytes are read once; none is decoded. A class that the catalogue does not know
        (empty) is not compared.
        """
        digests = image_digests(data, rows, progress)
        known = catalog.digest_known[catalog_rows] & digests.any(axis=1)
        differs = known & (digests != catalog.digests[catalog_rows]).any(axis=1)
        labels = as_rows(
            int(row)
            for row, catalog_row in zip(rows, catalog_rows, strict=True)
            if catalog.labels[catalog_row] not in {"", data.labels[row]}
        )
        return cls(data=data, images=rows[differs], labels=labels, unknown=int((~known).sum()))

    def ids(self, rows: Rows) -> tuple[str, ...]:
        """The ids of rows (n,) of the data."""
        return tuple(self.data.ids[row] for row in rows)

    def refuse(self) -> None:
        """Refuse changed items.

        Raises:
            InputError: an image or a label changed.
        """
        if not len(self.images) + len(self.labels):
            return
        parts = [
            f"{len(rows)} have {what} ({listed(self.ids(rows))})"
            for what, rows in (("other content", self.images), ("another label", self.labels))
            if len(rows)
        ]
        raise InputError(
            "items of the data are not what was indexed under their ids: " + ", ".join(parts),
            tip="compatctl add --changed re-embeds them and takes their labels; if they are new "
            "items, give them ids of their own",
            details={
                "changed_images": list(self.ids(self.images)),
                "changed_labels": list(self.ids(self.labels)),
            },
        )


def image_digests(data: Dataset, rows: Rows, progress: Progress = silent) -> np.ndarray:
    """The sha256 (n, 32) uint8 of the items at ``rows`` (n,); zero for unreadable images, and for
    vectors: those of one model do not show whether an item changed."""
    digests = np.zeros((len(rows), DIGEST_BYTES), np.uint8)
    if data.modality == "vector":
        return digests

    def digest(row: int) -> bytes:
        try:
            return bytes.fromhex(data.digest(row))
        except InputError:
            return bytes(DIGEST_BYTES)

    with ThreadPoolExecutor(processors(), thread_name_prefix="compatctl-hash") as pool:
        for start in range(0, len(rows), BATCH):
            part = b"".join(pool.map(digest, rows[start : start + BATCH].tolist()))
            read = np.frombuffer(part, np.uint8).reshape(-1, DIGEST_BYTES)
            digests[start : start + len(read)] = read
            progress("items compared", start + len(read), len(rows))
    return digests
