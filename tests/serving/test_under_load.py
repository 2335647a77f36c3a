"""Clients ask without a break while everything happens to the store and to the servers."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from load_kit import SECONDS, Clients, Expected, judge, kill_and_replace, query_files
from serve_kit import Server, wait_for
from shop_kit import Shop

CLIENTS = 16
CLOSED = 0
"""In place of a status where the connection was closed."""


def test_no_answer_fails_or_is_mixed_whatever_happens(shop: Shop, emoji: Path) -> None:
    """20 deploys and rollbacks, five adds, a backfill, a damaged generation and a killed server."""
    paths = query_files(shop, 6)
    expected = Expected(shop, paths)
    expected.learn()
    began = time.monotonic()
    with ExitStack() as stack:
        servers = [stack.enter_context(Server(shop.folder)) for _ in range(2)]
        clients = Clients(servers, [path.read_bytes() for path in paths])
        with clients.asking(CLIENTS):
            for change in [*_changes(shop, emoji), *(_switch(shop, n) for n in range(20))]:
                change()
                number = expected.learn()
                wait_for(lambda n=number: all(s.status()["generation"] == n for s in servers))
            _damage(shop, servers, expected)
            kill_and_replace(servers, stack)
            wait_for(lambda: time.monotonic() - began >= SECONDS, SECONDS + 60)
    seen = judge(clients, expected)
    assert len(seen) >= len(expected.cosines) - 2
    assert clients.moved > 0


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


def _done(shop: Shop, *arguments: object) -> None:
    result = shop.run(str(arguments[0]), *arguments[1:])
    assert result.code == 0, result.stderr


def test_a_rollback_reaches_a_running_service_within_a_second(shop: Shop) -> None:
    """From the commit to the first answer of the restored generation; median of five."""
    query = query_files(shop, 1)[0].read_bytes()
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
    query = query_files(shop, 1)[0].read_bytes()
    with Server(shop.folder) as server:
        clients = Clients([server, server], [query])
        with clients.asking(6):
            wait_for(lambda: len(clients.replies) > 20)
            code, ended = server.stop()
    assert code == 0
    assert ended["answered"] >= len(clients.replies)
    refused = [text for text in clients.failed if "neither server" not in text]
    assert not refused, refused


@pytest.mark.parametrize("flags", [("--timeout", 0.001), ("--max-requests", 1)])
def test_too_slow_and_too_many_are_refused_and_the_service_goes_on(
    shop: Shop, flags: tuple[str, object]
) -> None:
    """Too many: 503. Too slow: 504, or 408 or a closed connection where the headers or the body
    came too late. Both are counted, and no request hangs."""
    query = query_files(shop, 1)[0].read_bytes()
    slow = flags[0] == "--timeout"
    wanted, allowed = (504, {200, 408, 504, CLOSED}) if slow else (503, {200, 503})
    with Server(shop.folder, *flags) as server:
        statuses: Counter[int] = Counter()

        def ask() -> None:
            for _ in range(10):
                statuses[_status(server, query)] += 1

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= allowed
        assert statuses[wanted] > 0
        wait_for(lambda: f'status="{wanted}"' in _text(server, "/metrics"))
        wait_for(lambda: _status(server, None, "/healthz") == 200)


def _status(server: Server, body: bytes | None, path: str = "/v1/search") -> int:
    try:
        return server.ask(path, body).status
    except ConnectionError:
        return CLOSED


def _text(server: Server, path: str) -> str:
    """What a path answers; empty where the connection was closed."""
    try:
        return server.ask(path).body.decode()
    except ConnectionError:
        return ""
