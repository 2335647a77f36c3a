"""verify on a whole store: how long, and how much memory beside the stored vectors.

    python -m benchmarks.speed.whole_gallery [--rows 100000] [--small 1000] [--dim 256]
                                             [--queries 2000]

Makes two stores, small and large, and runs ``compatctl verify`` with the same queries on both, each
as a process of its own. The peak of the large one is held against the bytes of its stored vectors;
what the small one takes is the interpreter, the libraries, the models and the queries. The data
hold queries alone, so that nothing is embedded but them. A million rows of 512 with 10,000 queries
are --rows 1000000 --dim 512 --queries 10000; the index takes far longer to build than to judge.
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
from typing import Any

SIDE = 16
CLASSES = 1000

ROOT = Path(__file__).resolve().parents[2]


def write_queries(path: Path, queries: int) -> None:
    """Random images of the stored classes, which the data do not hold in the gallery."""
    import numpy as np

    rng = np.random.default_rng(1)
    np.savez(
        path,
        images=rng.integers(0, 256, (queries, SIDE, SIDE, 3), dtype=np.uint8),
        ids=np.array([f"query-{at}" for at in range(queries)]),
        labels=np.array([f"class-{at % CLASSES:04d}" for at in range(queries)]),
        role=np.array(["query"] * queries),
        split=np.array(["test"] * queries),
    )


def judge(folder: Path) -> dict[str, Any]:
    """Seconds and peak bytes of one verify, and how many rows it says that it searched."""
    models = ("old.onnx", "new.onnx")
    command = [sys.executable, "-m", "compatctl", "verify", *models, "--data", "queries.npz"]
    environment = {**os.environ, "COMPATCTL_CACHE": str(folder / "cache")}
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--json"], cwd=folder, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in {0, 3, 4}:
        raise SystemExit(f"compatctl verify: exit code {process.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rows = json.loads(said)["searched"]["stored"]
    return {"seconds": time.perf_counter() - began, "peak_bytes": peak, "searched": rows}


def main() -> None:
    """Measure both stores."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--small", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    given = parser.parse_args()
    measured: dict[str, Any] = {"dim": given.dim, "queries": given.queries}
    with tempfile.TemporaryDirectory() as name:
        for side, rows in (("small", given.small), ("large", given.rows)):
            folder = Path(name) / side
            # In processes of their own: a child's peak is never less than what its parent held.
            script = "import sys; from pathlib import Path; from {0} import {1} as f; f({2})"
            store = f"Path({str(folder)!r}), {rows}, {given.dim}, 1"
            queries = f"Path({str(folder / 'queries.npz')!r}), {given.queries}"
            for module, function, arguments in (
                ("benchmarks.speed.large_store", "make", store),
                ("benchmarks.speed.whole_gallery", "write_queries", queries),
            ):
                code = script.format(module, function, arguments)
                subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
            measured[side] = {"rows": rows, **judge(folder)}
    vectors = given.rows * given.dim * 4
    measured["vectors_bytes"] = vectors
    measured["ratio"] = measured["large"]["peak_bytes"] / vectors
    measured["beyond"] = (
        measured["large"]["peak_bytes"] - measured["small"]["peak_bytes"]
    ) / vectors
    show(measured, as_json=given.json)


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """The figures."""
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for side in ("small", "large"):
        values = found[side]
        print(
            f"{side:6} {values['rows']} rows x {found['dim']}, {found['queries']} queries: "
            f"{values['seconds']:.1f} s, peak {values['peak_bytes'] / 2**20:.0f} MiB"
        )
    print(
        f"stored vectors {found['vectors_bytes'] / 2**20:.0f} MiB; peak / vectors "
        f"{found['ratio']:.2f}, and {found['beyond']:.2f} beyond what the small store takes"
    )


if __name__ == "__main__":
    main()
