"""A candidate in the shadow and on a share of the traffic, against real services."""

from __future__ import annotations

import gc
import io
import json
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from PIL import Image
from serve_kit import Server, wait_for
from shop_kit import DIM, SIDE, Shop, write_graph

from compatctl.data import MAX_PIXELS, load, read_answer_log
from compatctl.deployment.searcher import Searcher
from compatctl.encoder import Encoder
from compatctl.serving.answer_log import LogLine
from compatctl.serving.batching import MicroBatcher
from compatctl.serving.candidate import CandidateModel, Shadow, ShadowQuery

K = 4
FORCE = ("--force", "--reason", "drill")


def _queries(shop: Shop, count: int) -> list[bytes]:
    data = load(shop.data()).filter(split="test", role="query")
    return [Path(str(data.sources[row])).read_bytes() for row in range(min(count, len(data)))]


def _odd_fails(path: Path) -> Path:
    """An encoder that fails on an odd number of images: two are tried when it is loaded."""
    size = SIDE * SIDE * 3
    weights = {
        "pairs": np.array([-1, 2 * size], np.int64),
        "flat": np.array([-1, size], np.int64),
        "project": np.random.default_rng(3).standard_normal((size, DIM)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "pairs"], ["paired"]),
        helper.make_node("Reshape", ["paired", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "project"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2),
    ]
    write_graph(path, nodes, weights, side=SIDE, dim=DIM)
    return path


def _log(shop: Shop) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shop.path("answers.jsonl").read_text().splitlines()]


def test_the_shadow_logs_both_answers_and_no_caller_sees_its_own(shop: Shop) -> None:
    """Each line has the answer that the caller got and, beside it, what the candidate answers."""
    queries = _queries(shop, 12)
    with Server(shop.folder, "--shadow", "new.onnx", "--log", "answers.jsonl") as server:
        got = [server.ask(f"/v1/search?k={K}&query=q{n}", q).json for n, q in enumerate(queries)]
        wait_for(lambda: server.status()["shadow"]["answered"] == len(queries))
        compared = server.ask(f"/v1/compare?k={K}", queries[3]).json
        status = server.status()["shadow"]
        code, ended = server.stop()
    assert (code, ended["logged"], ended["unlogged"]) == (0, 12, 0)
    lines = {line["query"]: line for line in _log(shop)}
    assert len(lines) == len(queries)
    assert {answer["side"] for answer in got} == {"current"}
    for number, answer in enumerate(got):
        line = lines[f"q{number}"]
        assert [hit["id"] for hit in line["hits"]] == [hit["id"] for hit in answer["hits"]]
        assert line["query_model"] == answer["query_model"]
        assert line["candidate"]["query_model"] == compared["candidate_model"]
        assert line["candidate"]["query_model"] != line["query_model"]
    beside = [hit["id"] for hit in lines["q3"]["candidate"]["hits"]]
    assert beside == [hit["id"] for hit in compared["candidate"]]
    shares = [
        len({hit["id"] for hit in line["hits"]} & {h["id"] for h in line["candidate"]["hits"]}) / K
        for line in lines.values()
    ]
    assert abs(status["overlap"] - float(np.mean(shares))) < 1e-9


def test_a_log_in_parquet_judges_and_orders_as_one_in_json_lines(shop: Shop) -> None:
    """The same queries to two services: the verdict, and the counts by which a backfill goes."""
    queries, verdicts, counts = _queries(shop, 60), [], []
    for name in ("answers.jsonl", "answers.parquet"):
        with Server(shop.folder, "--shadow", "new.onnx", "--log", name) as server:
            for number, query in enumerate(queries):
                assert server.ask(f"/v1/search?k={K}&query=q{number % 40}", query).status == 200
            code, ended = server.stop()
        assert (code, ended["logged"], ended["unlogged"]) == (0, len(queries), 0)
        judged = shop.run("verify", "--log", shop.path(name), "--qrels", _clicks(shop))
        assert judged.code in {0, 3, 4}, judged.stderr
        verdicts.append(judged.json)
        counts.append(read_answer_log(shop.path(name), lambda _: True))
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]["lines"] == sum(counts[0].values()) / K == len(queries)
    assert counts[0] == counts[1]
    assert shop.run("deploy", "--model", shop.path("new.onnx"), *FORCE).code == 0
    order = ("--order", shop.path("answers.parquet"))
    filled = shop.run("backfill", *order, "--share", 0.2, *FORCE)
    assert filled.code == 0, filled.stderr


