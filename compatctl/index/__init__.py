"""The ANN index: one subpackage an engine, behind ``VectorIndex``."""

from __future__ import annotations

from compatctl.index.engine.building import (
    BuiltTable,
    EngineRows,
    SideParams,
    WrittenBatch,
    write_side,
)
from compatctl.index.engine.index import EngineIndex
from compatctl.index.engine.reading import RowsNow, TableChanges, compare_table
from compatctl.index.faiss_header import FaissHeader, read_faiss_header
from compatctl.index.hnswlib.apart import IndexApart
from compatctl.index.hnswlib.index import HnswIndex, require_hnswlib
from compatctl.index.hnswlib.layout import read_header
from compatctl.index.hnswlib.params import HnswParams
from compatctl.index.hnswlib.reading import (
    count_deleted,
    read_all,
    read_keys,
    read_some,
)
from compatctl.index.hnswlib.rebuilding import (
    RowsAt,
    build_mapped,
    build_replaced,
    build_with_replacements,
    build_without,
    build_without_deleted,
)
from compatctl.index.protocol import BuiltIndex, VectorIndex
from compatctl.index.rows import KeyLookup, NotUnitError, row_checksums
from compatctl.index.sources import (
    DATABASES,
    ForeignRows,
    Form,
    database_of,
    form_of,
    hnswlib_rows,
    is_usearch,
    open_source,
    tables_of,
)
from compatctl.index.tuning import AnnRecalls

__all__ = [
    "DATABASES",
    "AnnRecalls",
    "BuiltIndex",
    "BuiltTable",
    "EngineIndex",
    "EngineRows",
    "FaissHeader",
    "ForeignRows",
    "Form",
    "HnswIndex",
    "HnswParams",
    "IndexApart",
    "KeyLookup",
    "NotUnitError",
    "RowsAt",
    "RowsNow",
    "SideParams",
    "TableChanges",
    "VectorIndex",
    "WrittenBatch",
    "build_mapped",
    "build_replaced",
    "build_with_replacements",
    "build_without",
    "build_without_deleted",
    "compare_table",
    "count_deleted",
    "database_of",
    "form_of",
    "hnswlib_rows",
    "is_usearch",
    "open_source",
    "read_all",
    "read_faiss_header",
    "read_header",
    "read_keys",
    "read_some",
    "require_hnswlib",
    "row_checksums",
    "tables_of",
    "write_side",
]
