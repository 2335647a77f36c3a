"""The formats of a generation: its manifest, the catalogue of its rows, the list of erasures.

numpy is imported only to open a catalogue or erasures: status and rollback read manifests only.
"""

from __future__ import annotations

from compatctl.manifest._catalog import Catalog, unknown_digests
from compatctl.manifest._erasures import Erasures
from compatctl.manifest._manifest import (
    ENGINES,
    FORMAT,
    IndexInfo,
    Manifest,
    ModelShare,
    Operation,
    Rescoring,
    is_digest,
    refuse_other_format,
)

__all__ = [
    "ENGINES",
    "FORMAT",
    "Catalog",
    "Erasures",
    "IndexInfo",
    "Manifest",
    "ModelShare",
    "Operation",
    "Rescoring",
    "is_digest",
    "refuse_other_format",
    "unknown_digests",
]
