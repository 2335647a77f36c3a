"""The ANN index: hnswlib behind checks that it does not make itself."""

from __future__ import annotations

from compatctl.index.hnsw import HnswIndex, HnswParams
from compatctl.index.layout import HnswHeader, read_header
from compatctl.index.tuning import EfTuning, recall_at, shares_found, tune_ef

__all__ = [
    "EfTuning",
    "HnswHeader",
    "HnswIndex",
    "HnswParams",
    "read_header",
    "recall_at",
    "shares_found",
    "tune_ef",
]