def _clicks(shop: Shop) -> Path:
    """Each of the queries q0 .. q39 was clicked on the same item."""
    item = load(shop.data()).filter(role="gallery").ids[0]
    lines = [f"q{number},{item},1" for number in range(40)]
    shop.path("clicks.csv").write_text("\n".join(["query_id,item_id,clicks", *lines]) + "\n")
    return shop.path("clicks.csv")


def test_a_shadow_that_fails_stops_and_disturbs_nobody(shop: Shop) -> None:
    """All requests are answered; the log says why the candidate has no answer."""
    _odd_fails(shop.path("odd.onnx"))
    queries = _queries(shop, 30)
    with Server(shop.folder, "--shadow", "odd.onnx", "--log", "answers.jsonl") as server:
        assert all(server.ask(f"/v1/search?k={K}", query).status == 200 for query in queries)
        wait_for(lambda: server.status()["shadow"]["stopped"] is not None)
        assert "20 failures in a row" in server.status()["shadow"]["stopped"]
        server.stop()
    lines = _log(shop)
    assert len(lines) == len(queries)
    assert any("error" in line.get("candidate", {}) for line in lines)


def test_a_share_of_the_shadow_takes_the_same_queries_each_time(shop: Shop) -> None:
    """By a hash of the query's id, so that a repeated query adds no other one."""
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--shadow", "new.onnx=40%", "--log", "answers.jsonl") as server:
        for _ in range(2):
            for number in range(40):
                assert server.ask(f"/v1/search?k=1&query=q{number}", query).status == 200
        server.stop()
    shadowed = [line["query"] for line in _log(shop) if "candidate" in line]
    assert len(shadowed) == 2 * len(set(shadowed))
    assert 4 < len(set(shadowed)) < 30


def test_the_traffic_needs_a_candidate_that_passed(shop: Shop) -> None:
    """Without a passing report of this store and model, no caller gets its answers."""
    refused = shop.run("serve", "--port", 0, "--traffic", "new.onnx=5%")
    assert refused.code in {3, 5}, refused.stderr
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"))
    assert verified.code == 0, verified.stderr
    other = shop.run("serve", "--port", 0, "--traffic", f"{shop.path('worse.onnx')}=5%")
    assert (other.code, "another new model" in other.stderr) == (3, True)
    with Server(shop.folder, "--traffic", "new.onnx=5%") as server:
        assert server.status()["traffic"]["share"] == 0.05


def test_a_tenant_stays_on_one_side_and_both_sides_are_told(shop: Shop) -> None:
    """Half of the tenants get the candidate's answers, always; each answer names its model."""
    query = _queries(shop, 1)[0]
    options = ("--traffic", "new.onnx=50%", "--allow-unverified", "--log", "answers.jsonl")
    sides: dict[str, set[tuple[str, str]]] = {}
    with Server(shop.folder, *options) as server:
        current = server.status()["query_model"]
        for _ in range(2):
            for number in range(40):
                tenant = f"tenant{number}"
                reply = server.ask(f"/v1/search?k={K}&tenant={tenant}", query).json
                sides.setdefault(tenant, set()).add((reply["side"], reply["query_model"]))
        traffic = server.status()["traffic"]
        server.stop()
    assert all(len(seen) == 1 for seen in sides.values())
    one_each = [next(iter(seen)) for seen in sides.values()]
    tried = [model for side, model in one_each if side == "candidate"]
    assert 8 < len(tried) < 32
    assert current not in tried
    assert {model for side, model in one_each if side == "current"} == {current}
    assert traffic["candidate"] == {"answered": 2 * len(tried), "failed": 0}
    assert sum(line["side"] == "candidate" for line in _log(shop)) == 2 * len(tried)


