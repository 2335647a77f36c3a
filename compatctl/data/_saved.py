"""Data sets that Hugging Face's ``save_to_disk`` wrote: Arrow files and their description.

They are read by pyarrow alone. An image lies in one piece in its file, and is read from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compatctl.data._arrow import TablePlan, arrow_errors, plan_of, require_pyarrow
from compatctl.data._columns import Fields
from compatctl.data._folders import fields_of_split
from compatctl.data._lazy import FileRanges, RowCounter, StoredImage, StoredRow
from compatctl.data._tables import CellBudget
from compatctl.errors import InputError
from compatctl.files import parse_json
from compatctl.files.npz import open_regular
from compatctl.notices import notice

if TYPE_CHECKING:
    import pyarrow as pa

MAX_DESCRIPTION = 1 << 24
"""Most bytes of a description (JSON)."""


def saved_rows(top: Path, fields: Fields) -> Iterator[StoredRow]:
    """The rows of a saved data set, or of the splits of a saved dict of them.

    Splits named train, validation or test (or the like) are the items' splits.

    Raises:
        InputError: a description or file is missing, damaged or of another form; a column is
            missing; or a type that a field cannot have.
        UsageError: pyarrow is not installed.
    """
    require_pyarrow(top)
    if not (top / "dataset_dict.json").is_file():
        yield from _split_rows(top, top, fields, {}, "")
        return
    names = _described(top / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not all(_is_name(name) for name in names):
        raise InputError(f"{top}: its dataset_dict.json names no splits")
    known = {name: fields_of_split(name) for name in names}
    shown = [f"{name!r} as {record['split']}" for name, record in known.items() if record]
    if shown:
        notice("split-folders", top, "splits of the data set that are read as ours", shown)
    unknown = [repr(name) for name, record in known.items() if record is None]
    if unknown:
        result = "the class decides there, by split: in compatctl.yaml"
        notice(
            "split-folders", top, "splits of the data set with a name of their own", unknown, result
        )
    for name in names:
        yield from _split_rows(top, top / name, fields, known[name] or {}, f"{name}/")


def arrow_rows(path: Path, fields: Fields) -> Iterator[StoredRow]:
    """The rows of one Arrow file in the stream format; see ``saved_rows`` for errors."""
    require_pyarrow(path)
    yield from RowCounter().counted(_file_rows(path, fields, None, path), {}, "")


def _split_rows(
    top: Path, folder: Path, fields: Fields, record: Mapping[str, object], prefix: str
) -> Iterator[StoredRow]:
    state = _described(folder / "state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise InputError(
            f"{folder}: its rows are chosen by an index file of an old version of datasets",
            tip="load it with datasets, and save it again",
        )
    entries = state.get("_data_files")
    files = [entry.get("filename") for entry in entries or () if isinstance(entry, dict)]
    if not files or not all(_is_name(name) for name in files):
        raise InputError(f"{folder}: its state.json names no data files")
    features = _described(folder / "dataset_info.json").get("features")
    features = features if isinstance(features, dict) and features else None
    counter = RowCounter()
    for name in files:
        rows = _file_rows(folder / str(name), fields, features, top)
        yield from counter.counted(rows, record, prefix)


def _is_name(name: object) -> bool:
    """Whether it is the bare name of a file or folder."""
    return isinstance(name, str) and name not in {"", ".", ".."} and Path(name).name == name


def _described(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        with open_regular(path) as file:
            content = file.read(MAX_DESCRIPTION + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_DESCRIPTION:
        raise InputError(f"{path}: more than {MAX_DESCRIPTION} bytes")
    value = parse_json(content, str(path))
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def _file_rows(
    path: Path, fields: Fields, features: Mapping[str, Any] | None, source: Path
) -> Iterator[StoredRow]:
    import pyarrow as pa

    with arrow_errors(path, "an Arrow stream"):
        images = FileRanges(path)
        with pa.memory_map(str(path)) as mapped:
            content = mapped.read_buffer()
            reader = pa.ipc.open_stream(content)
            plan = plan_of(reader.schema, fields, source, features)
            cells_left = CellBudget(path)
            row = 0
            for batch in reader:
                batch.validate(full=True)  # or a damaged file ends the process
                cells_left.take(batch.num_rows * max(1, len(plan.scalars)))
                for record, image in _batch_rows(batch, plan, images, content):
                    yield f"{path}, row {row}", record, image
                    row += 1


def _batch_rows(
    batch: pa.RecordBatch, plan: TablePlan, images: FileRanges, content: pa.Buffer
) -> Iterator[tuple[dict[str, object], StoredImage | None]]:
    values = plan.columns(batch)
    sizes = starts = np.zeros(batch.num_rows, np.int64)
    if plan.image is not None:
        column = batch.column(plan.image)
        encoded = column.field("bytes") if plan.nested else column
        starts, sizes = _ranges(encoded, content, images)
        sizes = np.where(column.is_valid().to_numpy(zero_copy_only=False), sizes, 0)
        if plan.nested and not sizes.all() and column.type.get_field_index("path") >= 0:
            values["path"] = column.field("path").to_pylist()
    for row in range(batch.num_rows):
        record = {name: column[row] for name, column in values.items()}
        start, size = int(starts[row]), int(sizes[row])
        yield record, images.add(start, size) if size else None


def _ranges(
    encoded: pa.Array, content: pa.Buffer, images: FileRanges
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First byte in the file and size of each of n values; the size is 0 where there is none.

    Raises:
        InputError: the values are not in the file as they are.
    """
    import pyarrow as pa

    n = len(encoded)
    _, offsets, data = encoded.buffers()
    if data is None or not n:
        return np.zeros(n, np.int64), np.zeros(n, np.int64)
    kind = np.int64 if pa.types.is_large_binary(encoded.type) else np.int32
    limits = np.frombuffer(offsets, kind)[encoded.offset : encoded.offset + n + 1].astype(np.int64)
    begin = data.address - content.address
    if not (begin >= 0 and begin + data.size <= content.size):
        raise InputError(
            f"{images}: its columns are compressed: an image in it is not where it can be read",
            tip="write the data as Parquet",
        )
    valid = encoded.is_valid().to_numpy(zero_copy_only=False)
    sizes = np.where(valid, np.diff(limits), 0)
    if (sizes < 0).any() or limits.min() < 0 or limits.max() > data.size:
        raise InputError(f"{images}: damaged: the places of its images are impossible")
    return begin + limits[:-1], sizes
