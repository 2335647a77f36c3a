"""The store: immutable files named by their digest, and generations that name them.

    store/
      manifest.json              the current generation: a server reads only this file
      history/000007.json        every generation, immutable, each with the digest of the one before
      models/<sha256>.onnx       one self-contained file for each model
      canaries/<sha256>.npz      a few images and a model's embeddings of them, to compare later
      indexes/<sha256>.hnsw
      tables/<sha256>.table      in the place of an index: the table of another engine
      catalogs/<sha256>.npz      row -> item id, class, key in the index, which model embedded it
      reports/<sha256>.json
      registries/<sha256>.json
      memories/<sha256>.npz      training images of every class so far, for the next fine-tuning
      erasures/<sha256>.npz      digests of erased ids
      attempts/<digest>.json     verifications of a candidate on the same data, in no generation
      side/<sha256>.vectors      free vectors of a model for touched items, in no generation
      backfill/<sha256>.rows     vectors of a backfill's unfinished step, in no generation
      backfill/run.json          what an unfinished backfill spent of its budget
      LOCK                       held by the writer

Replacing manifest.json is the commit. A process killed before it changed nothing; the files it left
are unreferenced. Where the rows are in an engine, its row is switched before that (_switch).
Reading writes nothing, except that verify counts itself and that a re-scored
search keeps free vectors. numpy is loaded only to read a catalogue, erasures or a side file, and no
index is ever opened here.

A store in a bucket (``s3://BUCKET/PREFIX``) has the same files there; see _remote. This machine has
a copy of it in its cache, which every module here works on.

Modules, lowest first: _layout (paths, strict reading), _bucket (obstore), _copy (a bucket's
copy here), _remote (commits to a bucket), _remote_check, _switch (an engine's
row), _transaction (commits), _store (readers),
_lineage (how a state came about), _written_rows, _rollback, _transitions, _check, _gc. _attempts
needs only _remote, _backfill_run nothing.
side_file (with _side_records) and pending_rows are imported by name, because they load numpy.
"""

from __future__ import annotations

from compatctl.store._attempts import Attempt, read_attempts, record_attempt
from compatctl.store._backfill_run import backfill_lock, end_run, read_run, write_run
from compatctl.store._check import CheckReport, check
from compatctl.store._gc import gc, sweep
from compatctl.store._layout import KINDS, manifest_digest
from compatctl.store._lineage import (
    MODEL_FIELDS,
    embedding_space,
    embedding_spaces,
    rolled_back_models,
)
from compatctl.store._pending_layout import pending_count, pending_path
from compatctl.store._remote import (
    is_in_bucket,
    lies_at,
    shown_path,
    store_exists,
    store_path,
)
from compatctl.store._rollback import RollbackPlan, restore, rollback_plan
from compatctl.store._side_layout import (
    SideFileSize,
    delete_damaged_side_file,
    made_side_lock,
    side_bytes,
    side_path,
    side_size,
)
from compatctl.store._store import Store
from compatctl.store._switch import (
    Switch,
    engine_switch,
    finish_creation,
    recover,
    row_problems,
    table_file,
)
from compatctl.store._transaction import Transaction
from compatctl.store._written_rows import NOTHING, WrittenRows, written_rows

__all__ = [
    "KINDS",
    "MODEL_FIELDS",
    "NOTHING",
    "Attempt",
    "CheckReport",
    "RollbackPlan",
    "SideFileSize",
    "Store",
    "Switch",
    "Transaction",
    "WrittenRows",
    "backfill_lock",
    "check",
    "delete_damaged_side_file",
    "embedding_space",
    "embedding_spaces",
    "end_run",
    "engine_switch",
    "finish_creation",
    "gc",
    "is_in_bucket",
    "lies_at",
    "made_side_lock",
    "manifest_digest",
    "pending_count",
    "pending_path",
    "read_attempts",
    "read_run",
    "record_attempt",
    "recover",
    "restore",
    "rollback_plan",
    "rolled_back_models",
    "row_problems",
    "shown_path",
    "side_bytes",
    "side_path",
    "side_size",
    "store_exists",
    "store_path",
    "sweep",
    "table_file",
    "write_run",
    "written_rows",
]
