"""The vectors that a store computed for an embedding space, beside the rows of an application.

A side table holds (id, batch, vector) and is only appended to. A batch is what one generation
added; the generation's file names the batches that are valid. So a batch of a command that was
killed, or of a generation that was rolled back, is there and is not searched: ``check --gc`` drops
it.

Of an id the newest valid batch decides. Where its vector is NULL, the row has ended: the
application wrote the item again, and its own row is searched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from compatctl.errors import DamagedError
from compatctl.files import sha256_bytes

ID, BATCH, VECTOR = "id", "batch", "embedding"
"""The columns of a side table."""
_LONGEST = 63
"""Bytes of a name in PostgreSQL."""
_INDEXED = {"vector": 2000, "halfvec": 4000}
"""A type -> the most dimensions that hnsw takes."""


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """The side table of a generation.

    Attributes:
        table: its name, in the schema of the application's table.
        vector_type, dim: of its vectors. ``table_dim``: of the application's.
        shared: the application's vectors are of the same space: what its model embeds anew is
            comparable. After a lift they are not.
        whole: every row of the generation is in it, and the application's vectors are not searched;
            false: the rows that it does not have are the application's, in the same space.
        batches: the valid ones, ascending.
        rows: how many rows of the generation are in it.
    """

    table: str
    vector_type: str
    dim: int
    table_dim: int
    shared: bool
    whole: bool
    batches: tuple[int, ...]
    rows: int

    @property
    def is_indexed(self) -> bool:
        """Whether hnsw takes so many dimensions."""
        return self.dim <= _INDEXED.get(self.vector_type, self.dim)

    def to_json(self) -> dict[str, Any]:
        """The entries as JSON values."""
        return {**asdict(self), "batches": list(self.batches)}

    @classmethod
    def from_json(cls, raw: object, where: str) -> Self:
        """The table of ``to_json``; DamagedError if it is something else."""
        if not isinstance(raw, Mapping) or raw.keys() != cls.__dataclass_fields__.keys():
            raise DamagedError(f"{where}: not a side table")
        batches = raw["batches"]
        numbers = [raw["dim"], raw["table_dim"], raw["rows"], *(batches or ())]
        if not isinstance(raw["table"], str) or not all(type(n) is int for n in numbers):
            raise DamagedError(f"{where}: not a side table")
        return cls(**{**raw, "batches": tuple(batches)})


def batch_table(table: str, batch: int) -> str:
    """The name of a batch where each is a collection of its own."""
    return f"{table}_{batch}"


def vector_type_of(dim: int) -> str:
    """The type of a side table's vectors: half precision only where hnsw takes no other."""
    return "vector" if dim <= _INDEXED["vector"] else "halfvec"


def side_name(row: str, model: str, *, plain: bool = False) -> str:
    """The name of the side table of a row of ``compatctl_deployment``, for the space that a model
    (its digest) began. The row is named by a digest where its name would be too long, or where
    ``plain`` asks for letters, digits and underscores, and it has others."""
    name = f"compatctl_{row}_{model[:12]}"
    fits = not plain or re.fullmatch(r"[A-Za-z0-9_]+", row) is not None
    if fits and len(name.encode()) <= _LONGEST:
        return name
    return f"compatctl_{sha256_bytes(row.encode())[:12]}_{model[:12]}"
