"""Damaged files and full disks, each in its own process: hnswlib could crash it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import compatctl

MAKE = """
import sys
from pathlib import Path
import numpy as np
from compatctl.errors import CompatError, DamagedError
from compatctl.index import HnswIndex, HnswParams

rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
params = HnswParams(dim=8, M=4, ef_construction=20)
index = HnswIndex.create(params, 200)
index.add(rows, np.arange(200))
folder = Path(sys.argv[1])
"""
FLIPS = (
    MAKE
    + """
index.save(folder / "a.hnsw")
whole = (folder / "a.hnsw").read_bytes()
draw = np.random.default_rng(1)
header = [(offset, bit) for offset in range(96) for bit in range(8)]
body = [(int(draw.integers(96, len(whole))), int(draw.integers(8))) for _ in range(500)]
refused = {"header": 0, "body": 0}
for number, (offset, bit) in enumerate(header + body):
    path = folder / f"{number}.hnsw"
    path.write_bytes(whole[:offset] + bytes([whole[offset] ^ (1 << bit)]) + whole[offset + 1:])
    try:
        loaded = HnswIndex.load(path, params, 200)
        loaded.search(rows[:50], 5, threads=1)
        loaded.add(-rows[:3], np.arange(3) + 10**9)
    except DamagedError:
        refused["header" if number < len(header) else "body"] += 1
    path.unlink()
print(refused["header"], len(header), refused["body"], len(body))
"""
)
NO_ROOM = (
    MAKE
    + """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, -1))
try:
    index.save(folder / "a.hnsw")
except CompatError as error:
    print(error.message)
"""
)


def _run(code: str, folder: Path) -> str:
    package = str(Path(compatctl.__file__).parent.parent)
    process = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout


def test_no_flipped_bit_crashes_the_process(tmp_path: Path) -> None:
    """Every bit of the header and 500 others, flipped one at a time, are refused or harmless."""
    refused, header, body_refused, body = map(int, _run(FLIPS, tmp_path).split())
    # Accepted in the header: the capacity, which is not used, and the last bits of a multiplier.
    assert refused / header > 0.85
    assert 0.05 < body_refused / body < 1.0


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """Saving reports how many bytes were written; hnswlib reports nothing."""
    assert "only 10000 of" in _run(NO_ROOM, tmp_path)
