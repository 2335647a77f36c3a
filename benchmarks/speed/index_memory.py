"""Memory of adding to a large index: compatctl against hnswlib alone.

    python -m benchmarks.speed.index_memory [--rows 1000000] [--dim 128] [--added 1000]

Builds an index once in a process of its own (few candidates, all processors: its links do not
matter here, their number does). Then each side loads the file, makes room, adds rows and saves, in
a fresh process whose peak memory (ru_maxrss, the interpreter included) is held against the size of
the file. compatctl checks the file before it loads it, unless told that it did before, and reads
back what it saved.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compatctl.index import HnswIndex, HnswParams

SIDES = ("hnswlib", "compatctl", "compatctl, checked before")
BATCH = 8192


def params_of(dim: int) -> HnswParams:
    """Links as a deployed index has them, found in a hurry."""
    return HnswParams(dim=dim, M=16, ef_construction=20)


def unit_rows(seed: int, n: int, dim: int) -> np.ndarray:
    """(n, dim) float32 rows of length 1 around 1,000 directions."""
    centres = np.random.default_rng(0).standard_normal((1000, dim), dtype=np.float32)
    rng = np.random.default_rng([1, seed])
    rows = centres[rng.integers(0, 1000, n)] + rng.standard_normal((n, dim), dtype=np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def build(path: Path, rows: int, dim: int) -> None:
    """An index of that many rows, in batches."""
    index = HnswIndex.create(params_of(dim), rows)
    for start in range(0, rows, BATCH):
        keys = np.arange(start, min(start + BATCH, rows), dtype=np.uint64)
        index.add(unit_rows(start, len(keys), dim), keys, threads=os.cpu_count() or 1)
    index.save(path)


def grow(side: str, path: Path, rows: int, dim: int, added: int) -> None:
    """Load, add, save beside."""
    after = path.with_name("after.hnsw")
    after.unlink(missing_ok=True)
    new, keys = unit_rows(rows, added, dim), np.arange(rows, rows + added, dtype=np.uint64)
    if side == "hnswlib":
        import hnswlib

        bare = hnswlib.Index(space="ip", dim=dim)
        bare.load_index(str(path), max_elements=rows)
        bare.resize_index(rows + added)
        bare.add_items(new, keys, num_threads=1)
        bare.save_index(str(after))
        return
    index = HnswIndex.load(path, params_of(dim), rows, prevalidated=side != "compatctl")
    index.reserve(added)
    index.add(new, keys)
    index.save(after)


def measured(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of this file, run as a process of its own."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit status {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--added", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--side", choices=("build", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side == "build":
        build(given.path, given.rows, given.dim)
        return
    if given.side:
        grow(given.side, given.path, given.rows, given.dim, given.added)
        return
    sizes = {name: getattr(given, name) for name in ("rows", "dim", "added")}
    same = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "before.hnsw"
        pairs = {
            side: measured([*same, "--path", str(path), "--side", side])
            for side in ("build", *SIDES)
        }
        size = path.stat().st_size
    runs = {
        side: {"seconds": seconds, "peak_bytes": peak, "ratio": peak / size}
        for side, (seconds, peak) in pairs.items()
    }
    if given.json:
        print(json.dumps({**sizes, "file_bytes": size, "runs": runs}, indent=2))
        return
    print(f"{given.rows} x {given.dim}, {given.added} added; the file has {size / 1e6:.1f} MB")
    for side, values in runs.items():
        print(
            f"{side:25} peak {values['peak_bytes'] / 1e6:8.1f} MB  "
            f"{values['ratio']:.3f} x the file  {values['seconds']:6.1f} s"
        )


if __name__ == "__main__":
    main()