def test_a_candidate_that_fails_loses_the_traffic_and_no_caller_notices(shop: Shop) -> None:
    """Each failure is answered by the query model; bad queries are nobody's failure."""
    _odd_fails(shop.path("odd.onnx"))
    queries = _queries(shop, 30)
    with Server(shop.folder, "--traffic", "odd.onnx=100%", "--allow-unverified") as server:
        for _ in range(30):
            assert server.ask("/v1/search", b"no image").status == 422
        assert server.status()["traffic"]["candidate"]["failed"] == 0
        replies = [server.ask(f"/v1/search?k={K}", query) for query in queries]
        traffic = server.status()["traffic"]
    assert {reply.status for reply in replies} == {200}
    assert {reply.json["side"] for reply in replies} == {"current"}
    assert "of its answers failed" in traffic["stopped"]
    assert traffic["candidate"]["failed"] < len(queries)


def test_a_candidate_that_is_deployed_ends_its_own_trial(shop: Shop) -> None:
    """The store's query model and the candidate are one then; every answer is the store's."""
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--traffic", "new.onnx=100%", "--allow-unverified") as server:
        assert server.ask("/v1/search", query).json["side"] == "candidate"
        given = ("--model", shop.path("new.onnx"), "--force", "--reason", "drill")
        assert shop.run("deploy", *given).code == 0
        wait_for(lambda: server.status()["generation"] == 2)
        answer = server.ask("/v1/search", query).json
        assert (answer["side"], answer["generation"]) == ("current", 2)
        assert "is the query model now" in server.status()["traffic"]["stopped"]


def test_a_restart_after_the_candidate_was_deployed_serves(shop: Shop) -> None:
    """With the same options: there is nothing left to try or to verify, in one process or two."""
    verified = shop.run("verify", shop.path("old.onnx"), shop.path("new.onnx"))
    assert verified.code == 0, verified.stderr
    assert shop.run("deploy", "--model", shop.path("new.onnx")).code == 0
    for options in ((), ("--processes", 2)):
        with Server(shop.folder, "--traffic", "new.onnx=50%", *options) as server:
            assert server.ask("/v1/search", _queries(shop, 1)[0]).json["side"] == "current"
            assert "is the query model now" in server.status()["traffic"]["stopped"]


def test_a_store_that_calibrates_its_scores_ends_a_trial(shop: Shop) -> None:
    """Whatever is deployed during it: a candidate's scores would be of another scale."""
    query = _queries(shop, 1)[0]
    models = (shop.path("old.onnx"), shop.path("new.onnx"))
    with shop.path("compatctl.yaml").open("a") as file:
        file.write("threshold: 0.5\ncalibrate: true\n")
    verified = shop.run("verify", *models)
    assert verified.code == 0, verified.stderr
    with Server(shop.folder, "--traffic", "worse.onnx=100%", "--allow-unverified") as server:
        assert server.ask("/v1/search", query).json["side"] == "candidate"
        deployed = shop.run("deploy", "--model", shop.path("new.onnx"))
        assert deployed.code == 0, deployed.stderr
        wait_for(lambda: server.status()["generation"] == 2)
        assert server.ask("/v1/search", query).json["side"] == "current"
        assert "calibrates scores now" in server.status()["traffic"]["stopped"]


def _slow(path: Path, *, side: int = 2500) -> Path:
    """An encoder that multiplies large matrices for each batch, for more than a second."""
    size = SIDE * SIDE * 3
    weights = {
        "flat": np.array([-1, size], np.int64),
        "project": np.random.default_rng(3).standard_normal((size, DIM)).astype(np.float32),
        "nothing": np.float32(0.0),
        "square": np.array([side, side], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["pixels", "flat"], ["row"]),
        helper.make_node("MatMul", ["row", "project"], ["signal"]),
        helper.make_node("ReduceSum", ["row"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "nothing"], ["zero"]),
        helper.make_node("Expand", ["zero", "square"], ["product0"]),
        *(
            helper.make_node("MatMul", [f"product{n}", f"product{n}"], [f"product{n + 1}"])
            for n in range(6)
        ),
        helper.make_node("ReduceSum", ["product6"], ["rest"], keepdims=0),
        helper.make_node("Add", ["signal", "rest"], ["raw"]),
        helper.make_node("LpNormalization", ["raw"], ["embedding"], axis=-1, p=2),
    ]
    write_graph(path, nodes, weights, side=SIDE, dim=DIM)
    return path


