"""The ANN index: hnswlib behind checks that it does not make itself."""

from __future__ import annotations

from compatctl.index.checks import check_layout
from compatctl.index.hnsw import HnswIndex
from compatctl.index.layout import HnswHeader, NotUnitError, read_header
from compatctl.index.marks import checksums_of, find_checksums, read_keys, read_rows
from compatctl.index.params import HnswParams
from compatctl.index.reading import read_all
from compatctl.index.rebuilding import (
    build_mapped,
    build_with_replacements,
    build_without,
    build_without_deleted,
    count_deleted,
)
from compatctl.index.tuning import EfTuning, recall_at, recall_per_query, tune_ef

__all__ = [
    "EfTuning",
    "HnswHeader",
    "HnswIndex",
    "HnswParams",
    "NotUnitError",
    "build_mapped",
    "build_with_replacements",
    "build_without",
    "build_without_deleted",
    "check_layout",
    "checksums_of",
    "count_deleted",
    "find_checksums",
    "read_all",
    "read_header",
    "read_keys",
    "read_rows",
    "recall_at",
    "recall_per_query",
    "tune_ef",
]
