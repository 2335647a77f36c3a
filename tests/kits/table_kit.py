"""The same few items in every form of data that holds images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("ant", "bee", "cat")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An item, and the bytes of its PNG."""

    id: str
    label: str
    split: str
    vendor: str
    png: bytes


def png(seed: int, side: int = 16) -> bytes:
    """A deterministic PNG."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def samples(n: int = 12) -> list[Sample]:
    """``n`` items with leading zeros in their ids, of three classes and two splits."""
    return [
        Sample(
            id=f"{row:04d}",
            label=CLASSES[row % 3],
            split="train" if row < n // 2 else "test",
            vendor=("one", "two")[row % 2],
            png=png(row, 8 + row % 5),
        )
        for row in range(n)
    ]


def columns(items: Sequence[Sample], image: str = "binary") -> dict[str, Any]:
    """The columns of a table; ``image``: binary, large, or struct, as Hugging Face has it."""
    encoded = [item.png for item in items]
    images = {
        "binary": lambda: pa.array(encoded, pa.binary()),
        "large": lambda: pa.array(encoded, pa.large_binary()),
        "struct": lambda: pa.array(
            [{"bytes": data, "path": "x.png"} for data in encoded],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
    }
    return {
        "id": pa.array([item.id for item in items]),
        "image": images[image](),
        "label": pa.array([item.label for item in items]),
        "split": pa.array([item.split for item in items]),
        "vendor": pa.array([item.vendor for item in items]),
    }


def write_parquet(path: Path, table: Mapping[str, Any], rows: int = 5, **options: Any) -> Path:
    """A Parquet file of row groups of ``rows``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(table)), path, row_group_size=rows, **options)
    return path


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    """A tar archive of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def tar_files(items: Sequence[Sample]) -> list[tuple[str, bytes]]:
    """The files of a WebDataset archive of these items."""
    files = []
    for item in items:
        described = json.dumps({"split": item.split, "vendor": item.vendor}).encode()
        files += [
            (f"{item.id}.png", item.png),
            (f"{item.id}.cls", item.label.encode()),
            (f"{item.id}.json", described),
        ]
    return files


FEATURES = {
    "image": {"_type": "Image"},
    "label": {"names": [*CLASSES], "_type": "ClassLabel"},
    "id": {"dtype": "string", "_type": "Value"},
    "vendor": {"dtype": "string", "_type": "Value"},
}


def write_saved(folder: Path, items: Sequence[Sample], *, batch: int = 4, files: int = 2) -> Path:
    """One split as ``save_to_disk`` writes it: Arrow streams and two descriptions."""
    folder.mkdir(parents=True, exist_ok=True)
    table = columns(items, "struct")
    table["label"] = pa.array([CLASSES.index(item.label) for item in items], pa.int64())
    del table["split"]
    metadata = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
    whole = pa.table(table).replace_schema_metadata(metadata)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    size = -(-len(items) // files)
    for number, name in enumerate(names):
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, whole.schema) as writer,
        ):
            writer.write_table(whole.slice(number * size, size), max_chunksize=batch)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))
    return folder


def write_saved_dict(folder: Path, items: Sequence[Sample]) -> Path:
    """The splits train and test, as ``save_to_disk`` of a dict of data sets writes them."""
    splits = ("train", "test")
    for split in splits:
        write_saved(folder / split, [item for item in items if item.split == split])
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    return folder


def _parquet(kind: str) -> Callable[[Path, Sequence[Sample]], Path]:
    return lambda folder, items: write_parquet(folder / "items.parquet", columns(items, kind))


def _shards(folder: Path, items: Sequence[Sample]) -> Path:
    for split in ("train", "test"):
        part = [item for item in items if item.split == split]
        for number, piece in enumerate((part[: len(part) // 2], part[len(part) // 2 :])):
            table = columns(piece)
            del table["split"]
            write_parquet(folder / f"hub/data/{split}-{number:05d}-of-00002.parquet", table)
    return folder / "hub"


def _tars(folder: Path, items: Sequence[Sample]) -> Path:
    half = len(items) // 2
    write_tar(folder / "tars/shards-000.tar", tar_files(items[:half]))
    write_tar(folder / "tars/shards-001.tar", tar_files(items[half:]))
    return folder / "tars"


def _arrow(folder: Path, items: Sequence[Sample]) -> Path:
    table = pa.table(columns(items, "large"))
    path = folder / "items.arrow"
    folder.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return path


FORMS: dict[str, Callable[[Path, Sequence[Sample]], Path]] = {
    "parquet": _parquet("binary"),
    "large": _parquet("large"),
    "struct": _parquet("struct"),
    "shards": _shards,
    "saved": lambda folder, items: write_saved_dict(folder / "saved", items),
    "arrow": _arrow,
    "tar": lambda folder, items: write_tar(folder / "all.tar", tar_files(items)),
    "tars": _tars,
}
"""Form -> what writes the items into a folder in that form, and returns what to load."""