def test_a_slow_candidate_costs_its_own_queries_half_of_the_time_and_others_nothing(
    shop: Shop,
) -> None:
    """What it does not answer in time the query model answers, and counts as its failure; the page
    gets the query model's answer, and why the candidate has none."""
    _slow(shop.path("slow.onnx"))
    query = _queries(shop, 1)[0]
    options = ("--traffic", "slow.onnx=50%", "--allow-unverified", "--timeout", 0.6)
    with Server(shop.folder, *options) as server:
        compared = server.ask("/v1/compare", query)
        replies = [server.ask(f"/v1/search?tenant=t{n}", query) for n in range(30)]
        traffic = server.status()["traffic"]
    assert compared.status == 200
    assert len(compared.json["current"]) == 10
    assert (compared.json["candidate"], compared.json["candidate_error"]) == (
        None,
        "it took too long",
    )
    assert {reply.status for reply in replies} == {200}
    assert {reply.json["side"] for reply in replies} == {"current"}
    assert traffic["candidate"]["answered"] == 0
    assert traffic["candidate"]["failed"] >= 1
    assert "of its answers failed" in traffic["stopped"]


def test_the_page_has_answers_though_the_candidate_fails(shop: Shop) -> None:
    """Those of the query model, and why there are no others."""
    _odd_fails(shop.path("odd.onnx"))
    query = _queries(shop, 1)[0]
    with Server(shop.folder, "--shadow", "odd.onnx") as server:
        compared = server.ask("/v1/compare?k=3", query)
    assert compared.status == 200
    assert len(compared.json["current"]) == 3
    assert compared.json["candidate"] is None
    assert compared.json["candidate_error"]


def test_the_shadow_takes_images_as_large_as_the_service_does(shop: Shop) -> None:
    """What --max-pixels lets through fails in no shadow."""
    wide = io.BytesIO()
    Image.new("1", (45_000, 2_000)).save(wide, "PNG")
    options = ("--shadow", "new.onnx", "--max-pixels", 100_000_000)
    with Server(shop.folder, *options) as server:
        assert server.ask("/v1/search", wide.getvalue()).status == 200
        wait_for(lambda: any(server.status()["shadow"][n] for n in ("answered", "failed")))
        assert server.status()["shadow"]["failed"] == 0


def test_a_generation_ends_with_its_last_query(shop: Shop) -> None:
    """Neither who answered it last nor a candidate keeps its index in memory."""
    query = _queries(shop, 1)[0]
    candidate = CandidateModel(encoder=Encoder.load(shop.path("new.onnx")))
    written: list[object] = []
    shadow = Shadow(candidate, share=1.0, write=written.append)
    batcher = MicroBatcher(max_waiting=4)
    with Searcher.open(shop.path("store")) as searcher:
        current = searcher.current
        answer = batcher.submit(current, current.prepare(query), K).result(60)
        line = LogLine(query="q", side="current", answer=answer)
        asked = ShadowQuery(item=query, k=K, max_pixels=MAX_PIXELS, current=current, line=line)
        assert shadow.offer(asked)
        wait_for(lambda: len(written) == 1)
        left = weakref.ref(current)
        index = weakref.ref(current.gallery.index)
    del current, asked
    gc.collect()
    wait_for(lambda: left() is None and index() is None, 5)
    batcher.close()
    shadow.close()


def test_queries_that_nobody_waits_for_are_no_load(shop: Shop) -> None:
    """However many are cancelled before the next one is answered."""
    query = _queries(shop, 1)[0]
    batcher = MicroBatcher(max_waiting=4)
    with Searcher.open(shop.path("store")) as searcher:
        current = searcher.current
        prepared = current.prepare(query)
        for _ in range(2 * sys.getrecursionlimit()):
            with batcher._changed:  # the thread sees it when it is cancelled already
                batcher.submit(current, prepared, K).cancel()
            while batcher.waiting:
                time.sleep(0)
        assert len(batcher.submit(current, prepared, K).result(60).hits) == K
    batcher.close()
