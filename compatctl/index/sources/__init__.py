"""Vectors in files of other engines and tools, read as rows with their keys or ids.

``form_of`` finds the form by the content. FAISS, usearch, LanceDB and Chroma run in a process of
their own: what they do with a damaged file, and the OpenMP that they bring, stay there.
"""

from __future__ import annotations

from compatctl.index.sources.databases import tables_of
from compatctl.index.sources.detection import DATABASES, Form, database_of, form_of, is_usearch
from compatctl.index.sources.hnswlib_rows import hnswlib_rows
from compatctl.index.sources.opening import open_source
from compatctl.index.sources.rows import ForeignRows

__all__ = [
    "DATABASES",
    "ForeignRows",
    "Form",
    "database_of",
    "form_of",
    "hnswlib_rows",
    "is_usearch",
    "open_source",
    "tables_of",
]
