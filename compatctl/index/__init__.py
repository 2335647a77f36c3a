"""The ANN index: hnswlib behind checks that it does not make itself."""

from __future__ import annotations

from compatctl.index.checks import check_layout
from compatctl.index.hnsw import HnswIndex
from compatctl.index.layout import HnswHeader, NotUnitError, read_header
from compatctl.index.marks import held_marks, marks_of_rows, read_keys, read_rows
from compatctl.index.params import HnswParams
from compatctl.index.reading import read_all
from compatctl.index.rebuilding import count_deleted, live, mapped, rebuilt, reduced
from compatctl.index.tuning import EfTuning, recall_at, shares_found, tune_ef

__all__ = [
    "EfTuning",
    "HnswHeader",
    "HnswIndex",
    "HnswParams",
    "NotUnitError",
    "check_layout",
    "count_deleted",
    "held_marks",
    "live",
    "mapped",
    "marks_of_rows",
    "read_all",
    "read_header",
    "read_keys",
    "read_rows",
    "rebuilt",
    "recall_at",
    "reduced",
    "shares_found",
    "tune_ef",
]
