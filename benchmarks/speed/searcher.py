"""Queries a second: ``Searcher`` against bare hnswlib, and HTTP against the encoder alone.

    python -m benchmarks.speed.searcher [--rows 100000] [--dim 128] [--ef 64] [--seconds 20]
        [--switches 10]

The index has rows around 2,000 centres, M 16 and ef_construction 100. Both sides search the same
index object with the same ef, k 10, in turns of 200 queries one by one and of one batch of 4,000. A
bare answer is hnswlib's keys and distances; the other one has gallery rows and cosines, of queries
that were checked.

For HTTP, a service of EfficientNet-lite0 at 128 px answers 16 clients (PNG files of emoji). Before
and after it the encoder alone embeds the same files in batches of 32, reading and decoding
included, with the same processors. The store has the shipped emoji.

For switches, the same clients go on while the store, to which ``--rows`` random rows were added, is
deployed to and rolled back, and then while items are added to it, which loads the index again. Each
change is a process of its own with the lowest priority. The slowest request of each part is held
against the p99 of the same clients at rest. What the commands take from the processors is in it: to
tell it apart, the same commands run first on a copy of the store that nobody serves. The process of
the clients leaves what it loaded before out of garbage collections, as its own stops would count as
the service's.
"""

from __future__ import annotations

import argparse
import gc
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

TURNS = 12
SINGLE = 200
CLIENTS = 16
ADDS = 4
ADDED = 20
"""Items of each of them."""


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _store(folder: Path, rows: int, dim: int, ef: int) -> np.ndarray:
    """A store of rows around centres; 4,000 queries around the same ones."""
    from benchmarks.speed.large_store import store_of, write_encoder
    from compatctl.index import HnswIndex, HnswParams

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2000, dim))

    def near(n: int) -> np.ndarray:
        return _unit(centres[rng.integers(0, 2000, n)] + 0.6 * rng.standard_normal((n, dim)))

    params = HnswParams(dim=dim, M=16, ef_construction=100, ef_search=ef)
    index = HnswIndex.create(params, rows)
    index.add(near(rows), np.arange(rows, dtype=np.uint64), threads=os.cpu_count() or 1)
    write_encoder(folder / "model.onnx", dim, 0)
    store_of(folder, index, folder / "model.onnx")
    return near(4000)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def searching(rows: int, dim: int, ef: int) -> None:
    """Print both sides' queries a second, and the ratio."""
    from compatctl import Searcher
    from compatctl.index import HnswIndex

    with tempfile.TemporaryDirectory() as name:
        queries = _store(Path(name), rows, dim, ef)
        with Searcher.open(Path(name) / "store") as searcher:
            index = searcher.current.gallery.index
            assert isinstance(index, HnswIndex)
            bare = index._engine
            bare.set_ef(ef)
            one_by_one = [queries[row : row + 1] for row in range(SINGLE)]

            def bare_single() -> None:
                for query in one_by_one:
                    bare.knn_query(query, 10)

            def own_single() -> None:
                for query in one_by_one:
                    searcher.search_vectors(query, 10)

            sides = {
                "one by one": (bare_single, own_single, SINGLE),
                "a batch of 4,000": (
                    lambda: bare.knn_query(queries, 10),
                    lambda: searcher.search_vectors(queries, 10),
                    len(queries),
                ),
            }
            for what, (first, second, count) in sides.items():
                pairs = [(_seconds(first), _seconds(second)) for _ in range(TURNS + 1)][1:]
                ratio = statistics.median(a / b for a, b in pairs)
                speeds = [count / statistics.median(side) for side in zip(*pairs, strict=True)]
                print(
                    f"{what}: hnswlib {speeds[0]:,.0f} queries/s, Searcher {speeds[1]:,.0f}; "
                    f"ratio {ratio:.2f} (target .90)"
                )


def _project(folder: Path, rows: int) -> list[Path]:
    """A project with EfficientNet-lite0, the shipped emoji and a store of random rows; the files of
    the emoji's queries."""
    from benchmarks.speed.encoder_throughput import Network, exported
    from benchmarks.speed.large_store import store_of
    from compatctl.data import load
    from compatctl.encoder import Encoder
    from compatctl.index import HnswIndex, HnswParams
    from compatctl.samples import emoji_source, unpack_emoji

    table = unpack_emoji(emoji_source(), folder)
    (folder / "compatctl.yaml").write_text(f"format: 1\nstore: store\ndata: {table}\n")
    exported(Network().eval(), folder, os.cpu_count() or 1)
    dim = Encoder.load(folder / "model.onnx").dim
    index = HnswIndex.create(HnswParams(dim=dim, M=16, ef_construction=20), rows)
    random = np.random.default_rng(2).standard_normal((rows, dim)).astype(np.float32)
    index.add(_unit(random), np.arange(rows, dtype=np.uint64), threads=os.cpu_count() or 1)
    store_of(folder, index, folder / "model.onnx")
    print(f"the store: {rows:,} rows of {dim} dimensions")
    _turn(folder)
    data = load(table)
    gallery = data.filter(role="gallery")
    for number in range(ADDS):
        lines = [
            f"{gallery.ids[row]},{gallery.sources[row]!s},{gallery.labels[row]}"
            for row in range(number * ADDED, (number + 1) * ADDED)
        ]
        (folder / f"more-{number}.csv").write_text("\n".join(["id,path,label", *lines]) + "\n")
    return [Path(str(source)) for source in data.filter(split="test", role="query").sources]


