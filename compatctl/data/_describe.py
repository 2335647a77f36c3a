"""What a table is: its columns and how many rows it has, read line by line."""

from __future__ import annotations

import ast
import csv
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from compatctl.data._arrow import arrow_errors, require_pyarrow
from compatctl.data._tables import open_table, text_lines
from compatctl.errors import InputError
from compatctl.files import os_errors
from compatctl.files.npz import PARSE_ERRORS, npz_shapes, open_regular

_SEPARATORS = (",", ";", "\t", "|")


@dataclass(frozen=True, kw_only=True)
class TableFacts:
    """A table: ``columns`` in its order, and its rows.

    ``shapes``: the shape of each array, and its type, where the columns are arrays.
    """

    form: str
    columns: tuple[str, ...]
    rows: int
    separator: str | None = None
    shapes: dict[str, str] = field(default_factory=dict)


def describe_table(path: Path) -> TableFacts:
    """Read the header of a table, and count its rows.

    Raises:
        InputError: no such file, none of these forms, or damaged.
        UsageError: Parquet, and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        arrays = npz_shapes(path)
        shapes = {name: f"{dtype} {list(shape)}" for name, (dtype, shape) in arrays.items()}
        rows = max((shape[0] for _, shape in arrays.values() if shape), default=0)
        return TableFacts(form="npz", columns=tuple(arrays), rows=rows, shapes=shapes)
    if suffix == ".npy":
        return _npy(path)
    if suffix == ".parquet":
        return _parquet(path)
    try:
        with os_errors("reading", path), open_table(path) as file:
            lines = text_lines(file, path)
            return _json_lines(lines) if suffix in {".jsonl", ".ndjson"} else _csv(lines)
    except (csv.Error, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no table in UTF-8 that can be read: {error}") from error


def _csv(lines: Iterable[str]) -> TableFacts:
    remaining = iter(lines)
    first = next(remaining, "")
    said = first.strip() if first.startswith("sep=") else ""
    if said:
        first = next(remaining, "")
    separator = said[4:5] or max(_SEPARATORS, key=first.count)
    reader = csv.reader(chain([first], remaining), delimiter=separator)
    columns = tuple(next(reader, []))
    rows = sum(1 for cells in reader if cells)
    return TableFacts(form="table", columns=columns, rows=rows, separator=separator)


def _json_lines(lines: Iterable[str]) -> TableFacts:
    columns: dict[str, None] = {}
    rows = 0
    for line in lines:
        if not line.strip():
            continue
        rows += 1
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError(f"line {rows} is no JSON object")
        columns.update(dict.fromkeys(map(str, entry)))
    return TableFacts(form="JSON lines", columns=tuple(columns), rows=rows)


def _npy(path: Path) -> TableFacts:
    """The header of an .npy file: its array is not read."""
    try:
        with os_errors("reading", path), open_regular(path) as file:
            magic = file.read(8)
            if magic[:6] != b"\x93NUMPY":
                raise ValueError(f"it begins with {magic[:6]!r}")
            width = "<H" if magic[6] == 1 else "<I"
            (size,) = struct.unpack(width, file.read(struct.calcsize(width)))
            header = ast.literal_eval(file.read(min(size, 10_000)).decode("latin1"))
            shape, kind = tuple(map(int, header["shape"])), str(header["descr"])
    except PARSE_ERRORS as error:
        raise InputError(f"{path}: is no .npy file that can be read: {error}") from error
    shown = f"{kind} {list(shape)}"
    return TableFacts(form="npy", columns=(), rows=shape[0] if shape else 0, shapes={"": shown})


def _parquet(path: Path) -> TableFacts:
    require_pyarrow(path)
    with arrow_errors(path, "Parquet"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        kinds = {name: str(schema.field(name).type) for name in schema.names}
        rows = file.metadata.num_rows
    return TableFacts(form="Parquet", columns=tuple(kinds), rows=rows, shapes=kinds)
