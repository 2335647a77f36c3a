"""The service as a caller sees it: a real process, real requests."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image
from serve_kit import Server, request, wait_for
from shop_kit import Shop, run, turned
from text_shop_kit import TextShop

from compatctl.data import load
from compatctl.deployment.searcher import Searcher
from compatctl.serving.metrics import Metrics
from compatctl.serving.service import Limits, SearchService

K = 4
LIMITS = ("--max-bytes", 200_000, "--max-pixels", 40_000, "--max-k", 50)


@pytest.fixture(scope="module")
def server(begun: Path) -> Iterator[Server]:
    """A service of the images."""
    with Server(begun, *LIMITS) as server:
        yield server


def _image(folder: Path, number: int = 0) -> bytes:
    data = load(Shop(folder).data()).filter(split="test", role="query")
    return Path(str(data.sources[number])).read_bytes()


def test_an_image_is_answered_as_the_command_answers_it(server: Server, tmp_path: Path) -> None:
    """As bytes and in JSON: the same ids and scores as search, and what made each of them."""
    image = _image(server.folder)
    (tmp_path / "query.png").write_bytes(image)
    told = Shop(server.folder).run("search", tmp_path / "query.png", "-k", K).json
    raw = server.ask(f"/v1/search?k={K}&query=mine", image).json
    coded = {"image": base64.b64encode(image).decode(), "k": K, "query": "mine"}
    assert server.ask("/v1/search", coded).json == raw
    (wanted,) = told["queries"]
    assert [hit["id"] for hit in raw["hits"]] == [hit["id"] for hit in wanted["hits"]]
    scores = [[hit["score"] for hit in hits] for hits in (raw["hits"], wanted["hits"])]
    np.testing.assert_allclose(*scores, atol=1e-5)
    assert {hit["model"] for hit in raw["hits"]} == {told["query_model"]}
    assert (raw["generation"], raw["query_model"]) == (told["generation"], told["query_model"])
    assert (raw["query"], raw["side"], raw["cut"]) == ("mine", "current", False)


def test_bad_requests_get_a_status_a_word_and_no_path(server: Server) -> None:
    """Another kind, no image, no JSON, too much of anything; the service goes on."""
    image = _image(server.folder)
    large = io.BytesIO()
    Image.new("RGB", (300, 300)).save(large, "PNG")
    cases: list[tuple[str, object, int, str]] = [
        ("/v1/search", "a text", 422, "takes images"),
        ("/v1/search", b"junk", 422, "does not decode"),
        ("/v1/search", b"", 400, "empty"),
        ("/v1/search", {"image": "no base64!"}, 422, "base64"),
        ("/v1/search", {"image": "", "text": "both"}, 422, "one of"),
        ("/v1/search", {"vector": [1.0, "2"]}, 422, "finite numbers"),
        ("/v1/search", {"vector": [1e400]}, 422, "finite numbers"),
        ("/v1/search", {"vector": [1e39]}, 422, "finite numbers"),
        ("/v1/search", {"text": "a", "other": 1}, 422, "unknown entry"),
        ("/v1/search", {"text": "a", "k": 51}, 422, "k is 1 .. 50"),
        ("/v1/search?k=0", image, 422, "greater than or equal to 1"),
        ("/v1/search?query=" + "q" * 300, image, 422, "256 printable characters"),
        ("/v1/search", large.getvalue(), 422, "at most 40000 are decoded"),
        ("/v1/search", b"x" * 300_000, 413, "larger than"),
        ("/v1/items/nothing", None, 404, "no such item"),
        ("/v1/nothing", None, 404, "Not Found"),
        ("/v1/search", None, 405, "Method Not Allowed"),
    ]
    for path, body, status, said in cases:
        reply = server.ask(path, body)  # type: ignore[arg-type]
        text = reply.body.decode()
        assert reply.status == status, (path, text)
        assert said in json.loads(text)["message"]
        assert str(server.folder) not in text
        assert "Traceback" not in text
    for path, body in (("/v1/search?k=0", image), ("/v1/search", {"text": "a", "k": 0})):
        assert server.ask(path, body).json["error"] == "k"
    assert server.ask("/v1/search", image).status == 200
    assert "Traceback" not in server.said


def test_a_body_without_a_stated_length_is_cut_off_too(server: Server) -> None:
    """A chunked body that is too large gets 413, not the memory of the service."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(
            b"POST /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        try:
            for _ in range(50):
                raw.sendall(chunk)
        except OSError:
            pass
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


