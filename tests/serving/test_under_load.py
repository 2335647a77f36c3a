"""Clients ask without a break while everything happens to the store and to the servers."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve_kit import Server, request, wait_for
from shop_kit import Shop

from compatctl.data import from_files, load
from compatctl.deployment.gallery import DeployedGallery
from compatctl.store import Store

CLIENTS = 16
K = 5
SECONDS = float(os.environ.get("COMPATCTL_LOAD_SECONDS", "0"))
"""The load goes on at least that long."""


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


def test_no_answer_fails_or_is_mixed_whatever_happens(shop: Shop, emoji: Path) -> None:
    """20 deploys and rollbacks, five adds, a backfill, a damaged generation and a killed server."""
    data = load(shop.data()).filter(split="test", role="query")
    paths = [Path(str(data.sources[row])) for row in range(6)]
    expected = Expected(shop, paths)
    expected.learn()
    began = time.monotonic()
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(shop.folder)) for _ in range(2)]
        clients = Clients(servers, [path.read_bytes() for path in paths])
        threads = [threading.Thread(target=clients.run, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for change in [*_changes(shop, emoji), *(_switch(shop, n) for n in range(20))]:
            change()
            number = expected.learn()
            wait_for(lambda n=number: all(s.status()["generation"] == n for s in servers))
        _damage(shop, servers, expected)
        _kill(servers, stack)
        wait_for(lambda: time.monotonic() - began >= SECONDS, SECONDS + 60)
        clients.stop.set()
        for thread in threads:
            thread.join()
    _judge(clients, expected)


def _judge(clients: Clients, expected: Expected) -> None:
    assert not clients.failed, Counter(clients.failed)
    seen: Counter[int] = Counter()
    for query, reply in clients.replies:
        number = reply["generation"]
        cosines = [hit["cosine"] for hit in reply["hits"]]
        np.testing.assert_allclose(cosines, expected.cosines[number][query], atol=2e-5)
        assert reply["query_model"] == expected.models[number]
        seen[number] += 1
    assert len(seen) >= len(expected.cosines) - 2
    assert clients.moved > 0
    p50, p99 = np.percentile(clients.seconds, [50, 99])
    print(
        f"{len(clients.replies)} answers of {len(seen)} generations, 0 failed, 0 mixed; "
        f"{clients.moved} asked the other server; p50 {p50:.3f} s, p99 {p99:.3f} s"
    )


def _changes(shop: Shop, emoji: Path) -> list[Callable[[], None]]:
    """A deploy, a backfill of a third, and five adds."""
    images = sorted((emoji / "images" / "twemoji").iterdir())

    def add(number: int) -> None:
        table = emoji / f"{shop.folder.parent.name}-load-{number}.csv"
        table.write_text(f"id,path,label\nfresh-{number},{images[number]},fresh\n")
        _done(shop, "add", "--data", table)

    force = ("--force", "--reason", "drill")
    return [
        lambda: _done(shop, "deploy", "--model", shop.path("new.onnx"), *force),
        lambda: _done(shop, "backfill", "--share", "0.34", *force),
        *(lambda n=number: add(n) for number in range(5)),
    ]


def _switch(shop: Shop, number: int) -> Callable[[], None]:
    """A deploy of another model, or a rollback of it."""
    force = ("--force", "--reason", "drill")
    if number % 2:
        return lambda: _done(shop, "rollback")
    return lambda: _done(shop, "deploy", "--model", shop.path("worse.onnx"), *force)


def _damage(shop: Shop, servers: list[Server], expected: Expected) -> None:
    """A generation whose model is damaged on the disk does not serve until it is mended."""
    before = servers[0].status()["generation"]
    for server in servers:
        server.process.send_signal(signal.SIGSTOP)
    _done(shop, "deploy", "--model", shop.path("worse.onnx"), "--force", "--reason", "drill")
    number = expected.learn()
    model = shop.path("store") / "models" / f"{shop.manifest()['query_model']}.onnx"
    whole = model.read_bytes()
    model.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for server in servers:
        server.process.send_signal(signal.SIGCONT)
    for server in servers:
        wait_for(lambda s=server: s.status()["newest_does_not_serve"])
        assert server.status()["generation"] == before
    model.write_bytes(whole)
    for server in servers:
        wait_for(lambda s=server: s.status()["generation"] == number)
        assert not server.status()["newest_does_not_serve"]


def _kill(servers: list[Server], stack: ExitStack) -> None:
    """One server is killed, and another takes its place."""
    servers[0].process.kill()
    servers[0].process.wait()
    time.sleep(1)
    servers[0] = stack.enter_context(Server(servers[1].folder))
    time.sleep(1)


def _done(shop: Shop, *arguments: object) -> None:
    result = shop.run(str(arguments[0]), *arguments[1:])
    assert result.code == 0, result.stderr


def test_a_rollback_reaches_a_running_service_within_a_second(shop: Shop) -> None:
    """From the commit to the first answer of the restored generation; median of five."""
    query = Path(str(load(shop.data()).filter(split="test", role="query").sources[0])).read_bytes()
    _done(shop, "deploy", "--model", shop.path("new.onnx"), "--force", "--reason", "drill")
    with Server(shop.folder) as server:
        took = []
        for number in range(5):
            _done(shop, "rollback", "--to", 1 if number % 2 == 0 else 2)
            wanted = shop.manifest()["generation"]
            took.append(
                wait_for(lambda n=wanted: server.ask("/v1/search", query).json["generation"] == n)
            )
    assert np.median(took) < 1.0, took


def test_what_runs_is_answered_before_the_service_ends(shop: Shop) -> None:
    """After SIGTERM amid requests each of them has its answer, and the exit code is 0."""
    query = Path(str(load(shop.data()).filter(split="test", role="query").sources[0])).read_bytes()
    with Server(shop.folder) as server:
        clients = Clients([server, server], [query])
        threads = [threading.Thread(target=clients.run, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(clients.replies) > 20)
        code, ended = server.stop()
        clients.stop.set()
        for thread in threads:
            thread.join()
    assert code == 0
    assert ended["answered"] >= len(clients.replies)
    refused = [text for text in clients.failed if "neither server" not in text]
    assert not refused, refused


@pytest.mark.parametrize("flags", [("--timeout", 0.001), ("--max-requests", 1)])
def test_too_slow_and_too_many_are_refused_and_the_service_goes_on(
    shop: Shop, flags: tuple[str, object]
) -> None:
    """Status 504 or 503 with what to do, counted, and no request hangs."""
    query = Path(str(load(shop.data()).filter(split="test", role="query").sources[0])).read_bytes()
    wanted = 504 if flags[0] == "--timeout" else 503
    with Server(shop.folder, *flags) as server:
        statuses: Counter[int] = Counter()

        def ask() -> None:
            for _ in range(10):
                statuses[server.ask("/v1/search", query).status] += 1

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {200, wanted}
        assert statuses[wanted] > 0
        counted = server.ask("/metrics").body.decode()
        assert f'status="{wanted}"' in counted
        assert server.ask("/healthz").status == 200
