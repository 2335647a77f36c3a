"""Clients that ask services without a break, and what each generation must answer."""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serve_kit import Server, request
from shop_kit import Shop

from compatctl.data import from_files, load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.store import Store

K = 5
SECONDS = float(os.environ.get("COMPATCTL_LOAD_SECONDS", "0"))
"""A test of load goes on at least that long."""


def query_files(shop: Shop, count: int) -> list[Path]:
    """The files of held-out queries."""
    data = load(shop.data()).filter(split="test", role="query")
    return [Path(str(data.sources[row])) for row in range(count)]


@dataclass
class Expected:
    """What each generation answers: (Q, K) cosines, from all stored rows, one by one."""

    shop: Shop
    queries: list[Path]
    cosines: dict[int, np.ndarray] = field(default_factory=dict)
    models: dict[int, str] = field(default_factory=dict)

    def learn(self) -> int:
        """Compute those of the store's generation; its number."""
        store = Store.open(self.shop.path("store"))
        gallery = DeployedGallery.open(store)
        features = gallery.encoder.embed(from_files(self.queries)).features
        scores = np.array([[float(f @ row) for row in gallery.vectors()] for f in features])
        number = store.manifest.generation
        self.cosines[number] = np.sort(scores, axis=1)[:, ::-1][:, :K]
        self.models[number] = store.manifest.query_model
        return number


@dataclass
class Clients:
    """Threads that ask two servers in turn, and the other one where one does not answer."""

    servers: list[Server]
    queries: list[bytes]
    stop: threading.Event = field(default_factory=threading.Event)
    replies: list[tuple[int, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    moved: int = 0
    seconds: list[float] = field(default_factory=list)

    def run(self, number: int) -> None:
        """One client."""
        turn = number
        while not self.stop.is_set():
            query = turn % len(self.queries)
            began = time.perf_counter()
            try:
                reply = self.ask(turn, self.queries[query])
            except OSError as error:
                self.failed.append(repr(error))
                continue
            self.seconds.append(time.perf_counter() - began)
            if reply.status == 200:
                self.replies.append((query, reply.json))
            else:
                self.failed.append(f"{reply.status} {reply.body!r}")
            turn += 1

    def ask(self, turn: int, query: bytes) -> Any:
        """An answer of either server; an error only if neither answers."""
        for attempt in range(4):
            server = self.servers[(turn + attempt) % 2]
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
            try:
                return request(connection, f"/v1/search?k={K}", query, {})
            except (OSError, http.client.HTTPException):
                self.moved += 1
            finally:
                connection.close()
        raise ConnectionError("neither server answers")

    @contextmanager
    def asking(self, number: int) -> Iterator[None]:
        """That many of them ask during the block."""
        threads = [threading.Thread(target=self.run, args=(n,)) for n in range(number)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()


def judge(clients: Clients, expected: Expected) -> Counter[int]:
    """Assert that no answer failed, and that each is that of the generation which it names; how
    many there are of each generation."""
    assert not clients.failed, Counter(clients.failed)
    seen: Counter[int] = Counter()
    for query, reply in clients.replies:
        number = reply["generation"]
        cosines = [hit["cosine"] for hit in reply["hits"]]
        np.testing.assert_allclose(cosines, expected.cosines[number][query], atol=2e-5)
        assert reply["query_model"] == expected.models[number]
        seen[number] += 1
    p50, p99 = np.percentile(clients.seconds, [50, 99])
    print(
        f"{len(clients.replies)} answers of {len(seen)} generations, 0 failed, 0 mixed; "
        f"{clients.moved} asked the other server; p50 {p50:.3f} s, p99 {p99:.3f} s"
    )
    return seen


def kill_and_replace(servers: list[Server], stack: ExitStack) -> None:
    """One server is killed, and another takes its place."""
    servers[0].process.kill()
    servers[0].process.wait()
    time.sleep(1)
    servers[0] = stack.enter_context(Server(servers[1].folder))
    time.sleep(1)