def test_a_caller_that_leaves_in_its_body_is_no_error_of_the_service(server: Server) -> None:
    """It is counted as a bad request, and nothing is logged."""

    def counted(status: int) -> float:
        lines = server.ask("/metrics").body.decode().splitlines()
        name = f'compatctl_requests_total{{side="none",status="{status}"}}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    before = counted(400)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        raw.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        time.sleep(0.2)
    wait_for(lambda: counted(400) == before + 1)
    assert counted(500) == 0
    assert "Traceback" not in server.said


def test_a_caller_that_sends_no_headers_holds_no_connection(begun: Path) -> None:
    """Neither a first nor a second request of a connection may begin for longer than --timeout."""
    with Server(begun, "--timeout", 1) as server:
        begins = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
        for sent in (b"", begins, begins + b"\r\n" + begins):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
                raw.sendall(sent)
                began, received = time.monotonic(), b""
                while part := raw.recv(1024):
                    received += part
                assert 0.9 < time.monotonic() - began < 10
                assert received.count(b"200 OK") == sent.count(b"\r\n\r\n")
        assert server.ask("/v1/search", _image(begun)).status == 200


def test_with_strict_a_query_of_which_something_is_left_out_is_refused(begun: Path) -> None:
    """As data are: a picture of which transparency leaves nothing is the caller's error."""
    nothing = io.BytesIO()
    Image.new("RGBA", (20, 20)).save(nothing, "PNG")
    with Server(begun, "--strict") as server:
        reply = server.ask("/v1/search", nothing.getvalue())
        assert (reply.status, reply.json["error"]) == (422, "query")
        assert "transparency" in reply.json["message"]
        assert "Traceback" not in server.said


def test_pages_of_other_sites_and_other_names_are_refused(server: Server) -> None:
    """A browser that another site drives sends its origin, or that site's name as the host."""
    assert server.ask("/v1/status", Origin="http://elsewhere.example").status == 403
    other = server.ask("/v1/status", Host="elsewhere.example")
    assert (other.status, other.json["error"]) == (400, "host")
    own = f"http://127.0.0.1:{server.port}"
    assert server.ask("/v1/status", Origin=own).status == 200


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_a_service_answers_by_the_address_that_it_is_told(begun: Path, host: str) -> None:
    """Any address of this machine alone, with and without a port; no other site's name."""
    shown = f"[{host}]" if ":" in host else host
    with Server(begun, "--host", host) as server:
        for name in (shown, f"{shown}:{server.port}", f"localhost:{server.port}"):
            connection = http.client.HTTPConnection(host, server.port, timeout=60)
            assert request(connection, "/v1/status", None, {"Host": name}).status == 200
        assert request(connection, "/v1/status", None, {"Host": "a.example"}).status == 400
        connection.close()


def test_behind_a_proxy_the_token_stands_for_the_name(begun: Path) -> None:
    """A proxy on this machine passes the name of its site, and the page of that site may ask; its
    paths are relative, as the proxy may have the service in a folder."""
    token = "a-token-of-some-length"
    site = {"Host": "search.example", "Origin": "https://search.example"}
    with Server(begun, COMPATCTL_TOKEN=token) as server:
        assert server.ask("/v1/status", **site).status == 401
        assert server.ask("/v1/status", Authorization=f"Bearer {token}", **site).status == 200
        elsewhere = {"Host": "search.example", "Origin": "https://elsewhere.example"}
        reply = server.ask("/v1/status", Authorization=f"Bearer {token}", **elsewhere)
        assert reply.status == 403
        page = server.ask("/", **site).body.decode()
    assert re.findall(r'"(/?)v1/', page) == [""] * 3


