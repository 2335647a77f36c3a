"""The file by which a generation names a table: one line of JSON, then 8 bytes a row.

The line says where the table is and how it is searched; the bytes are a checksum of each adopted
row, in the order of the catalogue. The file's digest is the ``index`` of a generation.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from compatctl.engines.facts import MAX_EF
from compatctl.engines.location import PGVECTOR, TableLocation
from compatctl.engines.milvus.location import MAX_EF as MAX_MILVUS_EF
from compatctl.engines.milvus.location import MILVUS, CollectionLocation
from compatctl.errors import DamagedError
from compatctl.files import os_errors, parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT = 1
_MAX_LINE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table that a store adopted.

    Attributes:
        id_type: of the id column; ``vector_type``: vector, halfvec or FLOAT_VECTOR.
        operator: of the order: of SQL, or a metric type of Milvus.
        iterative_scan: whether pgvector had it when the table was adopted.
        rows: how many were adopted.
    """

    location: TableLocation | CollectionLocation
    id_type: str
    vector_type: str
    operator: str
    iterative_scan: bool
    rows: int

    @property
    def engine(self) -> str:
        """The engine's name in a manifest."""
        return PGVECTOR if isinstance(self.location, TableLocation) else MILVUS

    @property
    def space(self) -> str:
        """cosine, ip or l2."""
        return _SPACES[self.operator]

    @property
    def max_ef(self) -> int:
        """The largest effort of a search that the engine takes."""
        return MAX_EF if isinstance(self.location, TableLocation) else MAX_MILVUS_EF

    def write(self, path: Path, checksums: NDArray[np.uint64]) -> None:
        """Write a new file, with a checksum (N,) of each row."""
        entries: dict[str, Any] = {name: getattr(self, name) for name in _ENTRIES}
        entries |= {"location": self.location.to_json(), "format": _FORMAT, "engine": self.engine}
        line = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")
        with path.open("xb") as file:
            file.write(line + b"\n")
            file.write(checksums.astype("<u8").tobytes())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The line of a file; its digest is the caller's to check.

        Raises:
            DamagedError: the file is something else.
        """
        with os_errors("reading", path), path.open("rb") as file:
            line = file.readline(_MAX_LINE)
        raw = parse_json(line, path, error=DamagedError)
        if not isinstance(raw, dict) or raw.keys() != {*_ENTRIES, "location", "format", "engine"}:
            raise DamagedError(f"{path}: not the file of a table")
        if raw["format"] != _FORMAT or raw["engine"] not in _LOCATIONS:
            raise DamagedError(f"{path}: the file of a table in a form that is not known")
        entries: dict[str, Any] = {name: raw[name] for name in _ENTRIES}
        location = _LOCATIONS[raw["engine"]].from_json(raw["location"], str(path))
        return cls(**entries, location=location)

    def read_checksums(self, path: Path) -> NDArray[np.uint64]:
        """The checksum (N,) of each adopted row.

        Raises:
            DamagedError: the file has another number of them.
        """
        import numpy as np

        with os_errors("reading", path), path.open("rb") as file:
            file.readline(_MAX_LINE)
            checksums = np.frombuffer(file.read(), "<u8").astype(np.uint64)
        if len(checksums) != self.rows:
            raise DamagedError(f"{path} has {len(checksums)} checksums of {self.rows} rows")
        return checksums


_ENTRIES = ("id_type", "vector_type", "operator", "iterative_scan", "rows")
_LOCATIONS: dict[str, type[TableLocation] | type[CollectionLocation]] = {
    PGVECTOR: TableLocation,
    MILVUS: CollectionLocation,
}
_SPACES = {
    "<=>": "cosine", "<#>": "ip", "<->": "l2", "COSINE": "cosine", "IP": "ip", "L2": "l2",
}  # fmt: skip
