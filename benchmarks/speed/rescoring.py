"""A re-scored search against a plain one, and opening a side file of many rows.

    python -m benchmarks.speed.rescoring [--records N] [--dim D] [--rows N] [--queries Q]

First a side file of ``--records`` free vectors is written, and opened in a process of its own:
seconds and MiB beside those of reading all of its bytes, with the file in memory and then from the
disk. Then an index of ``--rows`` rows is
searched query by query, for ten answers: plainly, and with the ten ranked again by the vectors of
a side file that has all of them. A query's own pass through the encoder is in neither side.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from compatctl.core.nearest import Neighbours
from compatctl.core.rescoring import KnownVectors, MergeRule, rescore
from compatctl.index import HnswIndex, HnswParams
from compatctl.store.side_file import SideFile

MODEL = hashlib.sha256(b"the model").hexdigest()
BLOCK, K = 50_000, 10
RULE = MergeRule(weight=0.5, slope=0.3, intercept=0.1)


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    """Random unit rows, float32."""
    values = np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32)
    normalised: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normalised


def fill(folder: Path, records: int, dim: int) -> float:
    """Write the side file in blocks; return the seconds."""
    began = time.perf_counter()
    side = SideFile.open(folder, MODEL, dim)
    for start in range(0, records, BLOCK):
        count = min(BLOCK, records - start)
        ids = [f"item {row}" for row in range(start, start + count)]
        side.append(ids, unit(count, dim, start))
    side.close()
    return time.perf_counter() - began


def opened(folder: Path, dim: int, records: int) -> dict[str, float]:
    """Seconds and MiB of opening the file, and of the first lookup of ten rows."""
    before = _private()
    began = time.perf_counter()
    side = SideFile.open(folder, MODEL, dim)
    seconds, private = time.perf_counter() - began, _private() - before
    assert side.count == records
    ids = [f"item {row}" for row in np.random.default_rng(1).integers(0, records, K)]
    began = time.perf_counter()
    assert side.lookup(ids)[1].all()
    lookup = time.perf_counter() - began
    return {"seconds": seconds, "mib": private, "lookup": lookup}


def read(folder: Path) -> dict[str, float]:
    """Seconds of reading every byte of the file."""
    (path,) = (folder / "side").glob("*.vectors")
    began = time.perf_counter()
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass
    return {"seconds": time.perf_counter() - began, "bytes": float(path.stat().st_size)}


def evict(folder: Path) -> None:
    """Drop the file from the system's memory, as far as the system follows the advice."""
    (path,) = (folder / "side").glob("*.vectors")
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def searched(folder: Path, rows: int, dim: int, queries: int) -> dict[str, float]:
    """Milliseconds of a plain and of a re-scored search, the median of all queries each."""
    gallery, asked = unit(rows, dim, 5), unit(queries, dim, 6)
    index = HnswIndex.create(HnswParams(dim=dim), rows)
    index.add(gallery, np.arange(rows, dtype=np.uint64))
    side = SideFile.open(folder, MODEL, dim)
    ids = [f"item {row}" for row in range(rows)]
    plain, again = [], []
    for query in asked:
        began = time.perf_counter()
        keys, scores = index.search(query[None], K, 64)
        plain.append(time.perf_counter() - began)
        found = keys.astype(np.int64)
        touched = np.unique(found)
        vectors, held = side.lookup([ids[row] for row in touched.tolist()])
        assert held.all()
        cosines = KnownVectors(rows=touched, vectors=vectors).cosines(query[None], found)
        rescore(Neighbours(rows=found, scores=scores), cosines, RULE)
        again.append(time.perf_counter() - began)
    return {
        "plain": 1e3 * float(np.median(plain)),
        "again": 1e3 * float(np.median(again)),
    }


def alone(function: Any, *arguments: Any) -> Any:
    """What the function returns in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _private() -> float:
    """MiB that only this process holds: mapped files are not in it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(fields["RssAnon"].split()[0]) / 1024


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = fill(folder, given.records, given.dim)
        every = alone(read, folder)
        cost = alone(opened, folder, given.dim, given.records)
        evict(folder)
        cold = alone(opened, folder, given.dim, given.records)
        evict(folder)
        from_disk = alone(read, folder)
        print(
            f"{given.records} records of {given.dim} dimensions, {every['bytes'] / 2**20:.0f} MiB, "
            f"written in {written:.1f} s"
        )
        print(f"  open   {cost['seconds']:8.3f} s, {cost['mib']:6.0f} MiB of its own")
        print(f"  read   {every['seconds']:8.3f} s, all bytes, from memory")
        print(f"  ratio  {cost['seconds'] / every['seconds']:8.3f}")
        print(f"  open   {cold['seconds']:8.3f} s, from the disk")
        print(f"  read   {from_disk['seconds']:8.3f} s, all bytes, from the disk")
        print(f"  ratio  {cold['seconds'] / from_disk['seconds']:8.3f}")
        print(f"  first lookup of {K} rows: {1e3 * cost['lookup']:.2f} ms")
        rows = min(given.rows, given.records)
        took = alone(searched, folder, rows, given.dim, given.queries)
    print(f"{rows} rows, {given.queries} queries, {K} answers, all free vectors kept")
    print(f"  plain search      {took['plain']:7.3f} ms")
    print(f"  re-scored search  {took['again']:7.3f} ms")
    print(f"  ratio             {took['again'] / took['plain']:7.3f}")
    print(f"peak of this process: {_peak():.0f} MiB")


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