def test_head_reads_what_get_reads_without_the_body(server: Server) -> None:
    """As proxies and monitors ask: the same status, type and length."""
    hit = server.ask("/v1/search?k=1", _image(server.folder)).json["hits"][0]["id"]
    for path in ("/", "/healthz", "/readyz", "/v1/status", f"/v1/items/{hit}", "/v1/nothing"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert head.read() == b""
        got = server.ask(path)
        assert head.status == got.status
        assert head.getheader("Content-Type") == got.headers["content-type"]
        assert head.getheader("Content-Length") == str(len(got.body))
        connection.close()
    assert "head" not in server.ask("/openapi.json").json["paths"]["/healthz"]


def test_a_path_with_another_end_is_no_path(server: Server) -> None:
    """It is refused as any other, and leads nowhere by a name that the caller gave."""
    reply = server.ask("/v1/search/", _image(server.folder))
    assert (reply.status, reply.json["error"]) == (404, "path")


def test_what_callers_send_is_not_in_the_log(server: Server) -> None:
    """Neither a request that is none nor one for another protocol, of which anyone sends many."""
    before = server.said
    for sent in (b"nonsense\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
                 b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            raw.sendall(sent)
            assert raw.recv(64).startswith(b"HTTP/1.1")
    assert server.said == before


def test_a_caller_that_reads_no_answers_holds_no_connection(begun: Path) -> None:
    """Answers that nobody takes for longer than --timeout are thrown away with the connection."""
    with Server(begun, "--timeout", 1) as server, socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(30)
        raw.connect(("127.0.0.1", server.port))
        asked = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000
        Thread(target=_send_all, args=(raw, asked)).start()
        wait_for(lambda: _connections(server) == 1)
        wait_for(lambda: _connections(server) == 0, 20)
        assert server.ask("/healthz").status == 200


def _send_all(raw: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):
        raw.sendall(content)


def _connections(server: Server) -> int:
    """Connections that the service holds: those with a port of a caller."""
    links = []
    for link in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(link.readlink()))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = f":{server.port:04X}"
    return sum(
        line[1].endswith(own) and not line[2].endswith(":0000") and f"socket:[{line[9]}]" in links
        for line in lines
    )


def test_a_closed_terminal_ends_the_service_as_sigterm_does(shop: Shop) -> None:
    """The log has every answer, and the exit code is 0."""
    with Server(shop.folder, "--log", "answers.jsonl") as server:
        assert server.ask("/v1/search", _image(shop.folder)).status == 200
        code, ended = server.stop(signal.SIGHUP)
    assert (code, ended["logged"]) == (0, 1)
    assert len(shop.path("answers.jsonl").read_text().splitlines()) == 1


def test_the_state_of_the_service_is_told(server: Server) -> None:
    """Health, readiness, status with the history, metrics, the page, and the description of it."""
    assert server.ask("/healthz").json == {"status": "ok"}
    manifest = Shop(server.folder).manifest()
    ready = server.ask("/readyz")
    assert (ready.status, ready.json["query_model"]) == (200, manifest["query_model"])
    status = server.status()
    assert [one["operation"] for one in status["history"]] == ["init"]
    assert (status["rows"], status["modality"]) == (manifest["index"]["count"], "image")
    server.ask("/v1/search", _image(server.folder))
    lines = server.ask("/metrics").body.decode().splitlines()
    model = manifest["query_model"][:12]
    assert "compatctl_generation 1.0" in lines
    assert f'compatctl_gallery_share{{model="{model}",name="old.onnx"}} 1.0' in lines
    counted = [line for line in lines if line.startswith("compatctl_top_cosine_count")]
    assert counted
    assert float(counted[0].split()[-1]) >= 1
    paths = server.ask("/openapi.json").json["paths"]
    assert {"/v1/search", "/v1/compare", "/v1/status", "/healthz", "/metrics"} <= set(paths)
    page = server.ask("/")
    assert b"<!doctype html>" in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_store_that_is_away_for_a_while_disturbs_neither_answers_nor_the_page(
    shop: Shop,
) -> None:
    """As a folder that is unmounted: the generation in memory answers, the page has its state and
    as much of the history as there is, and the log gets no traceback."""
    image = _image(shop.folder)
    given = ("--model", shop.path("new.onnx"), "--force", "--reason", "drill")
    assert shop.run("deploy", *given).code == 0
    with Server(shop.folder) as server:
        shop.path("store").rename(shop.path("away"))
        wait_for(lambda: server.ask("/readyz").json["newest_does_not_serve"])
        assert server.ask("/v1/search", image).json["generation"] == 2
        assert [one["generation"] for one in server.status()["history"]] == [2]
        assert server.ask("/metrics").status == 200
        shop.path("away").rename(shop.path("store"))
        wait_for(lambda: not server.ask("/readyz").json["newest_does_not_serve"])
        assert [one["generation"] for one in server.status()["history"]] == [2, 1]
        assert "Traceback" not in server.said


def test_pages_that_ask_at_once_get_the_same_history(shop: Shop) -> None:
    """Each generation once, though many threads read them for the first time together."""
    for _ in range(12):
        given = ("--model", shop.path("new.onnx"), "--force", "--reason", "drill")
        assert shop.run("deploy", *given).code == 0
        assert shop.run("rollback").code == 0
    wanted = list(range(25, 5, -1))
    with Searcher.open(shop.path("store")) as searcher:
        service = SearchService(searcher=searcher, limits=Limits(), metrics=Metrics())
        for _ in range(100):
            searcher.current.gallery.store.__dict__.pop("_chain", None)  # as after a switch
            with ThreadPoolExecutor(8) as pool:
                asked = [pool.submit(service.status, 20) for _ in range(8)]
            for one in asked:
                told = [entry["generation"] for entry in one.result()["history"]]
                assert told == wanted
        service.close()


def test_an_item_is_shown_as_a_small_picture_and_only_if_it_is_in_the_gallery(
    server: Server,
) -> None:
    """A JPEG of at most 256 pixels; a query item of the data is not shown."""
    hit = server.ask("/v1/search?k=1", _image(server.folder)).json["hits"][0]["id"]
    reply = server.ask(f"/v1/items/{hit}")
    assert reply.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(reply.body)).size) <= 256
    queries = load(Shop(server.folder).data()).filter(role="query")
    assert server.ask(f"/v1/items/{queries.ids[0]}").status == 404


