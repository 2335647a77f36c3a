"""The store: immutable files named by their digest, and generations that name them.

    store/
      manifest.json              the current generation, whole: one read tells a server everything
      history/000007.json        every generation, immutable, each with the digest of the one before
      models/<sha256>.onnx       one self-contained file a model
      indexes/<sha256>.hnsw
      catalogs/<sha256>.npz      row -> item id, class, key in the index, which model embedded it
      reports/<sha256>.json
      registries/<sha256>.json
      LOCK                       held by the one writer

Replacing manifest.json is the commit: a process killed before it has changed nothing, and what it
left behind is unreferenced. Reading writes nothing. Neither numpy nor an index is loaded here, but
for the catalogue.
"""

from __future__ import annotations

from compatctl.store._check import CheckReport
from compatctl.store._layout import KINDS
from compatctl.store._store import RollbackPlan, Store, rollback_plan
from compatctl.store._transaction import Transaction

__all__ = ["KINDS", "CheckReport", "RollbackPlan", "Store", "Transaction", "rollback_plan"]
