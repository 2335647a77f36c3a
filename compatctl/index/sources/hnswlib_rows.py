"""The rows of an hnswlib file whose graph cannot be adopted as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compatctl.core.similarity import Similarity
from compatctl.errors import InputError
from compatctl.index.hnswlib.checks import check_layout
from compatctl.index.hnswlib.layout import StoredRows
from compatctl.index.sources.rows import ForeignRows

_SIMILARITY: dict[str, Similarity] = {"ip": "dot", "l2": "l2", "cosine": "cosine"}


def hnswlib_rows(path: Path, space: str, *, drop_deleted: bool) -> ForeignRows:
    """The rows of a file of that space, in their order, without those that are marked deleted.

    Links and keys are checked; rows are not.

    Raises:
        InputError: every row is marked deleted; the file is missing.
        DamagedError: the file is damaged, or has rows marked deleted and not ``drop_deleted``.
    """
    stored = StoredRows.open(path)
    check_layout(stored, deleted=drop_deleted, unit=False)
    deleted = np.concatenate([block["deleted"].astype(bool) for _, block in stored.blocks()])
    if deleted.all():
        raise InputError(f"{path}: every row is marked deleted", tip="there is nothing to adopt")
    rows = stored.records["row"]
    if deleted.any():
        rows = rows[~deleted]
    return ForeignRows(
        engine="hnswlib",
        kind=space,
        similarity=_SIMILARITY[space],
        rows=rows,
        keys=stored.keys[~deleted],
        M=stored.header.M,
        ef_construction=stored.header.ef_construction,
        dropped=stored.keys[deleted],
    )
