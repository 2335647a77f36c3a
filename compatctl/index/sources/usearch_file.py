"""The rows of a usearch index, in a process of its own (``read_in_child``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError
from compatctl.index.sources.child import answer_parent, write_rows
from compatctl.index.sources.rows import BLOCK

_SIMILARITY = {"Cos": "cosine", "IP": "dot", "L2sq": "l2"}
_EXACT = {"F32", "F64"}
_LOSSY = {
    "F16": "components are kept in half precision",
    "BF16": "components are kept as bfloat16, with 8 bits of precision",
    "I8": "components are kept as whole numbers of 8 bits, without the row's norm",
}


def read(path: Path, scratch: Path) -> dict[str, Any]:
    """Write the rows in the order of their keys; returns the other fields of ForeignRows."""
    from usearch.index import Index

    index = Index.restore(str(path))
    if index is None:
        raise InputError("usearch does not know this file")
    metric, scalar = getattr(index.metric_kind, "name", "its own"), index.dtype.name
    if metric not in _SIMILARITY or not (scalar in _EXACT or scalar in _LOSSY):
        raise InputError(
            f"a usearch index of the metric {metric} and of {scalar} components is not read",
            tip="the metric must be cos, ip or l2sq, and components must be floats or int8",
        )
    if index.multi:
        raise InputError("it has several rows under one key", tip="keep one row a key")
    keys = np.sort(np.fromiter(index.keys, np.uint64, len(index)))
    write_rows(scratch, keys, index.ndim, _blocks(index, keys))
    # whole numbers of 8 bits are taken from rows of unit length
    return {
        "kind": f"{metric} {scalar}",
        "similarity": "cosine" if scalar == "I8" else _SIMILARITY[metric],
        "lossy": _LOSSY.get(scalar, ""),
        "M": int(index.connectivity),
        "ef_construction": int(index.expansion_add),
    }


def _blocks(index: Any, keys: NDArray[np.uint64]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(keys), BLOCK):
        rows = index.get(keys[start : start + BLOCK])
        yield np.stack([np.asarray(row, np.float32) for row in rows])


if __name__ == "__main__":
    answer_parent(read)
