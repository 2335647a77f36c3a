"""Open a file of any form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compatctl.index.sources.child import read_in_child
from compatctl.index.sources.detection import Form
from compatctl.index.sources.rows import ForeignRows
from compatctl.index.sources.tables import read_npy, read_npz_table, read_parquet


def open_source(path: Path, form: Form, scratch: Path, columns: Mapping[str, str]) -> ForeignRows:
    """The rows of a file that is no hnswlib index; ``hnswlib_rows`` reads those.

    Args:
        scratch: an empty folder that must stay as long as the rows are used. FAISS, usearch and
            Parquet need 4 bytes a component there.
        columns: id, vector, label -> the name of the array or column.

    Raises:
        InputError: a library is not installed; a kind of index that is not read; no ids or vectors.
        DamagedError: the file cannot be read.
        CompatError: there is no space in ``scratch``.
    """
    if form is Form.NPY:
        return read_npy(path)
    if form is Form.NPZ:
        return read_npz_table(path, columns)
    if form is Form.PARQUET:
        return read_parquet(path, columns, scratch)
    module = "faiss_file" if form is Form.FAISS else "usearch_file"
    library = "faiss" if form is Form.FAISS else "usearch"
    return read_in_child(path, scratch, module=module, library=library, name=form.value)
