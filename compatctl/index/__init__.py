"""The ANN index: hnswlib behind checks that it does not make itself."""

from __future__ import annotations

from compatctl.index.checks import check_layout
from compatctl.index.hnsw import HnswIndex
from compatctl.index.layout import HnswHeader, read_header
from compatctl.index.params import HnswParams
from compatctl.index.rebuilding import mapped, rebuilt
from compatctl.index.tuning import EfTuning, recall_at, shares_found, tune_ef

__all__ = [
    "EfTuning",
    "HnswHeader",
    "HnswIndex",
    "HnswParams",
    "check_layout",
    "mapped",
    "read_header",
    "rebuilt",
    "recall_at",
    "shares_found",
    "tune_ef",
]
