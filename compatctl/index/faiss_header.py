"""What the first bytes of a FAISS file say, read without FAISS."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from compatctl.errors import InputError
from compatctl.files import os_errors

_HEADER = struct.Struct("<4siqqqBi")
"""The kind, the dimension, the rows, two unused numbers, whether it is trained, the metric."""

_KINDS = {
    "IxFI": "Flat", "IxF2": "Flat", "IxFl": "Flat", "IwFl": "IVF,Flat", "IwPQ": "IVF,PQ",
    "IwQR": "IVF,PQR", "IwSq": "IVF,SQ", "IxPq": "PQ", "IxPQ": "PQ", "IxSQ": "SQ",
    "IHNf": "HNSW,Flat", "IHNp": "HNSW,PQ", "IHNs": "HNSW,SQ", "IHN2": "HNSW,2Level",
    "IxMp": "IDMap", "IxM2": "IDMap2", "IxPT": "PreTransform", "IxRF": "Refine",
    "INSf": "NSG,Flat", "IxHe": "LSH",
}  # fmt: skip
_LOSSY = ("PQ", "SQ", "LSH", "2Level")
_METRICS = {0: "ip", 1: "l2"}


@dataclass(frozen=True, kw_only=True)
class FaissHeader:
    """A FAISS index: its kind, ``dim``, rows, and metric.

    ``lossy``: the stored rows are approximations; None where an inner index decides.
    """

    kind: str
    dim: int
    rows: int
    metric: str
    trained: bool
    lossy: bool | None


def read_faiss_header(path: Path) -> FaissHeader:
    """Read the header.

    Raises:
        InputError: no such file, or none that FAISS writes.
    """
    with os_errors("reading", path), path.open("rb") as file:
        data = file.read(_HEADER.size)
    if len(data) < _HEADER.size:
        raise InputError(f"{path} is no FAISS index: it has {len(data)} bytes")
    code, dim, rows, _, _, trained, metric = _HEADER.unpack(data)
    name = code.decode("latin1")
    if dim < 1 or rows < 0 or trained > 1:
        raise InputError(f"{path} is no FAISS index: {dim} dimensions and {rows} rows")
    kind = _KINDS.get(name, f"unknown ({name})")
    outer = kind in {"IDMap", "IDMap2", "PreTransform", "Refine"} or kind.startswith("unknown")
    return FaissHeader(
        kind=kind,
        dim=dim,
        rows=rows,
        metric=_METRICS.get(metric, f"metric {metric}"),
        trained=bool(trained),
        lossy=None if outer else any(part in kind for part in _LOSSY),
    )
