"""Exact search against the bare float32 matrix product of the same size, in GFLOP/s.

A search needs every score once, so the product is the floor under its time. The product is run in
tiles of several shapes, nothing is kept of it, and the fastest shape is what search is held
against. The sides take turns, so that a busy machine slows both.

    python -m benchmarks.speed.exact_search [--queries N] [--gallery N] [--dim N] [--k N]
                                            [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from compatctl.core.nearest import exact_search

SHAPES = [(rows, columns) for rows in (256, 1024, 2048, 4096) for columns in (1024, 4096, 8192)]
"""Tiles tried: queries x gallery rows."""


def unit_rows(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    """(n, d) float32 rows of length 1."""
    rows = rng.standard_normal((n, d), dtype=np.float32)
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def product(queries: np.ndarray, gallery: np.ndarray, shape: tuple[int, int]) -> None:
    """Every score, one tile after the other into the same buffer."""
    rows, columns = shape
    buffer = np.empty(rows * columns, dtype=np.float32)
    for top in range(0, len(queries), rows):
        part = queries[top : top + rows]
        for left in range(0, len(gallery), columns):
            tile = gallery[left : left + columns]
            out = buffer[: len(part) * len(tile)].reshape(len(part), len(tile))
            np.matmul(part, tile.T, out=out)


def seconds(run: Callable[[], object]) -> float:
    """How long one call takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def fastest_shape(queries: np.ndarray, gallery: np.ndarray) -> tuple[int, int]:
    """The tile in which the product is fastest, each timed twice on a part of the gallery."""
    part = gallery[: 4 * 8192]
    times = {
        shape: min(seconds(partial(product, queries, part, shape)) for _ in range(2))
        for shape in SHAPES
    }
    return min(times, key=lambda shape: times[shape])


def main() -> None:
    """Print the GFLOP/s of both sides, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    queries = unit_rows(rng, options.queries, options.dim)
    gallery = unit_rows(rng, options.gallery, options.dim)
    shape = fastest_shape(queries, gallery)
    sides: dict[str, Callable[[], object]] = {
        "product": lambda: product(queries, gallery, shape),
        "search": lambda: exact_search(queries, gallery, options.k),
    }
    work = 2e-9 * options.queries * options.gallery * options.dim
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            speeds[name].append(work / seconds(run))
    ratios = [a / b for a, b in zip(speeds["search"], speeds["product"], strict=True)]
    if options.json:
        sizes = {name: getattr(options, name) for name in ("queries", "gallery", "dim", "k")}
        print(json.dumps({**sizes, "tile": shape, "gflops": speeds, "ratios": ratios}))
        return
    print(
        f"{options.queries} queries, {options.gallery} x {options.dim} gallery, k = {options.k}, "
        f"{options.rounds} rounds, product in tiles of {shape[0]} x {shape[1]}"
    )
    for name, samples in speeds.items():
        print(
            f"{name:8} {statistics.median(samples):7.1f} GFLOP/s  (median; best {max(samples):.1f})"
        )
    print(f"{'ratio':8} {statistics.median(ratios):7.3f}  (lowest {min(ratios):.3f})")


if __name__ == "__main__":
    main()
