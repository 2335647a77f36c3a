"""What a second process of serve gives and takes: requests a second, and memory.

    python -m benchmarks.speed.serve_processes [--rows 200000] [--dim 128] [--seconds 15]

Makes a store of random rows with a tiny encoder, so that Python and not the encoder is what limits,
and serves it with one process and with two, in turn. Clients in two processes send one image again
and again, each request on a connection of its own. The memory is that of the processes that answer:
their resident bytes (Rss) and their share of them (Pss, where shared pages are divided), at rest.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import multiprocessing
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.speed.large_store import SIDE, make

ROUNDS = 3
CLIENTS = 2


class Service:
    """``compatctl serve`` of a folder with some processes; a context manager."""

    def __init__(self, folder: Path, processes: int) -> None:
        command = ["serve", "--port", "0", "--processes", str(processes), "--max-requests", "512"]
        self._errors = (folder / "serve.err").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "compatctl", *command],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        self.port = 0

    def __enter__(self) -> Service:
        while not self.port:
            if self._process.poll() is not None:
                raise SystemExit(Path(self._errors.name).read_text())
            said = re.search(r"http://127\.0\.0\.1:(\d+)", Path(self._errors.name).read_text())
            self.port = int(said[1]) if said else 0
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._errors.close()

    def memory(self) -> tuple[int, int]:
        """Rss and Pss, in bytes, of all that answer."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        lines = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        answering = [child for child, line in lines.items() if b"spawn_main" in line] or [str(pid)]
        maps = [Path(f"/proc/{each}/smaps_rollup").read_text() for each in answering]
        rss, pss = (
            sum(int(re.findall(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[0]) for text in maps)
            for name in ("Rss", "Pss")
        )
        return rss << 10, pss << 10


def ask(port: int, image: bytes, seconds: float, result: Any) -> None:
    """A client: how many requests a second were answered."""
    answered, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/search", image, {"Content-Type": "image/png"})
        reply = connection.getresponse()
        reply.read()
        connection.close()
        answered += reply.status == 200
    result.put(answered / (time.perf_counter() - began))


def measure(folder: Path, processes: int, seconds: float) -> dict[str, float]:
    """Requests a second and memory of a service."""
    image = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (200, 30, 90)).save(image, "PNG")
    context = multiprocessing.get_context("spawn")
    with Service(folder, processes) as service:
        results = context.SimpleQueue()
        given = (service.port, image.getvalue(), seconds, results)
        clients = [context.Process(target=ask, args=given) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        rate = sum(results.get() for _ in clients)
        for client in clients:
            client.join()
        rss, pss = service.memory()
    return {"requests_per_s": rate, "rss_bytes": rss, "pss_bytes": pss}


def main() -> None:
    """Measure both in turn, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        make(folder, given.rows, given.dim, 1)
        (index,) = (folder / "store" / "indexes").glob("*.hnsw")
        size = index.stat().st_size
        rounds = [
            {processes: measure(folder, processes, given.seconds) for processes in (1, 2)}
            for _ in range(ROUNDS)
        ]
    found = {
        processes: {
            figure: statistics.median(each[processes][figure] for each in rounds)
            for figure in rounds[0][1]
        }
        for processes in (1, 2)
    }
    ratios = {figure: found[2][figure] / found[1][figure] for figure in found[1]}
    if given.json:
        told = {"processors": os.cpu_count(), "index_bytes": size, "ratio": ratios}
        print(json.dumps(told | {"processes": found}, indent=2))
        return
    print(f"{os.cpu_count()} processors, clients on them too; an index of {size >> 20} MiB")
    for processes, figures in found.items():
        rss, pss = (figures[name] / 2**20 for name in ("rss_bytes", "pss_bytes"))
        rate = f"{figures['requests_per_s']:.0f} requests a second"
        print(f"{processes} process(es): {rate}, Rss {rss:.0f} MiB, Pss {pss:.0f} MiB")
    print(f"ratio: requests {ratios['requests_per_s']:.2f}, Pss {ratios['pss_bytes']:.2f}")


if __name__ == "__main__":
    main()
