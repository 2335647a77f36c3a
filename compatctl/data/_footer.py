"""The null counts in a Parquet file's footer, which is Thrift in the compact protocol.

pyarrow gives them too, but a footer that is damaged there ends the process.
"""

from __future__ import annotations

import io
import struct
from typing import Any

MAX_FOOTER_BYTES = 1 << 26
"""Most bytes of a footer that are parsed."""

_MAGIC = b"PAR1"
_MAX_DEPTH = 16
_ROW_GROUPS, _COLUMNS, _META_DATA, _PATH, _STATISTICS, _NULL_COUNT = 4, 1, 3, 3, 12, 3
"""Numbers of fields in parquet.thrift: of FileMetaData, RowGroup, ColumnChunk, ColumnMetaData (two)
and Statistics."""
_TRUE, _FALSE, _BYTE, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = (1, 2, 3, *range(6, 13))


def null_counts(file: io.BufferedReader, column: str) -> list[int | None]:
    """How many values of a column (a path with dots) are null in each row group; None: unknown.

    Raises:
        ValueError: the footer cannot be read, or is over ``MAX_FOOTER_BYTES``.
    """
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 8))
    size, magic = struct.unpack("<I4s", file.read(8).rjust(8))
    if magic != _MAGIC or not size <= min(end - 8, MAX_FOOTER_BYTES):
        raise ValueError("no footer that can be read")
    file.seek(end - 8 - size)
    try:
        footer = _Compact(file.read(size)).value(_STRUCT)
        return [_null_count(group[_COLUMNS], column) for group in footer[_ROW_GROUPS]]
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError("a footer of another form") from error


def _null_count(chunks: list[Any], column: str) -> int | None:
    for chunk in chunks:
        described = chunk[_META_DATA]
        if b".".join(described[_PATH]) == column.encode():
            count = described.get(_STATISTICS, {}).get(_NULL_COUNT)
            return count if isinstance(count, int) else None
    return None


class _Compact:
    """A reader of Thrift's compact protocol: a struct is a dict by the numbers of its fields."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self, kind: int, depth: int = 0) -> Any:
        """The next value, of a kind that its struct or list names."""
        if depth > _MAX_DEPTH:
            raise ValueError("a footer that nests too deep")
        if kind in {_LIST, _SET, _STRUCT, _MAP}:
            nested = {_STRUCT: self._struct, _MAP: self._map}.get(kind, self._list)
            return nested(depth)
        if kind == _BINARY:
            return self._take(self._varint())
        if kind in {_TRUE, _FALSE, _BYTE}:
            return self._take(1)[0]
        if kind == _DOUBLE:
            return struct.unpack("<d", self._take(8))[0]
        return self._whole_number(kind)

    def _whole_number(self, kind: int) -> int:
        if not _BYTE < kind <= _I64:
            raise ValueError(f"a footer with the unknown type {kind}")
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _map(self, depth: int) -> None:
        size = self._varint()
        kinds = self._take(1)[0] if size else 0
        for _ in range(self._bounded(size)):
            self.value(kinds >> 4, depth + 1)
            self.value(kinds & 0xF, depth + 1)

    def _struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._take(1)[0]) != 0:
            kind = head & 0xF
            number = number + (head >> 4) if head >> 4 else self.value(_I64)
            is_bool = kind in {_TRUE, _FALSE}
            fields[number] = kind == _TRUE if is_bool else self.value(kind, depth + 1)
        return fields

    def _list(self, depth: int) -> list[Any]:
        head = self._take(1)[0]
        size = head >> 4 if head >> 4 < 15 else self._varint()
        return [self.value(head & 0xF, depth + 1) for _ in range(self._bounded(size))]

    def _bounded(self, size: int) -> int:
        """A number of values, each of which has a byte or more."""
        if size > len(self._data) - self._at:
            raise ValueError("a footer that is cut short")
        return size

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._take(1)[0]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number
            if shift > 63:
                raise ValueError("a footer with a number of too many bytes")

    def _take(self, size: int) -> bytes:
        data = self._data[self._at : self._at + size]
        if len(data) < size:
            raise ValueError("a footer that is cut short")
        self._at += size
        return data