def test_other_machines_need_a_token(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one in the environment nothing listens; with one, only who sends it is answered."""
    refused = shop.run("serve", "--host", "0.0.0.0", "--port", 0)
    assert (refused.code, "COMPATCTL_TOKEN" in refused.stderr) == (2, True)
    token = "a-token-of-some-length"
    with Server(shop.folder, "--host", "0.0.0.0", COMPATCTL_TOKEN=token) as server:
        image = _image(shop.folder)
        assert server.ask("/v1/search", image).status == 401
        assert server.ask("/v1/search", image, Authorization="Bearer wrong").status == 401
        assert server.ask("/v1/search", image, Authorization=f"Bearer {token}").status == 200
        assert server.ask("/metrics").status == 401
        assert server.ask("/healthz").status == 200
        assert token not in server.said
    monkeypatch.setenv("COMPATCTL_TOKEN", "short")
    short = shop.run("serve", "--port", 0)
    assert (short.code, "at least 16" in short.stderr) == (2, True)
    for secret in ("in two\nlines of text", "é" * 20):
        monkeypatch.setenv("COMPATCTL_TOKEN", secret)
        unusable = shop.run("serve", "--port", 0)
        assert (unusable.code, "no header carries" in unusable.stderr) == (2, True)
        assert secret not in unusable.stderr


def test_a_store_of_texts_answers_texts(tmp_path: Path) -> None:
    """The body is the text; the answer is that of the command, and items are shown as texts."""
    shop = TextShop(tmp_path)
    shop.done("init", "--model", shop.models["old"])
    text = str(load(shop.data).content(0))
    told = shop.done("search", text, "-k", K, "--json").json["queries"][0]["hits"]
    with Server(tmp_path) as server:
        answer = server.ask(f"/v1/search?k={K}", text).json
        assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in told]
        assert server.ask("/v1/search", {"text": text, "k": K}).json["hits"] == answer["hits"]
        assert server.ask("/v1/search", {"text": "  "}).status == 422
        for half in ({"text": "a \ud800"}, {"vectors": {"\ud800": [1.0]}}, {"\ud800": 1}):
            assert server.ask("/v1/search", half).status == 422
        assert server.ask("/v1/search", b"x" * 10).status == 422
        assert server.ask("/v1/search", "x" * 100_001).status == 413
        shown = server.ask(f"/v1/items/{told[0]['id']}")
        assert shown.headers["content-type"].startswith("text/plain")
        code, ended = server.stop()
    assert (code, ended["answered"], ended["switches"]) == (0, 2, 0)


def test_what_cannot_be_served_is_refused_before_it_listens(shop: Shop, tmp_path: Path) -> None:
    """No store, a port in use, a candidate of another dimension, a share that is none."""
    nowhere = run("serve", "--store", tmp_path / "nowhere", "--port", 0)
    assert (nowhere.code, "no store" in nowhere.stderr) == (5, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = shop.run("serve", "--port", taken.getsockname()[1])
    assert (used.code, "cannot listen" in used.stderr) == (5, True)
    for given in ("new.onnx", "new.onnx=0", "new.onnx=150%", "=5%", "new.onnx=x"):
        refused = shop.run("serve", "--port", 0, "--traffic", given)
        assert (refused.code, "MODEL=SHARE" in refused.stderr) == (2, True)
    turned(shop, "narrow.onnx", of="new.onnx", dim=16)
    for flags in (("--shadow", "narrow.onnx"), ("--traffic", "narrow.onnx=1%")):
        model = str(shop.path(flags[1]))
        narrow = shop.run("serve", "--port", 0, flags[0], model, *_ALLOWED[flags[0]])
        assert (narrow.code, "16 dimensions; the gallery has 32" in narrow.stderr) == (5, True)


_ALLOWED: dict[str, tuple[str, ...]] = {"--shadow": (), "--traffic": ("--allow-unverified",)}


def test_an_answer_does_not_wait_for_an_acknowledgement(server: Server) -> None:
    """On a connection that stays open the second part of an answer comes at once: the median of 30
    requests is far below the 40 ms after which a caller acknowledges the first part."""
    query = _image(server.folder)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    taken = []
    for _ in range(30):
        began = time.perf_counter()
        connection.request("POST", "/v1/search", query)
        assert connection.getresponse().read()
        taken.append(time.perf_counter() - began)
    connection.close()
    assert np.median(taken) < 0.03, taken
