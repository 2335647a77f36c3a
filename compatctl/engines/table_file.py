"""The file by which a generation names a table: one line of JSON, then 8 bytes a row.

The line says where the table is and how it is searched; the bytes are a checksum of each adopted
row, in the order of the catalogue. The file's digest is the ``index`` of a generation.

Where a side table has some of the rows, the line says so. One bit for each row follows, which says
whether it is there, and a checksum of each of those as the side table has it.
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
from compatctl.engines.side import SideTable
from compatctl.errors import DamagedError
from compatctl.files import os_errors, parse_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT, _WITH_SIDE = 1, 2
_MAX_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True, eq=False)
class RowChecksums:
    """A checksum of each adopted row.

    Attributes:
        table: (N,) as the application's table has it.
        in_side: (N,) whether a side table has the row, which is then searched there.
        side: (M,) of those rows, as the side table has them.
    """

    table: NDArray[np.uint64]
    in_side: NDArray[np.bool_]
    side: NDArray[np.uint64]

    @classmethod
    def of_table(cls, checksums: NDArray[np.uint64]) -> RowChecksums:
        """Those (N,) of rows that are all the application's."""
        import numpy as np

        none = np.zeros(0, np.uint64)
        return cls(table=checksums, in_side=np.zeros(len(checksums), bool), side=none)


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table that a store adopted.

    Attributes:
        id_type: of the id column; ``vector_type``: vector, halfvec or FLOAT_VECTOR.
        operator: of the order: of SQL, or a metric type of Milvus.
        iterative_scan: whether pgvector had it when the table was adopted.
        rows: how many were adopted.
        side: the side table that has some of them, or all.
    """

    location: TableLocation | CollectionLocation
    id_type: str
    vector_type: str
    operator: str
    iterative_scan: bool
    rows: int
    side: SideTable | None = None

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

    def table_dim(self, dim: int) -> int:
        """The dimension of the application's vectors, of a gallery of ``dim`` dimensions."""
        return dim if self.side is None else self.side.table_dim

    def write(self, path: Path, checksums: RowChecksums) -> None:
        """Write a new file, with the checksums of each row."""
        import numpy as np

        entries: dict[str, Any] = {name: getattr(self, name) for name in _ENTRIES}
        entries |= {"location": self.location.to_json(), "format": _FORMAT, "engine": self.engine}
        if self.side is not None:
            entries |= {"format": _WITH_SIDE, "side": self.side.to_json()}
        line = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode("ascii")
        with path.open("xb") as file:
            file.write(line + b"\n")
            file.write(checksums.table.astype("<u8").tobytes())
            if self.side is not None:
                file.write(np.packbits(checksums.in_side).tobytes())
                file.write(checksums.side.astype("<u8").tobytes())

    @classmethod
    def read(cls, path: Path) -> Self:
        """The line of a file; its digest is the caller's to check.

        Raises:
            DamagedError: the file is something else.
        """
        with os_errors("reading", path), path.open("rb") as file:
            line = file.readline(_MAX_LINE)
        raw = parse_json(line, path, error=DamagedError)
        if not isinstance(raw, dict) or raw.keys() - {"side"} != _KEYS:
            raise DamagedError(f"{path}: not the file of a table")
        form = _WITH_SIDE if "side" in raw else _FORMAT
        if raw["format"] != form or raw["engine"] not in _LOCATIONS:
            raise DamagedError(f"{path}: the file of a table in a form that is not known")
        entries: dict[str, Any] = {name: raw[name] for name in _ENTRIES}
        location = _LOCATIONS[raw["engine"]].from_json(raw["location"], str(path))
        side = SideTable.from_json(raw["side"], str(path)) if "side" in raw else None
        return cls(**entries, location=location, side=side)

    def read_checksums(self, path: Path) -> RowChecksums:
        """The checksums of the adopted rows.

        Raises:
            DamagedError: the file has another number of them.
        """
        import numpy as np

        with os_errors("reading", path), path.open("rb") as file:
            file.readline(_MAX_LINE)
            content = file.read()
        inside = 0 if self.side is None else self.side.rows
        bits = 0 if self.side is None else (self.rows + 7) // 8
        if len(content) != 8 * self.rows + bits + 8 * inside:
            raise DamagedError(f"{path} has {len(content)} bytes for {self.rows} rows")
        table = np.frombuffer(content, "<u8", self.rows).astype(np.uint64)
        if self.side is None:
            return RowChecksums.of_table(table)
        packed = np.frombuffer(content, np.uint8, bits, 8 * self.rows)
        in_side = np.unpackbits(packed, count=self.rows).astype(bool)
        if int(in_side.sum()) != inside:
            raise DamagedError(f"{path} marks {int(in_side.sum())} rows, not {inside}")
        side = np.frombuffer(content, "<u8", inside, 8 * self.rows + bits).astype(np.uint64)
        return RowChecksums(table=table, in_side=in_side, side=side)


_ENTRIES = ("id_type", "vector_type", "operator", "iterative_scan", "rows")
_KEYS = {*_ENTRIES, "location", "format", "engine"}
_LOCATIONS: dict[str, type[TableLocation] | type[CollectionLocation]] = {
    PGVECTOR: TableLocation,
    MILVUS: CollectionLocation,
}
_SPACES = {
    "<=>": "cosine", "<#>": "ip", "<->": "l2", "COSINE": "cosine", "IP": "ip", "L2": "l2",
}  # fmt: skip
