"""A million features through verify: how much memory beyond the features themselves.

    python -m benchmarks.speed.large_features [--items 1000000] [--dim 512] [--queries 10000]

Writes two feature tables of gallery items and queries, runs ``compatctl verify old.npz new.npz`` on
them as a process of its own, and prints its seconds and its peak memory against the bytes of both
tables' features. Means, resampling, and exact hit@10 of every pair of models and of the mixed
gallery are in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CLASSES = 10_000


def write_tables(folder: Path, items: int, dim: int, queries: int) -> None:
    """old.npz and new.npz: (items + queries, dim) float32, the last rows queries."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, dim), dtype=np.float32)
    labels = np.concatenate([np.arange(items) % CLASSES, rng.integers(0, CLASSES, queries)])
    ids = np.arange(items + queries).astype("U8")
    role = np.array(["gallery"] * items + ["query"] * queries)
    for name, noise in (("old", 3.0), ("new", 2.7)):
        rows = np.empty((items + queries, dim), np.float32)
        for start in range(0, len(rows), 65_536):
            here = labels[start : start + 65_536]
            drawn = rng.standard_normal((len(here), dim), dtype=np.float32)
            rows[start : start + 65_536] = centres[here] + np.float32(noise) * drawn
        np.savez(
            folder / f"{name}.npz",
            ids=ids,
            labels=labels.astype("U8"),
            features=rows,
            role=role,
            similarity=np.array("cosine"),
        )


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a child's peak is never less than what its parent held.
        sizes = (folder, given.items, given.dim, given.queries)
        writer = multiprocessing.get_context("spawn").Process(target=write_tables, args=sizes)
        writer.start()
        writer.join()
        command = [sys.executable, "-m", "compatctl", "verify", "old.npz", "new.npz", "--json"]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE)
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    features = 2 * (given.items + given.queries) * given.dim * 4
    measured = {
        "seconds": seconds,
        "features_gib": features / 2**30,
        "peak_gib": usage.ru_maxrss / 2**20,
        "ratio": usage.ru_maxrss * 1024 / features,
        "verdict": report["verdict"]["outcome"],
        "hit_rate": report["groups"][0]["hit_rate"],
        "exit": os.waitstatus_to_exitcode(status),
    }
    if given.json:
        print(json.dumps(measured, indent=2, sort_keys=True))
        return
    print(f"{given.items} x {given.dim} in the gallery, {given.queries} queries")
    print(
        f"{measured['seconds']:.0f} s, peak {measured['peak_gib']:.2f} GiB, features "
        f"{measured['features_gib']:.2f} GiB, ratio {measured['ratio']:.2f}"
    )
    print(f"verdict {measured['verdict']}, hit rate {measured['hit_rate']}")


if __name__ == "__main__":
    main()
