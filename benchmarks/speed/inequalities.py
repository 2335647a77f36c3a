"""Inequality means with 1,000 replicates: by sums over classes, against all pairs in blocks.

    python -m benchmarks.speed.inequalities [--items N] [--dim D] [--classes C] [--replicates B]

All sides take the same features, leave-one-out, and the same half-samples of the classes, and must
agree. ``all pairs`` weighs the pairs of every block by each replicate's weights of their two items,
in matrix products. ``all pairs, by class`` is the cleverest form of it: blocks are added up by pair
of classes first, and replicates weigh that table of classes x classes numbers. Prints seconds and
peak memory of each side, in a process of its own, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from compatctl.core.compatibility import inequalities
from compatctl.core.resampling import estimate_diff, estimate_same, half_samples

BLOCK = 2048


def features(items: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Old and new unit rows, and class codes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, items)
    centres = rng.standard_normal((classes, dim), dtype=np.float32)
    rows = []
    for noise in (1.5, 1.2):
        vectors = centres[labels] + noise * rng.standard_normal((items, dim), dtype=np.float32)
        rows.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return rows[0], rows[1], labels


def by_sums(given: argparse.Namespace, data: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """What verify does."""
    old, new, labels = data
    own = np.arange(len(old))
    means = inequalities(old, new, labels, old, labels, own, shares=False)
    both = [
        value(means.sums, given.replicates, np.random.default_rng(1))
        for value in (estimate_same, estimate_diff)
    ]
    return {
        "same": (both[0].value, *both[0].interval(0.95)),
        "different": (both[1].value, *both[1].interval(0.95)),
    }


def blocks(
    data: tuple[np.ndarray, ...],
) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """Rows, columns, every pair's change of cosine, and whether it counts: own pairs do not."""
    old, new, _ = data
    for top in range(0, len(old), BLOCK):
        rows = slice(top, top + BLOCK)
        for left in range(0, len(old), BLOCK):
            columns = slice(left, left + BLOCK)
            moved = new[rows] @ old[columns].T - old[rows] @ old[columns].T
            kept = np.ones(moved.shape, bool)
            if top == left:
                np.fill_diagonal(kept, val=False)
            yield rows, columns, moved, kept


def by_pairs(given: argparse.Namespace, data: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Every replicate weighs every pair by the weights of its items' classes."""
    labels = data[2]
    C, B = int(labels.max()) + 1, given.replicates
    W = np.concatenate(list(half_samples(C, B, np.random.default_rng(1)))).astype(np.float32)
    W = np.concatenate([np.ones((1, C), np.float32), W])[:, labels]  # the first row: the means
    total, count = np.zeros((2, B + 1)), np.zeros((2, B + 1))
    for rows, columns, moved, kept in blocks(data):
        same = labels[rows, None] == labels[None, columns]
        for kind, mask in enumerate((same & kept, ~same & kept)):
            # A class that is drawn weighs its own pairs once, by 2 and not by 4.
            right = W[:, columns] if kind else np.sign(W[:, columns])
            total[kind] += ((W[:, rows] @ (moved * mask)) * right).sum(axis=1, dtype=np.float64)
            pairs = W[:, rows] @ mask.astype(np.float32)
            count[kind] += (pairs * right).sum(axis=1, dtype=np.float64)
    values = total / count
    return {
        name: _ends(value[0], value[1:])
        for name, value in zip(("same", "different"), values, strict=True)
    }


def by_class_pairs(given: argparse.Namespace, data: tuple[np.ndarray, ...]) -> dict[str, Any]:
    """Every pair's change of cosine, added up by pair of classes."""
    labels = data[2]
    C = int(labels.max()) + 1
    totals, counts = np.zeros((C, C)), np.zeros((C, C))
    for rows, columns, moved, kept in blocks(data):
        pair = labels[rows, None] * C + labels[None, columns]
        totals += np.bincount(pair[kept], moved[kept], minlength=C * C).reshape(C, C)
        counts += np.bincount(pair[kept], minlength=C * C).reshape(C, C)
    same = _interval(np.diag(totals), np.diag(counts), given.replicates)
    np.fill_diagonal(totals, 0)
    np.fill_diagonal(counts, 0)
    return {"same": same, "different": _pair_interval(totals, counts, given.replicates)}


def _interval(totals: np.ndarray, counts: np.ndarray, n: int) -> tuple[float, float, float]:
    W = np.concatenate(list(half_samples(len(totals), n, np.random.default_rng(1))))
    return _ends(totals.sum() / counts.sum(), (W @ totals) / (W @ counts))


def _pair_interval(totals: np.ndarray, counts: np.ndarray, n: int) -> tuple[float, float, float]:
    W = np.concatenate(list(half_samples(len(totals), n, np.random.default_rng(1))))
    drawn = ((W @ totals) * W).sum(axis=1) / ((W @ counts) * W).sum(axis=1)
    return _ends(totals.sum() / counts.sum(), drawn)


def _ends(value: float, drawn: np.ndarray) -> tuple[float, float, float]:
    drawn, k = np.sort(drawn), int(0.025 * (len(drawn) + 1) + 1e-9)
    return float(value), float(drawn[k - 1]), float(drawn[-k])


def measured(side: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak memory of one side, in a fresh process; the features are not in the time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return dict(pool.apply(_timed, (side, given)))


def _timed(side: Any, given: argparse.Namespace) -> dict[str, Any]:
    data = features(given.items, given.dim, given.classes)
    side_of_one = [value[:100] for value in data]  # imports and threads are warm
    side(argparse.Namespace(replicates=10), (side_of_one[0], side_of_one[1], side_of_one[2] % 10))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    outcome = side(given, data)
    return {
        "seconds": time.perf_counter() - began,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mib": before / 1024,
        "found": outcome,
    }


def main() -> None:
    """Measure both sides in one run and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=2_000)
    parser.add_argument("--replicates", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sides = {
        "sums by class": measured(by_sums, given),
        "all pairs, by class": measured(by_class_pairs, given),
        "all pairs": measured(by_pairs, given),
    }
    sums = sides["sums by class"]
    for kind in ("same", "different"):
        for value in sides.values():
            np.testing.assert_allclose(value["found"][kind], sums["found"][kind], atol=1e-6)
            value["ratio"] = value["seconds"] / sums["seconds"]
    if given.json:
        print(json.dumps(sides, indent=2, sort_keys=True))
        return
    print(f"{given.items} items x {given.dim}, {given.classes} classes, {given.replicates} draws")
    for name, entry in sides.items():
        print(
            f"{name:<20} {entry['seconds']:8.2f} s  peak {entry['peak_mib']:6.0f} MiB  "
            f"ratio {entry['ratio']:6.1f}"
        )
    print("all sides give the same means and intervals to 1e-6")


if __name__ == "__main__":
    main()
