"""Vectors in files of other engines and tools, read as rows with their keys or ids.

``open_source`` finds the form by the file's first bytes. FAISS and usearch run in a process of
their own: what they do with a damaged file, and the OpenMP that they bring, stay there.
"""

from __future__ import annotations

from compatctl.index.sources.detection import Form, form_of, is_usearch
from compatctl.index.sources.hnswlib_rows import hnswlib_rows
from compatctl.index.sources.opening import open_source
from compatctl.index.sources.rows import ForeignRows

__all__ = ["ForeignRows", "Form", "form_of", "hnswlib_rows", "is_usearch", "open_source"]
