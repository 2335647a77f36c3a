"""The rows of a FAISS index, in a process of its own (``read_in_child``).

An index is unwrapped from the outside in: ids (IndexIDMap), transforms of the rows
(IndexPreTransform), a second set of finer rows (IndexRefine); the innermost one holds codes of the
rows, which FAISS reconstructs. They are the rows themselves only where they are stored flat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compatctl.errors import InputError
from compatctl.index.sources.child import answer_parent, write_rows
from compatctl.index.sources.rows import BLOCK, EF_CONSTRUCTION, M

RowsAt = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Positions (n,) in the order of the keys -> rows (n, D)."""

_HALF = {"QT_fp16": "half precision", "QT_bf16": "bfloat16, with 8 bits of precision"}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """The keys (N,) int64 of an index, its rows, their names, why they are lossy, and the graph."""

    keys: NDArray[np.int64]
    rows_at: RowsAt
    kinds: tuple[str, ...]
    lossy: tuple[str, ...] = ()
    graph: Any = None


def read(path: Path, scratch: Path) -> dict[str, Any]:
    """Write the rows in the order of their keys; returns the other fields of ForeignRows."""
    import faiss

    index = faiss.read_index(str(path))
    metrics = {faiss.METRIC_INNER_PRODUCT: "dot", faiss.METRIC_L2: "l2"}
    if index.metric_type not in metrics:
        raise InputError(
            f"it ranks by metric {index.metric_type} of FAISS; inner product and L2 are read"
        )
    opened = _open(faiss, index)
    order = np.argsort(opened.keys, kind="stable")
    blocks = (opened.rows_at(order[start : start + BLOCK]) for start in range(0, len(order), BLOCK))
    write_rows(scratch, opened.keys[order], index.d, blocks)
    graph = opened.graph
    return {
        "kind": " of ".join(opened.kinds),
        "similarity": metrics[index.metric_type],
        "lossy": "; ".join(opened.lossy),
        "M": M if graph is None else int(graph.nb_neighbors(1)),
        "ef_construction": EF_CONSTRUCTION if graph is None else int(graph.efConstruction),
    }


def _open(faiss: Any, index: Any) -> _Opened:
    """Unwrap an index of any depth."""
    index = faiss.downcast_index(index)
    name = type(index).__name__
    if isinstance(index, faiss.IndexIDMap):
        inner = _open(faiss, index.index)
        keys = faiss.vector_to_array(index.id_map).astype(np.int64)
        return _renamed(inner, name, keys)
    if isinstance(index, faiss.IndexPreTransform):
        return _transformed(faiss, index, name)
    if isinstance(index, faiss.IndexRefine):
        inner = _open(faiss, index.refine_index)
        return _renamed(inner, name, inner.keys)
    if isinstance(index, faiss.IndexIVF):
        return _inverted(faiss, index, name)
    storage = getattr(index, "storage", None)
    storage = index if storage is None else faiss.downcast_index(storage)
    return _Opened(
        keys=np.arange(index.ntotal, dtype=np.int64),
        rows_at=lambda positions: _by_runs(storage, positions),
        kinds=(name,),
        lossy=() if isinstance(storage, faiss.IndexFlat) else (_reason(faiss, storage),),
        graph=getattr(index, "hnsw", None),
    )


def _renamed(inner: _Opened, name: str, keys: NDArray[np.int64]) -> _Opened:
    """The rows of ``inner``, whose own keys are 0..n-1, under other keys."""
    place = np.argsort(inner.keys, kind="stable")
    return _Opened(
        keys=keys,
        rows_at=lambda positions: inner.rows_at(place[positions]),
        kinds=(name, *inner.kinds),
        lossy=inner.lossy,
        graph=inner.graph,
    )


def _transformed(faiss: Any, index: Any, name: str) -> _Opened:
    """Rows behind transforms, which are undone in the reverse order."""
    inner = _open(faiss, index.index)
    chain = [
        faiss.downcast_VectorTransform(index.chain.at(position))
        for position in range(index.chain.size())
    ]
    names = [type(step).__name__ for step in chain]
    lossy = [
        f"{type(step).__name__} takes rows of {step.d_in} dimensions to {step.d_out}"
        for step in chain
        if step.d_out < step.d_in
    ]

    def rows_at(positions: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = inner.rows_at(positions)
        for step in reversed(chain):
            rows = step.reverse_transform(rows)
        return rows

    return _Opened(
        keys=inner.keys,
        rows_at=rows_at,
        kinds=(name, *names, *inner.kinds),
        lossy=(*lossy, *inner.lossy),
        graph=inner.graph,
    )


def _inverted(faiss: Any, index: Any, name: str) -> _Opened:
    """Rows in inverted lists, found by a table from id to place.

    Raises:
        InputError: the lists are packed for fast scans, of which FAISS cannot give rows back.
    """
    if isinstance(index, faiss.IndexIVFFastScan):
        raise InputError(
            f"FAISS cannot give back the rows of {name}, whose codes are packed",
            tip="import the vectors that it was built from, as .npz or Parquet",
        )
    lists = index.invlists
    sizes = [lists.list_size(number) for number in range(lists.nlist)]
    keys = np.empty(sum(sizes), np.int64)
    first = 0
    for number, size in enumerate(sizes):
        if size:
            keys[first : first + size] = faiss.rev_swig_ptr(lists.get_ids(number), size)
        first += size
    if len(np.unique(keys)) == len(keys):  # write_rows refuses others by name
        index.set_direct_map_type(faiss.DirectMap.Hashtable)
    is_flat = isinstance(index, faiss.IndexIVFFlat)
    return _Opened(
        keys=keys,
        rows_at=lambda positions: index.reconstruct_batch(keys[positions]),
        kinds=(name,),
        lossy=() if is_flat else (_reason(faiss, index),),
    )


def _by_runs(storage: Any, positions: NDArray[np.int64]) -> NDArray[np.float32]:
    """Rows at positions (n,): whole runs at once."""
    rows = np.empty((len(positions), storage.d), np.float32)
    starts = np.flatnonzero(np.diff(positions, prepend=positions[:1] - 2) != 1)
    ends = np.append(starts[1:], len(positions))
    if len(starts) > max(16, len(positions) // 16):
        return np.asarray(storage.reconstruct_batch(positions), np.float32)
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        rows[start:end] = storage.reconstruct_n(int(positions[start]), end - start)
    return rows


def _reason(faiss: Any, index: Any) -> str:
    """Why the rows of a kind of index are not those that were added."""
    quantizer = getattr(index, "sq", None)
    if quantizer is not None:
        kinds = {getattr(faiss.ScalarQuantizer, name): text for name, text in _HALF.items()}
        if quantizer.qtype in kinds:
            return f"components are kept in {kinds[quantizer.qtype]}"
        return "components are kept as whole numbers of few bits: they are reconstructions"
    name = type(index).__name__
    return f"{name} keeps only codes: they are reconstructions"


if __name__ == "__main__":
    answer_parent(read)
