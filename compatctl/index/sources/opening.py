"""Open a file of any form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compatctl.index.sources.child import Library, read_in_child
from compatctl.index.sources.detection import Form
from compatctl.index.sources.rows import ForeignRows
from compatctl.index.sources.tables import read_npy, read_npz_table, read_parquet

_LIBRARIES = {
    Form.FAISS: Library(name="FAISS", package="faiss", extra="faiss", module="faiss_file"),
    Form.USEARCH: Library(
        name="usearch", package="usearch", extra="usearch", module="usearch_file"
    ),
    Form.LANCEDB: Library(
        name="LanceDB", package="lancedb", extra="lancedb", module="lancedb_folder"
    ),
    Form.CHROMA: Library(name="Chroma", package="chromadb", extra="chroma", module="chroma_folder"),
}


def open_source(
    path: Path, form: Form, scratch: Path, columns: Mapping[str, str], table: str | None = None
) -> ForeignRows:
    """The rows of a file that is no hnswlib index, or of a folder; ``hnswlib_rows`` reads hnswlib.

    Args:
        scratch: an empty folder that must stay as long as the rows are used. All forms but numpy's
            need 4 bytes a component there, and Chroma a copy of its folder while it is read.
        columns: id, vector, label -> the name of the array or column; for Chroma only label, a key
            of the metadata.
        table: of a LanceDB folder, or the collection of a Chroma folder; None: the only one.

    Raises:
        InputError: a library is not installed; a kind of index that is not read; no ids or vectors;
            no such table, or several and none is named.
        DamagedError: the file cannot be read.
        CompatError: there is no space in ``scratch``.
    """
    if form is Form.NPY:
        return read_npy(path)
    if form is Form.NPZ:
        return read_npz_table(path, columns)
    if form is Form.PARQUET:
        return read_parquet(path, columns, scratch)
    options: dict[str, Any] = {}
    if form is Form.LANCEDB:
        options = {"table": table, "columns": dict(columns)}
    if form is Form.CHROMA:
        options = {"table": table, "label": columns.get("label")}
    return read_in_child(path, scratch, _LIBRARIES[form], options)
