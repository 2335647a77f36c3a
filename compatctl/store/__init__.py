"""The store: immutable files named by their digest, and generations that name them.

    store/
      manifest.json              the current generation, whole: one read tells a server everything
      history/000007.json        every generation, immutable, each with the digest of the one before
      models/<sha256>.onnx       one self-contained file a model
      canaries/<sha256>.npz      a few inputs, and what a model made of them when it was taken in
      indexes/<sha256>.hnsw
      catalogs/<sha256>.npz      row -> item id, class, key in the index, which model embedded it
      reports/<sha256>.json
      registries/<sha256>.json
      memories/<sha256>.npz      training images of every class so far, for the next fine-tuning
      erasures/<sha256>.npz      digests of what was removed for good
      attempts/<digest>.json     how often a candidate was judged on the same data; of no generation
      LOCK                       held by the one writer

Replacing manifest.json is the commit: a process killed before it has changed nothing, and what it
left behind is unreferenced. Reading writes nothing, but that verify counts itself. Neither numpy
nor an index is loaded here, but for the catalogue.
"""

from __future__ import annotations

from compatctl.store._attempts import Attempt, attempts_of, count_attempt
from compatctl.store._check import CheckReport, check
from compatctl.store._gc import gc, sweep
from compatctl.store._layout import KINDS, manifest_digest
from compatctl.store._lineage import MODEL_FIELDS, embedding_space, rolled_back, spaces
from compatctl.store._rollback import RollbackPlan, restore, rollback_plan
from compatctl.store._store import Store
from compatctl.store._transaction import Transaction

__all__ = [
    "KINDS",
    "MODEL_FIELDS",
    "Attempt",
    "CheckReport",
    "RollbackPlan",
    "Store",
    "Transaction",
    "attempts_of",
    "check",
    "count_attempt",
    "embedding_space",
    "gc",
    "manifest_digest",
    "restore",
    "rollback_plan",
    "rolled_back",
    "spaces",
    "sweep",
]