def _turn(folder: Path) -> None:
    """Another model of the same size: the first one with a rotation behind it."""
    from compatctl.core.adapters import Affine
    from compatctl.encoder import Encoder, bridge

    path = folder / "model.onnx"
    dim = Encoder.load(path).dim
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0]
    adapter = Affine(matrix=turn.astype(np.float32), bias=np.zeros(dim, np.float32))
    (folder / "other.onnx").write_bytes(bridge(path.read_bytes(), path, adapter))


def _run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "compatctl", *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _encoder_alone(folder: Path, files: list[Path]) -> float:
    """Files a second."""
    from compatctl.data import from_files
    from compatctl.encoder import Encoder

    encoder = Encoder.load(folder / "model.onnx")
    data = from_files(files[:400])
    encoder.embed(from_files(files[:64]))
    return len(data) / _seconds(lambda: encoder.embed(data, batch_size=32))


@contextmanager
def _service(folder: Path) -> Iterator[int]:
    """A running service's port."""
    service = subprocess.Popen(
        [sys.executable, "-m", "compatctl", "serve", "--port", "0"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert service.stderr is not None
    try:
        yield int(service.stderr.readline().rpartition(":")[2])
    finally:
        service.terminate()
        service.wait()


def _after(seconds: float) -> threading.Event:
    """What is set after that time."""
    stop = threading.Event()
    timer = threading.Timer(seconds, stop.set)
    timer.daemon = True
    timer.start()
    return stop


def _clients(port: int, bodies: list[bytes], stop: threading.Event) -> tuple[float, list[float]]:
    """Answers a second of 16 clients until a stop, and the seconds of each."""
    taken: list[float] = []

    def run(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        turn = number
        while not stop.is_set():
            began = time.perf_counter()
            connection.request("POST", "/v1/search?k=10", bodies[turn % len(bodies)])
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200
            taken.append(time.perf_counter() - began)
            turn += CLIENTS

    began = time.perf_counter()
    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(taken) / (time.perf_counter() - began), taken


def _switches(port: int) -> int:
    """How often a newer generation took over."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    counted = next(line for line in lines if line.startswith("compatctl_switches "))
    return int(float(counted.split()[1]))


def _during(
    folder: Path, port: int, bodies: list[bytes], changes: list[tuple[str, ...]], store: str
) -> tuple[list[float], int]:
    """The seconds of each answer while a store is changed, and the number of switches."""
    before, stop, taken = _switches(port), threading.Event(), []
    asking = threading.Thread(target=lambda: taken.extend(_clients(port, bodies, stop)[1]))
    asking.start()
    try:
        for change in changes:
            command = ["nice", "-n", "19", sys.executable, "-m", "compatctl", *change]
            command += ["--store", store]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            time.sleep(1)
    finally:
        stop.set()
        asking.join()
    return taken, _switches(port) - before


def _changes(switches: int) -> dict[str, list[tuple[str, ...]]]:
    """Commands that load another model and, of the second kind, another index."""
    deploy = ("deploy", "--model", "other.onnx", "--force", "--reason", "benchmark")
    return {
        "deploys and rollbacks": [deploy, ("rollback",)] * (switches // 2),
        "adds": [("add", "--data", f"more-{number}.csv") for number in range(ADDS)],
    }


def serving(seconds: float, rows: int, switches: int) -> None:
    """Print answers a second by HTTP, the encoder's alone, and the ratio; and the p99 at rest and
    the slowest request while generations take over."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = _project(folder, rows)
        bodies = [path.read_bytes() for path in files]
        shutil.copytree(folder / "store", folder / "copy")
        before = _encoder_alone(folder, files)
        gc.collect()
        gc.freeze()
        with _service(folder) as port:
            _clients(port, bodies, _after(3))
            speed, taken = _clients(port, bodies, _after(seconds))
            after = _encoder_alone(folder, files)
            alone = (before + after) / 2
            p50, p99 = np.percentile(taken, [50, 99]) * 1000
            print(
                f"HTTP, {CLIENTS} clients: {speed:.0f} answers/s (p50 {p50:.0f} ms, p99 {p99:.0f} "
                f"ms, the slowest of {len(taken)} {max(taken) * 1000:.0f} ms), the encoder alone "
                f"{alone:.0f} items/s; ratio {speed / alone:.2f} (target .50)"
            )
            for what, changes in _changes(switches).items():
                for store, whose in (("copy", "of a store that nobody serves"), ("store", "")):
                    times, counted = _during(folder, port, bodies, changes, store)
                    slowest = max(times) * 1000
                    target = "" if whose else " (target 2.00)"
                    print(
                        f"{what} {whose or 'of the store'}, {counted} switches: p99 "
                        f"{np.percentile(times, 99) * 1000:.0f} ms, the slowest of {len(times)} "
                        f"requests {slowest:.0f} ms; ratio to the p99 at rest "
                        f"{slowest / p99:.2f}{target}"
                    )


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--ef", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--switches", type=int, default=10)
    given = parser.parse_args()
    searching(given.rows, given.dim, given.ef)
    serving(given.seconds, given.rows, given.switches)


if __name__ == "__main__":
    main()
