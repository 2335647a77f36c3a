"""Milliseconds an image that lies in a larger file: in order, and out of order.

The same random bytes as class folders, Parquet (row groups of 100 and of 1,000), and WebDataset.
Bytes are read, not decoded. Beside it: MiB of Arrow's memory after all were read in order.

    python -m benchmarks.speed.stored_images [--count N] [--size BYTES]
"""

from __future__ import annotations

import argparse
import io
import random
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from compatctl.data import Dataset, load

SAMPLE = 300
"""Images that are read out of order."""


def folders(top: Path, images: Sequence[bytes]) -> Path:
    """Files in one class folder."""
    (top / "class").mkdir(parents=True)
    for row, image in enumerate(images):
        (top / "class" / f"{row:06d}.png").write_bytes(image)
    return top


def parquet(path: Path, images: Sequence[bytes], rows: int) -> Path:
    """A table of row groups of ``rows``."""
    ids = [str(row) for row in range(len(images))]
    table = pa.table({"id": ids, "label": ["class"] * len(ids), "image": pa.array(images)})
    pq.write_table(table, path, row_group_size=rows)
    return path


def archive(path: Path, images: Sequence[bytes]) -> Path:
    """A tar archive of images and their classes."""
    with tarfile.open(path, "w") as tar:
        for row, image in enumerate(images):
            for name, data in ((f"{row}.png", image), (f"{row}.cls", b"class")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def milliseconds(data: Dataset, rows: Sequence[int]) -> float:
    """Milliseconds an image."""
    start = time.perf_counter()
    for row in rows:
        data.original(row, 1 << 30)
    return (time.perf_counter() - start) / len(rows) * 1000


def main() -> None:
    """Print a line for each form."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--size", type=int, default=100_000)
    arguments = parser.parse_args()
    images = [random.Random(row).randbytes(arguments.size) for row in range(arguments.count)]
    shuffled = random.Random(0).sample(range(len(images)), min(SAMPLE, len(images)))
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        forms = {
            "class folders": folders(top / "folders", images),
            "Parquet, 100 rows": parquet(top / "100.parquet", images, 100),
            "Parquet, 1,000 rows": parquet(top / "1000.parquet", images, 1000),
            "WebDataset": archive(top / "all.tar", images),
        }
        images.clear()
        print(f"{'':20} load s  in order ms  out of order ms  Arrow MiB")
        for form, path in forms.items():
            start = time.perf_counter()
            data = load(path)
            seconds = time.perf_counter() - start
            ordered = milliseconds(data, range(len(data)))
            memory = pa.total_allocated_bytes() / (1 << 20)
            out = milliseconds(data, shuffled)
            print(f"{form:20} {seconds:6.2f}  {ordered:11.2f}  {out:15.2f}  {memory:9.0f}")


if __name__ == "__main__":
    main()
